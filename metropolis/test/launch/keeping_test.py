# SPDX-License-Identifier: Apache-2.0
"""Logs are kept whatever ends a launch."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import pytest

from metropolis.test.launch import command, state
from metropolis.test.launch.keeping import keeping
from metropolis.test.launch.verdict import Verdict

ENDS: dict[str, BaseException | bool] = {
    "ok": True,
    "checks failed": False,
    "error": OSError("x"),
    "Ctrl-C": asyncio.CancelledError(),
}


def launch(tmp_path: Path, end: BaseException | bool, target: Path | None) -> Verdict:
    """Do as a launch does; return the verdict."""
    verdict = Verdict()
    base = tmp_path / "base"
    with (
        contextlib.suppress(OSError, asyncio.CancelledError),
        state.directory(base) as directory,
        keeping(directory, target, base, verdict),
    ):
        (directory / "node").mkdir()
        for name in ("node/console.log", "node/node-core.log", "underlay.pcap0", "node/data.img"):
            (directory / name).write_text(name)
        if isinstance(end, BaseException):
            raise end
        verdict.shown(end)
    return verdict


def files(directory: Path) -> list[str]:
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*.*"))


KEPT = ["node/console.log", "node/node-core.log", "underlay.pcap0"]


@pytest.mark.parametrize("end", ENDS)
def test_with_a_directory(tmp_path: Path, end: str) -> None:
    verdict = launch(tmp_path, ENDS[end], tmp_path / "kept")
    assert files(tmp_path / "kept") == KEPT
    assert verdict.kept == f"logs: {tmp_path / 'kept'}"
    assert launch(tmp_path, ENDS[end], tmp_path / "kept").kept, "again, over the old ones"


@pytest.mark.parametrize("end", ENDS)
def test_without(tmp_path: Path, end: str) -> None:
    """Those of the last failure stay."""
    failed = tmp_path / "base" / "failed"
    if end in ("ok", "Ctrl-C"):
        assert launch(tmp_path, ENDS[end], None).kept == ""
        assert not failed.exists()
        return
    (tmp_path / "base").mkdir()
    failed.mkdir()
    (failed / "old.log").touch()
    assert launch(tmp_path, ENDS[end], None).kept == (
        f"logs: {failed}, until the next failure; --keep DIR keeps them"
    )
    assert files(failed) == KEPT
    assert state.launches(tmp_path / "base") == []


def test_a_directory_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(state.StateError, match=r"--keep .*/file/kept: Not a directory"):
        command.keep_directory(tmp_path / "file" / "kept")
    assert command.keep_directory(tmp_path / "a" / "b") == tmp_path / "a" / "b"
    assert (tmp_path / "a" / "b").is_dir()


def test_a_full_disk_is_reported(tmp_path: Path) -> None:
    (tmp_path / "kept").touch()
    verdict = launch(tmp_path, True, tmp_path / "kept")
    assert verdict.kept.startswith("the logs could not be copied to ")
