# SPDX-License-Identifier: Apache-2.0
"""The end of a cluster, with fake machines."""

from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from metropolis.test.launch.cluster import Cluster, Member
from metropolis.test.launch.images import Images
from metropolis.test.launch.lab import Port
from metropolis.test.launch.node import Node
from osbase.test.qemu.vm import VmError


class Machines:
    """Fake nodes of a cluster. fails: the failing step of the first node."""

    def __init__(self, directory: Path, fails: str) -> None:
        self.cluster = Cluster(cast(Images, None), directory, 0)
        self.closed: list[str] = []
        self.stopped: list[str] = []
        for number in (1, 2, 3):
            name = f"node-{number}"
            own = directory / name
            own.mkdir()
            node = self._node(name, own, fails if number == 1 else "")
            member = Member(name, Port(number, -1), own, own / "data.img", {}, node=node)
            member.stack.callback(self.closed.append, name)
            self.cluster.members[name] = member

    def _node(self, name: str, directory: Path, fails: str) -> Node:
        async def save_logs(to: Path) -> None:
            if fails == "save_logs":
                raise OSError("no space")

        async def stop(grace_s: float) -> None:
            if fails == "stop":
                raise VmError("QEMU does not end")
            self.stopped.append(name)

        (directory / "console.log").touch()
        layout = SimpleNamespace(
            console_log=directory / "console.log", qemu_log=directory / "qemu.log"
        )
        vm = SimpleNamespace(stop=stop, layout=layout)
        return cast(Node, SimpleNamespace(save_logs=save_logs, vm=vm))


async def test_a_node_that_is_switched_off_keeps_its_logs(tmp_path: Path) -> None:
    machines = Machines(tmp_path, "")
    for _ in range(2):
        await machines.cluster.power_off("node-2")
        assert (machines.stopped, machines.closed) == (["node-2"], ["node-2"])
    assert (tmp_path / "node-2" / "boot-0" / "console.log").exists()


@pytest.mark.parametrize(
    ("fails", "error"), [("save_logs", "no space"), ("stop", "QEMU does not end")]
)
async def test_one_that_fails_is_closed_all_the_same(
    tmp_path: Path, fails: str, error: str
) -> None:
    """The others end as usual, before the error is raised."""
    machines = Machines(tmp_path, fails)
    with pytest.raises((OSError, VmError), match=error):
        await machines.cluster._end()
    assert sorted(machines.closed) == ["node-1", "node-2", "node-3"]
    assert sorted(machines.stopped) == ["node-2", "node-3"]
