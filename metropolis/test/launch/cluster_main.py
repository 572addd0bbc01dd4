# SPDX-License-Identifier: Apache-2.0
"""Boot a cluster, start a pod on every node, show the reachability; then stay.

    ./bazelw run //metropolis:launch-cluster -- [--nodes 3] [--exit] [--json]

Progress goes to stderr, the matrix (or, with --json, one line of JSON) to
stdout. The exit status is 0 when every check is ok, 1 when one is not, 2 when
no check ran.
"""

import asyncio
import os
from collections.abc import Sequence
from pathlib import Path

from metropolis.test.launch import command, state
from metropolis.test.launch.checks import Check
from metropolis.test.launch.cluster import Cluster, Member
from metropolis.test.launch.command import say
from metropolis.test.launch.images import find_images
from metropolis.test.launch.lab import MAX_NODES, MTU
from metropolis.test.launch.matrix import ClusterReport, to_json, to_table

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
    base: Path,
    nodes: int,
    mtu: int,
    keep: Path | None,
    options: tuple[bool, bool],
    verdict: command.Verdict,
) -> None:
    """Run the whole launch. options: leave, as JSON."""
    leave, as_json = options
    with state.directory(base) as directory:
        async with Cluster(
            find_images(), directory, nodes, mtu=mtu, keep=keep, progress=say
        ) as cluster:
            found = await examine(cluster)
            if not found.ok:
                say(f"the nodes' logs\n{await cluster.logs()}\n---")
            print(to_json(found) if as_json else to_table(found), flush=True)
            verdict.shown(found.ok)
            if not leave:
                say(hints(directory))
                await asyncio.gather(*map(_ended, cluster.members.values()))


async def _ended(member: Member) -> None:
    reason = await member.running.vm.wait()
    say(f"{member.name} has ended: {reason or 'no reason given'}")


def main(arguments: Sequence[str]) -> int:
    """Run the command; return the exit status."""
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
    parser.add_argument(
        "--keep", type=Path, metavar="DIR", help="copy logs and captures there in the end"
    )
    options = parser.parse_args(arguments)
    if not 1 <= options.nodes <= MAX_NODES:
        parser.error(f"--nodes {options.nodes}: want 1 to {MAX_NODES}")
    if not _MTU_MIN <= options.mtu <= MTU:
        parser.error(f"--mtu {options.mtu}: want {_MTU_MIN} to {MTU}")
    base = state.root()
    # bazel run changes the directory.
    where = Path(os.environ.get("BUILD_WORKING_DIRECTORY", "."))
    keep = options.keep and (where / options.keep).absolute()
    status = command.run(
        "launch-cluster",
        lambda verdict: launch(
            base, options.nodes, options.mtu, keep, (options.exit, options.json), verdict
        ),
    )
    if status is None and options.json:
        failed = Check("launch-cluster", False, "see stderr")
        print(to_json(ClusterReport("", (), (failed,))), flush=True)
    return command.FAILED if status is None else status


if __name__ == "__main__":
    command.exit_with(main)
