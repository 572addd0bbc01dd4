# SPDX-License-Identifier: Apache-2.0
"""Programs beside the nodes."""

import asyncio
from pathlib import Path

import pytest

from metropolis.test.launch import child as children
from metropolis.test.launch.child import ChildError, child

# More than a pipe takes.
_TALK = "head -c 200000 /dev/zero | tr '\\0' '\\n' >&2"


async def test_what_it_says_is_kept(tmp_path: Path) -> None:
    script = "echo first >&2; echo ready >&2; exec sleep inf"
    async with child("sh", "-c", script, log=tmp_path / "log", ready=b"^ready$"):
        pass
    assert (tmp_path / "log").read_text() == "first\nready\n"


async def test_one_that_ends_says_why(tmp_path: Path) -> None:
    with pytest.raises(ChildError, match="sh: ended: no such thing"):
        async with child("sh", "-c", "echo no such thing >&2", log=tmp_path / "log", ready=b"up"):
            pass


async def test_one_that_is_never_ready(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(children, "_READY_S", 0.5)
    with pytest.raises(ChildError, match=r"not ready after 0\.5 s: what"):
        async with child(
            "sh", "-c", "echo what >&2; exec sleep inf", log=tmp_path / "log", ready=b"up"
        ):
            pass


@pytest.mark.parametrize("before", ["true", "head -c 200000 /dev/zero >&2"])
async def test_a_full_disk_does_not_block_it(tmp_path: Path, before: str) -> None:
    """Nor does a line that has no end."""
    done = tmp_path / "done"
    script = f"{before}; echo; echo ready >&2; {_TALK}; : >{done}; exec sleep inf"
    async with child("sh", "-c", script, log=Path("/dev/full"), ready=b"ready"):
        for _ in range(600):
            if done.exists():
                break
            await asyncio.sleep(0.05)
        assert done.exists()
