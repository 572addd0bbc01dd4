# SPDX-License-Identifier: Apache-2.0
"""Running launches are found, dead ones are not."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from metropolis.test.launch import state


def test_found_while_it_runs(tmp_path: Path) -> None:
    base = tmp_path / "base"
    with state.directory(base) as path:
        assert state.only_launch(base) == state.Launch(path, os.getpid())
        assert path.stat().st_mode & 0o077 == 0
        with state.directory(base), pytest.raises(state.StateError, match="2 launches run"):
            state.only_launch(base)
    with pytest.raises(state.StateError, match="nothing runs"):
        state.only_launch(base)


def test_a_killed_launch_is_cleared_away(tmp_path: Path) -> None:
    script = (
        "import sys, pathlib, os, signal\n"
        f"sys.path[:] = {sys.path!r}\n"
        "from metropolis.test.launch import state\n"
        "with state.directory(pathlib.Path(sys.argv[1])):\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", script, tmp_path], check=False)
    assert len(list(tmp_path.iterdir())) == 1
    assert state.launches(tmp_path) == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("contents", [b"", b"[]", b"{}", b'{"pid": "x"}', b"\xff"])
def test_garbage_is_no_launch(tmp_path: Path, contents: bytes) -> None:
    (tmp_path / "lx").mkdir()
    (tmp_path / "lx" / "launch.json").write_bytes(contents)
    assert state.launches(tmp_path) == []


def test_somebody_elses_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getuid", lambda: tmp_path.stat().st_uid + 1)
    with (
        pytest.raises(state.StateError, match="belongs to somebody else"),
        state.directory(tmp_path),
    ):
        pass


def test_the_file_says_who(tmp_path: Path) -> None:
    with state.directory(tmp_path) as path:
        assert json.loads((path / "launch.json").read_text()) == {"pid": os.getpid()}


def test_users_have_directories_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if they have the same number, as in user namespaces."""
    monkeypatch.setenv("LOGNAME", "one")
    one = state.root()
    monkeypatch.setenv("LOGNAME", "other")
    assert state.root() != one


def test_nodes_are_found_by_name(tmp_path: Path) -> None:
    launch = state.Launch(tmp_path, 1)
    with pytest.raises(state.StateError, match="there are: none"):
        launch.node(None, "--node NODE")
    for name in ("node-1", "node-2"):
        (tmp_path / name).mkdir()
        (tmp_path / name / state.CONSOLE_SOCKET).touch()
        assert launch.node(name, "") == tmp_path / name
        if name == "node-1":
            assert launch.node(None, "--node NODE") == tmp_path / name
    with pytest.raises(
        state.StateError, match=r"which node[?] Say it by --node NODE; there are: node-1, node-2"
    ):
        launch.node(None, "--node NODE")
    with pytest.raises(state.StateError, match="no node node-3"):
        launch.node("node-3", "")
