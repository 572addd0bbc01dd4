# SPDX-License-Identifier: Apache-2.0
"""Boot a cluster, start a pod on every node, show the reachability; then stay.

    ./bazelw run //metropolis:launch-cluster -- [--nodes 3] [--keep DIR]

Progress goes to stderr, the matrix (or, with --json, one line of JSON) to
stdout. The exit status is 0 when every check is ok, 1 when one is not, 2 when
no check ran.
"""

import argparse
import asyncio
from collections.abc import Sequence
from pathlib import Path

from metropolis.test.launch import command, configuration, outside, state, terminal
from metropolis.test.launch.capture import FIRST_FILE as CAPTURE
from metropolis.test.launch.cluster import Cluster, Member
from metropolis.test.launch.command import say
from metropolis.test.launch.control import (
    SOCKET,
    ControlError,
    Operation,
    Request,
    Say,
    control,
)
from metropolis.test.launch.cri import CriError
from metropolis.test.launch.images import find_images
from metropolis.test.launch.keeping import keeping
from metropolis.test.launch.lab import MAX_NODES, MTU, LabError
from metropolis.test.launch.matrix import ClusterReport, to_json, to_table
from metropolis.test.launch.node import Node, NodeError
from metropolis.test.launch.outside import OutsideError
from metropolis.test.launch.verdict import Verdict
from osbase.test.agent.client import AgentError
from osbase.test.qemu.vm import State, VmError

# The least MTU of IPv6, and 80 bytes of WireGuard (see ClusterConfig.mtu).
_MTU_MIN = 1280 + 80
# Seconds between looks for nodes that ended by themselves.
_LOOK_S = 1.0


async def examine(cluster: Cluster) -> ClusterReport:
    """Start the pods, check them, return the report. The pods stay."""
    say("pods: starting one on every node (the images' busybox)")
    await cluster.run_pods()
    say("checks: asking the pods, then the nodes")
    found = await cluster.reach()
    return cluster.report(found)


def hints(directory: Path) -> str:
    """Return hints about commands for the running cluster."""
    return f"""
The cluster runs until Ctrl-C. Meanwhile, in another terminal:
  the nodes of the cluster  ./bazelw metroctl node list
  a node's workloads        ./bazelw metroctl --on node-1 workload list
  add a node, power it off  ./bazelw nodes add
                            ./bazelw nodes poweroff node-1
  a shell in a pod          ./bazelw pod exec -it pod-1 sh
  a shell on a node         ./bazelw console node-1
  the traffic so far        ./bazelw shell tcpdump -Z root -n -r {directory}/{CAPTURE}
  consoles so far           {directory}/node-*/console.log
  dnsmasq, etcd             {directory}/dnsmasq.log {directory}/etcd/etcd.log
"""


class Operations:
    """What other commands may ask for: see `control` and `nodes`."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._turn = asyncio.Lock()

    def every(self) -> dict[str, Operation]:
        """Return the operations by name."""
        return {"list": self.list, "add": self.add, "poweroff": self.poweroff, "boot": self.boot}

    def node(self, name: object) -> Node:
        """Return a node that runs. Raises ControlError or NodeError."""
        return self._member(name).running

    def _member(self, name: object) -> Member:
        members = self._cluster.members
        if not isinstance(name, str) or name not in members:
            raise ControlError(f"no node {name}; there are: {', '.join(members)}")
        return members[name]

    async def list(self, request: Request, say: Say) -> object:
        """List the nodes."""
        return [row(member) for member in self._cluster.members.values()]

    async def add(self, request: Request, say: Say) -> object:
        """Add a node, and a pod on it."""
        with self._cluster.progress_to(say):
            async with self._turn:
                node = await self._cluster.add()
                await self._cluster.run_pod(node.name)
        return [row(self._member(node.name))]

    async def poweroff(self, request: Request, say: Say) -> object:
        """Power a node off."""
        member = self._member(request.get("node"))
        if not is_on(member):
            raise ControlError(f"{member.name} is off; boot {member.name} starts it")
        async with self._turn:
            await self._cluster.power_off(member.name)
        return [row(member)]

    async def boot(self, request: Request, say: Say) -> object:
        """Boot a node that is off, and start its pod."""
        member = self._member(request.get("node"))
        if is_on(member):
            raise ControlError(f"{member.name} runs; poweroff {member.name} ends it")
        with self._cluster.progress_to(say):
            async with self._turn:
                await self._cluster.power_off(member.name)
                await self._cluster.boot(member.name)
                await self._cluster.run_pod(member.name)
        return [row(member)]


def is_on(member: Member) -> bool:
    """Return whether the machine runs."""
    return member.node is not None and member.node.vm.state is State.RUNNING


def row(member: Member) -> dict[str, object]:
    """Return a node as in `nodes`."""
    node = member.node if is_on(member) else None
    return {
        "name": member.name,
        "state": "running" if node else "off",
        "ipv4": str(member.port.ipv4),
        "ipv6": str(node.ipv6 or "") if node else "",
        "mac": member.port.mac,
        "boots": member.boots,
        "pod": member.pod.name if node and member.pod else "",
    }


async def launch(
    base: Path, options: argparse.Namespace, config: str | None, verdict: Verdict
) -> None:
    """Run the whole launch."""
    with (
        state.directory(base) as directory,
        keeping(directory, options.keep, base, verdict),
    ):
        async with Cluster(
            find_images(), directory, options.nodes, mtu=options.mtu, progress=say, config=config,
            log_level=options.log_level,
        ) as cluster:  # fmt: skip
            try:
                found = await examine(cluster)
            except (AgentError, CriError) as error:
                raise NodeError(f"{error}\n{await cluster.logs()}") from error
            if not found.ok:
                say(await cluster.logs())
            print(to_json(found) if options.json else to_table(found), flush=True)
            verdict.shown(found.ok)
            if not options.exit:
                await _stay(cluster, directory)


async def _stay(cluster: Cluster, directory: Path) -> None:
    """Serve other commands, and report ends of nodes, until cancelled."""
    operations = Operations(cluster)

    async def terminal_of(
        request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        await terminal.serve(operations.node(request.get("node")).agent, request, reader, writer)

    expected = (AgentError, CriError, LabError, NodeError, OutsideError, VmError)
    every = operations.every() | {"fetch": outside.operation}
    async with control(directory / SOCKET, every, expected, terminal_of):
        say(hints(directory))
        told: set[tuple[str, int]] = set()
        while True:
            for member in cluster.members.values():
                life = member.name, member.boots
                if member.boots and not is_on(member) and life not in told:
                    told.add(life)
                    say(f"{member.name} has ended; again: ./bazelw nodes boot {member.name}")
            await asyncio.sleep(_LOOK_S)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the command line; exit with 2 when it is wrong."""
    parser = command.parser("launch-cluster", __doc__)
    parser.add_argument(
        "--nodes",
        type=int,
        default=3,
        metavar="N",
        help=f"1 to {MAX_NODES}, default: %(default)s; each takes 1 GiB of memory",
    )
    parser.add_argument(
        "--mtu",
        type=int,
        default=MTU,
        metavar="BYTES",
        help=f"of the network between the nodes, {_MTU_MIN} to {MTU}, default: %(default)s",
    )
    options = parser.parse_args(arguments)
    if not 1 <= options.nodes <= MAX_NODES:
        parser.error(f"--nodes {options.nodes}: want 1 to {MAX_NODES}")
    if not _MTU_MIN <= options.mtu <= MTU:
        parser.error(f"--mtu {options.mtu}: want {_MTU_MIN} to {MTU}")
    return options


def main(arguments: Sequence[str]) -> int:
    """Run the command; return the exit status."""
    options = parse(arguments)
    return command.launched(
        "launch-cluster",
        options,
        lambda config: None if config is None else configuration.of_cluster(config),
        lambda base, config, verdict: launch(base, options, config, verdict),
        lambda failed: to_json(ClusterReport("", (), (failed,))),
    )


if __name__ == "__main__":
    command.exit_with(main)
