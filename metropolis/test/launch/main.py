# SPDX-License-Identifier: Apache-2.0
"""Boot a node, start two pods, show what they can reach; then stay.

    ./bazelw run //metropolis:launch -- [--pods 2] [--config FILE] [--exit]

Progress goes to stderr, the table (or, with --json, one line of JSON) to
stdout. The exit status is 0 when every check is ok, 1 when one is not, 2 when
no check ran.
"""

import argparse
import asyncio
from collections.abc import Collection, Sequence
from pathlib import Path
from string import ascii_lowercase

import grpc.aio

from metropolis.node.core.network.workloads.spec import workload_pb2
from metropolis.test.launch import checks, command, configuration, report, state, terminal
from metropolis.test.launch.command import say
from metropolis.test.launch.configuration import Configuration
from metropolis.test.launch.control import SOCKET, Request, Say, control
from metropolis.test.launch.cri import CriError, Pod
from metropolis.test.launch.images import find_images
from metropolis.test.launch.keeping import keeping
from metropolis.test.launch.lab import OUTSIDE_IPV4, OUTSIDE_IPV6, OUTSIDE_PORT, Lab
from metropolis.test.launch.node import Node, NodeError
from metropolis.test.launch.report import PodRow, Report, to_json, to_table
from metropolis.test.launch.verdict import Verdict
from osbase.test.agent.client import AgentError

# An emulated node starts one in two seconds or so; each has an address of its
# own and 16 MiB of shims and server.
MOST_PODS = 20
_AT_ONCE = 4
_MEMORY_MIB, _POD_MIB = 1024, 32
# The CRI has no field for it; containerd always names it so.
INTERFACE = "eth0"


def pod_names(count: int) -> list[str]:
    """Return the names: pod-a, pod-b, ..."""
    return [f"pod-{letter}" for letter in ascii_lowercase[:count]]


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


def consistency(rows: Sequence[PodRow], families: Collection[int] = (4, 6)) -> list[checks.Check]:
    """Return a check for each pod: it has addresses of all families, a link."""
    found = []
    for row in rows:
        lacks = [
            what
            for what, value in (
                ("IPv4 address", row.ipv4 or 4 not in families),
                ("IPv6 address", row.ipv6 or 6 not in families),
                ("attachment in the service's List", row.host_link),
                ("attach time in the service's log", row.attach_ms),
            )
            if not value
        ]
        detail = f"no {', no '.join(lacks)}" if lacks else f"{row.ipv4} {row.ipv6} {row.host_link}"
        found.append(checks.Check(f"{row.name} attached", not lacks, detail, row.name, "attached"))
    return found


async def examine(node: Node, names: Sequence[str], own: Configuration) -> Report:
    """Start the pods, check them, return the report. The pods stay."""
    say(f"pods: starting {', '.join(names)} (the images' busybox)")
    turns = asyncio.Semaphore(_AT_ONCE)

    async def start(name: str) -> Pod:
        async with turns:
            return await node.cri.run_pod(name, checks.pod_command(name))

    pods = await asyncio.gather(*map(start, names))
    say("checks: asking the pods")
    addresses = [ip for ip in (node.ipv4, node.ipv6) if ip is not None]
    outside = [ip for ip in (OUTSIDE_IPV4, OUTSIDE_IPV6) if ip.version in own.uplink]
    plans = checks.plan(pods, addresses, outside, OUTSIDE_PORT, own.pods)
    rows, outcome = await asyncio.gather(pod_rows(node, pods), checks.run(node.cri, pods, plans))
    return Report(
        accel=node.accel.value if node.accel else "",
        boot_s=node.boot_s,
        pods=tuple(rows),
        checks=(*consistency(rows, own.pods), *outcome),
    )


def hints(directory: Path, names: Sequence[str]) -> str:
    """Return hints about commands for the running node. directory: its own."""
    return f"""
The node runs until Ctrl-C. Meanwhile, in another terminal:
  its workloads             ./bazelw metroctl workload list
  all pods; one more        ./bazelw pod list
                            ./bazelw pod run web
  a command in a pod        ./bazelw pod exec {names[0]} ip addr
  a shell in a pod          ./bazelw pod exec -it {names[0]} sh
  a shell on the node       ./bazelw console
  the console so far        {directory}/console.log
"""


async def launch(
    base: Path, options: argparse.Namespace, own: Configuration, verdict: Verdict
) -> None:
    """Run the whole launch."""
    names = pod_names(options.pods)
    with (
        state.directory(base) as directory,
        keeping(directory, options.keep, base, verdict),
    ):
        async with Lab(directory) as lab, Node(
            find_images(), lab, directory / "node", own, say,
            memory_mib=_MEMORY_MIB + _POD_MIB * max(0, len(names) - _AT_ONCE),
            log_level=options.log_level,
        ) as node:  # fmt: skip
            try:
                await node.wait_ready()
                await _show(node, names, own, options.json, verdict)
                if not options.exit:
                    await _stay(node, directory, names)
            finally:
                await node.save_logs(directory / "node")
            await node.vm.stop()


async def _show(
    node: Node, names: Sequence[str], own: Configuration, as_json: bool, verdict: Verdict
) -> None:
    """Print the report. Raises NodeError with the logs when there is none."""
    try:
        found = await examine(node, names, own)
    except (AgentError, CriError, grpc.aio.AioRpcError) as error:
        text = error.details() if isinstance(error, grpc.aio.AioRpcError) else error
        raise NodeError(f"{text}\n{await node.logs()}") from error
    if not found.ok:
        say(await node.logs())
    print(to_json(found) if as_json else to_table(found), flush=True)
    verdict.shown(found.ok)


async def _stay(node: Node, directory: Path, names: Sequence[str]) -> None:
    """Serve other commands until the node ends."""

    async def listed(request: Request, said: Say) -> object:
        return [
            {
                "name": node.name, "state": "running", "ipv4": str(node.ipv4),
                "ipv6": str(node.ipv6 or ""), "mac": node.port.mac, "boots": 1, "pod": "",
            }
        ]  # fmt: skip

    async def terminal_of(
        request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        await terminal.serve(node.agent, request, reader, writer)

    async with control(directory / SOCKET, {"list": listed}, (AgentError,), terminal_of):
        say(hints(directory / "node", names))
        reason = await node.vm.wait()
    say(f"the node has ended: {reason or 'no reason given'}")


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the command line; exit with 2 when it is wrong."""
    parser = command.parser("launch", __doc__)
    parser.add_argument(
        "--pods",
        type=int,
        default=2,
        metavar="N",
        help=f"how many pods to start, 1 to {MOST_PODS}, default: %(default)s",
    )
    options = parser.parse_args(arguments)
    if not 1 <= options.pods <= MOST_PODS:
        parser.error(f"--pods {options.pods}: want 1 to {MOST_PODS}")
    return options


def main(arguments: Sequence[str]) -> int:
    """Run the command; return the exit status."""
    options = parse(arguments)
    return command.launched(
        "launch",
        options,
        lambda config: Configuration() if config is None else configuration.of_node(config),
        lambda base, own, verdict: launch(base, options, own, verdict),
        lambda failed: to_json(Report("", 0.0, (), (failed,))),
    )


if __name__ == "__main__":
    command.exit_with(main)
