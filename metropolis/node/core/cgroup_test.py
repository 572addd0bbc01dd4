# SPDX-License-Identifier: Apache-2.0
"""The process's cgroup: found, made, or unavailable."""

import os
from pathlib import Path

import pytest

from metropolis.node.core import cgroup


@pytest.fixture
def world(tmp_path: Path) -> tuple[str, str]:
    """Make files that stand for a cgroup2 root and a process in it."""
    (tmp_path / "cgroup.procs").touch()
    proc = tmp_path / "self"
    proc.write_text("0::/\n")
    return str(tmp_path), str(proc)


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("0::/\n", ""),
        ("0::/system.slice/node-core.service\n", "system.slice/node-core.service"),
        ("9:cpu:/x\n0::/a b\n", "a b"),
        ("9:cpu:/x\n", None),
        ("0::/../../other\n", None),
        ("", None),
        ("0::\n", None),
    ],
)
def test_path_of(text: str, path: str | None) -> None:
    assert cgroup.path_of(text) == path


def test_made_and_joined_again(world: tuple[str, str], tmp_path: Path) -> None:
    """A process in the root makes one; a restart finds the same one."""
    for _ in range(2):
        assert cgroup.own(*world) == cgroup.NAME
    assert (tmp_path / cgroup.NAME / "cgroup.procs").read_text() == str(os.getpid())


def test_one_of_a_service_manager_is_kept(world: tuple[str, str], tmp_path: Path) -> None:
    Path(world[1]).write_text("0::/system.slice/x.service\n")
    assert cgroup.own(*world) == "system.slice/x.service"
    assert not (tmp_path / cgroup.NAME).exists()


def test_without_cgroup2(world: tuple[str, str], tmp_path: Path) -> None:
    (tmp_path / "cgroup.procs").unlink()
    assert cgroup.own(*world) is None


def test_refused(world: tuple[str, str], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The process goes on without one, and logs why."""
    (tmp_path / cgroup.NAME).touch()
    assert cgroup.own(*world) is None
    assert "EEXIST" in caplog.text
