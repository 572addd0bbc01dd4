# SPDX-License-Identifier: Apache-2.0
"""Boot a node, start two pods, show what they can reach; then stay.

    ./bazelw run //metropolis:launch [-- --exit] [-- --json]

Progress goes to stderr, the table (or, with --json, one line of JSON) to
stdout. The exit status is 0 when every check is ok, 1 when one is not, 2 when
no check ran.
"""

import asyncio
from collections.abc import Sequence
from pathlib import Path

from metropolis.node.core.network.workloads.spec import workload_pb2
from metropolis.test.launch import checks, command, report, state
from metropolis.test.launch.command import say
from metropolis.test.launch.cri import Pod
from metropolis.test.launch.images import find_images
from metropolis.test.launch.lab import OUTSIDE_IPV4, OUTSIDE_IPV6, OUTSIDE_PORT, Lab
from metropolis.test.launch.node import Node
from metropolis.test.launch.report import PodRow, Report, to_json, to_table

PODS = ("pod-a", "pod-b")
# The CRI has no field for it; containerd always names it so.
INTERFACE = "eth0"


async def pod_rows(node: Node, pods: Sequence[Pod]) -> list[PodRow]:
    """Return the rows: pods by the runtime, links by the service."""
    times = report.attach_times(await node.attach_log())
    listed = await node.workloads.List(workload_pb2.ListRequest(), timeout=60)
    links = {item.workload_id: item for item in listed.attachments}
    rows = []
    for pod in pods:
        link = links.get(pod.id)
        rows.append(
            PodRow(
                name=pod.name,
                id=pod.id,
                interface=link.if_name if link else "",
                ipv4=str(pod.ipv4 or ""),
                ipv6=str(pod.ipv6 or ""),
                host_link=link.host_interface if link else "",
                attach_ms=times.get((pod.id, INTERFACE)),
                sandbox_ms=pod.sandbox_ms,
            )
        )
    return rows


def consistency(rows: Sequence[PodRow]) -> list[checks.Check]:
    """Return a check for each pod: it has both addresses, a link."""
    found = []
    for row in rows:
        lacks = [
            what
            for what, value in (
                ("IPv4 address", row.ipv4),
                ("IPv6 address", row.ipv6),
                ("attachment in the service's List", row.host_link),
                ("attach time in the service's log", row.attach_ms),
            )
            if not value
        ]
        detail = f"no {', no '.join(lacks)}" if lacks else f"{row.ipv4} {row.ipv6} {row.host_link}"
        found.append(checks.Check(f"{row.name} attached", not lacks, detail, row.name, "attached"))
    return found


async def examine(node: Node) -> Report:
    """Start the pods, check them, return the report. The pods stay."""
    say(f"pods: starting {', '.join(PODS)} (the images' busybox)")
    pods = await asyncio.gather(
        *(node.cri.run_pod(name, checks.pod_command(name)) for name in PODS)
    )
    say("checks: asking the pods")
    addresses = [ip for ip in (node.ipv4, node.ipv6) if ip is not None]
    plans = checks.plan(pods, addresses, [OUTSIDE_IPV4, OUTSIDE_IPV6], OUTSIDE_PORT)
    rows, outcome = await asyncio.gather(pod_rows(node, pods), checks.run(node.cri, pods, plans))
    return Report(
        accel=node.accel.value if node.accel else "",
        boot_s=node.boot_s,
        pods=tuple(rows),
        checks=(*consistency(rows), *outcome),
    )


def hints(node: Path) -> str:
    """Return hints about commands for the running node. node: its directory."""
    return f"""
The node runs until Ctrl-C. Meanwhile, in another terminal:
  a shell on the node       ./bazelw run //metropolis/test/launch:console
                            (or: socat -,rawer,escape=0x1d UNIX-CONNECT:{node}/console.sock)
  a command in a pod        ./bazelw run //metropolis/test/launch:pod -- exec {PODS[0]} ip addr
  the console so far        {node}/console.log
"""


async def launch(base: Path, leave: bool, as_json: bool, verdict: command.Verdict) -> None:
    """Run the whole launch."""
    with state.directory(base) as directory:
        async with Lab(directory) as lab, Node(
            find_images(), lab, directory / "node", progress=say
        ) as node:  # fmt: skip
            await node.wait_ready()
            found = await examine(node)
            if not found.ok:
                say(f"--- the node's logs\n{await node.logs()}\n---")
            print(to_json(found) if as_json else to_table(found), flush=True)
            verdict.shown(found.ok)
            if not leave:
                say(hints(directory / "node"))
                await _ended(node)
            elif node.vm is not None:
                await node.vm.stop()


async def _ended(node: Node) -> None:
    reason = await node.vm.wait()
    say(f"the node has ended: {reason or 'no reason given'}")


def main(arguments: Sequence[str]) -> int:
    """Run the command; return the exit status."""
    parser = command.parser("launch", __doc__)
    options = parser.parse_args(arguments)
    base = state.root()
    status = command.run(
        "launch", lambda verdict: launch(base, options.exit, options.json, verdict)
    )
    if status is None and options.json:
        failed = checks.Check("launch", False, "see stderr")
        print(to_json(Report("", 0.0, (), (failed,))), flush=True)
    return command.FAILED if status is None else status


if __name__ == "__main__":
    command.exit_with(main)
