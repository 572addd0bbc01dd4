# SPDX-License-Identifier: Apache-2.0
"""Boot a cluster, start a pod on every node, show the reachability; then stay.

    ./bazelw run //metropolis:launch-cluster [-- --nodes 3] [--keep DIR]

Progress goes to stderr, the matrix (or, with --json, one line of JSON) to
stdout. The exit status is 0 when every check is ok, 1 when one is not, 2 when
no check ran.
"""

import argparse
import asyncio
import os
from collections.abc import Sequence
from pathlib import Path

from metropolis.test.launch import command, configuration, state
from metropolis.test.launch.checks import Check
from metropolis.test.launch.cluster import Cluster, Member
from metropolis.test.launch.command import say
from metropolis.test.launch.configuration import ConfigurationError
from metropolis.test.launch.cri import CriError
from metropolis.test.launch.images import find_images
from metropolis.test.launch.keeping import keeping
from metropolis.test.launch.lab import MAX_NODES, MTU
from metropolis.test.launch.matrix import ClusterReport, to_json, to_table
from metropolis.test.launch.node import NodeError
from metropolis.test.launch.verdict import Verdict
from osbase.test.agent.client import AgentError

# The least MTU of IPv6, and 80 bytes of WireGuard (see ClusterConfig.mtu).
_MTU_MIN = 1280 + 80


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
  a shell on a node         ./bazelw run //metropolis/test/launch:console -- node-1
  a command in a pod        ./bazelw run //metropolis/test/launch:pod -- exec pod-1 ip addr
  consoles so far           {directory}/node-*/console.log
  the network between       tcpdump -n -r {directory}/underlay.pcap0
  dnsmasq, etcd             {directory}/dnsmasq.log {directory}/etcd/etcd.log
  where the bridge is       ./bazelw shell nsenter -t {os.getpid()} -U --preserve-credentials -n
"""


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
                say(hints(directory))
                await asyncio.gather(*map(_ended, cluster.members.values()))


async def _ended(member: Member) -> None:
    reason = await member.running.vm.wait()
    say(f"{member.name} has ended: {reason or 'no reason given'}")


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
    base = state.root()
    status = None
    try:
        options.keep = command.keep_directory(options.keep)
        file = command.typed(options.config)
        config = None if file is None else configuration.of_cluster(file)
    except (ConfigurationError, state.StateError) as error:
        say(f"launch-cluster: {error}")
    else:
        status = command.run(
            "launch-cluster", lambda verdict: launch(base, options, config, verdict)
        )
    if status is None and options.json:
        failed = Check("launch-cluster", False, "see stderr")
        print(to_json(ClusterReport("", (), (failed,))), flush=True)
    return command.FAILED if status is None else status


if __name__ == "__main__":
    command.exit_with(main)
