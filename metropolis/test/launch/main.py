# SPDX-License-Identifier: Apache-2.0
"""Boot a node, start two pods, show what they can reach; then stay.

    ./bazelw run //metropolis:launch -- [--pods 2] [--config FILE] [--exit]
    ./bazelw run //metropolis:launch -- --pod FILE.yaml [--pod FILE2.yaml]

With --pod it starts the pods of your own files in their place: Kubernetes'
Pods, v1, of which metropolis/test/kubelet/example.yaml is an example. They are
kept as a kubelet does: containers that end are started again as restartPolicy
says, and so are pods that you remove. The table shows their addresses, and
which host ports answer from outside. Their images have to be on the node, which
pulls none. A file that is wrong is refused before the boot, with all faults.

Progress goes to stderr, the table (or, with --json, one line of JSON) to
stdout. The exit status is 0 when every check is ok, 1 when one is not, 2 when
no check ran.
"""

import argparse
import asyncio
import contextlib
from collections.abc import AsyncIterator, Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import ascii_lowercase

import grpc.aio

from metropolis.test.kubelet import manifest
from metropolis.test.kubelet.kubelet import Kubelet, KubeletError
from metropolis.test.kubelet.on_node import kubelet_of
from metropolis.test.launch import (
    checks,
    command,
    configuration,
    outside,
    own_pods,
    rows,
    state,
    terminal,
)  # fmt: skip
from metropolis.test.launch.command import say
from metropolis.test.launch.configuration import Configuration
from metropolis.test.launch.control import SOCKET, Request, Say, control
from metropolis.test.launch.cri import CriError, Pod
from metropolis.test.launch.images import find_images
from metropolis.test.launch.keeping import keeping
from metropolis.test.launch.lab import OUTSIDE_IPV4, OUTSIDE_IPV6, OUTSIDE_PORT, Lab
from metropolis.test.launch.node import Node, NodeError
from metropolis.test.launch.report import Report, to_json, to_table
from metropolis.test.launch.verdict import Verdict
from osbase.test.agent.client import AgentError

# An emulated node starts one in two seconds or so; each has an address of its
# own and 16 MiB of shims and server.
MOST_PODS = 20
_AT_ONCE = 4
# The launcher's own, unless the user says otherwise.
_PODS = 2
_MEMORY_MIB, _POD_MIB = 1024, 32


@dataclass(frozen=True)
class Wanted:
    """What to launch. pods: the user's own; none: the launcher's."""

    own: Configuration
    pods: tuple[manifest.Pod, ...]


def wanted_of(config: Path | None, files: Sequence[Path]) -> Wanted:
    """Return what the files of the command line want. Raises
    ConfigurationError.
    """
    own = Configuration() if config is None else configuration.of_node(config)
    paths = [command.typed(path) or path for path in files]
    return Wanted(own, own_pods.read(paths, MOST_PODS))


def pod_names(count: int) -> list[str]:
    """Return the names: pod-a, pod-b, ..."""
    return [f"pod-{letter}" for letter in ascii_lowercase[:count]]


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
    found, outcome = await asyncio.gather(
        rows.pod_rows(node, pods), checks.run(node.cri, pods, plans)
    )
    return Report(
        accel=node.accel.value if node.accel else "",
        boot_s=node.boot_s,
        pods=tuple(found),
        checks=(*rows.consistency(found, own.pods), *outcome),
    )


def hints(directory: Path, names: Sequence[str], ports: Sequence[str] = ()) -> str:
    """Return hints about commands for the running node. directory: its own.
    ports: URLs of host ports.
    """
    more = next(name for name in ("web", "extra", *pod_names(MOST_PODS)) if name not in names)
    asked = f"\n  a host port from outside  ./bazelw pod fetch {ports[0]}" if ports else ""
    return f"""
The node runs until Ctrl-C. Meanwhile, in another terminal:
  its workloads             ./bazelw metroctl workload list
  all pods; one more        ./bazelw pod list
                            ./bazelw pod run {more}
  a command in a pod        ./bazelw pod exec {names[0]} ip addr
  a shell in a pod          ./bazelw pod exec -it {names[0]} sh
  a shell on the node       ./bazelw console{asked}
  the console so far        {directory}/console.log
"""


async def launch(base: Path, options: argparse.Namespace, wanted: Wanted, verdict: Verdict) -> None:
    """Run the whole launch."""
    own = wanted.own
    names = [pod.name for pod in wanted.pods] or pod_names(options.pods)
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
                if wanted.pods:
                    kubelet = await kubelet_of(node)
                    ports = await _show_own(node, kubelet, wanted, options.json, verdict)
                    if not options.exit:
                        keep = own_pods.keep(kubelet, wanted.pods, say)
                        await _stay(node, directory, hints(directory / "node", names, ports), keep)
                else:
                    await _show(node, names, own, options.json, verdict)
                    if not options.exit:
                        await _stay(node, directory, hints(directory / "node", names))
            finally:
                await node.save_logs(directory / "node")
            await node.vm.stop()


async def _show(
    node: Node, names: Sequence[str], own: Configuration, as_json: bool, verdict: Verdict
) -> None:
    """Print the report. Raises NodeError with the logs when there is none."""
    async with _logs_of_failure(node):
        found = await examine(node, names, own)
    if not found.ok:
        say(await node.logs())
    print(to_json(found) if as_json else to_table(found), flush=True)
    verdict.shown(found.ok)


async def _show_own(
    node: Node, kubelet: Kubelet, wanted: Wanted, as_json: bool, verdict: Verdict
) -> list[str]:
    """Print the report of the user's own pods; return the URLs of their host
    ports. Raises NodeError with the logs when there is none.
    """
    say(f"pods: starting {', '.join(pod.full_name for pod in wanted.pods)}")
    async with _logs_of_failure(node):
        found, pods = await own_pods.examine(node, kubelet, wanted.pods, wanted.own)
    if not found.ok:
        say(await node.logs())
    shown = own_pods.to_json(found, pods) if as_json else own_pods.to_table(found, pods)
    print(shown, flush=True)
    verdict.shown(found.ok)
    return own_pods.urls(node, pods)


@contextlib.asynccontextmanager
async def _logs_of_failure(node: Node) -> AsyncIterator[None]:
    """Raise NodeError, with the node's logs, for what fails in the block."""
    try:
        yield
    except (AgentError, CriError, KubeletError, grpc.aio.AioRpcError) as error:
        text = error.details() if isinstance(error, grpc.aio.AioRpcError) else error
        raise NodeError(f"{text}\n{await node.logs()}") from error


async def _nothing() -> None:
    """Keep nothing."""


async def _stay(
    node: Node, directory: Path, hint: str, keep: Coroutine[None, None, None] | None = None
) -> None:
    """Serve other commands until the node ends. keep: runs meanwhile."""

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

    operations = {"list": listed, "fetch": outside.operation}
    expected = (AgentError, outside.OutsideError)
    keeping_pods = asyncio.create_task(keep or _nothing())
    try:
        async with control(directory / SOCKET, operations, expected, terminal_of):
            say(hint)
            reason = await node.vm.wait()
    finally:
        keeping_pods.cancel()
        await asyncio.gather(keeping_pods, return_exceptions=True)
    say(f"the node has ended: {reason or 'no reason given'}")


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the command line; exit with 2 when it is wrong."""
    parser = command.parser("launch", __doc__)
    parser.add_argument(
        "--pods",
        type=int,
        metavar="N",
        help=f"how many pods to start, 1 to {MOST_PODS}, default: {_PODS}",
    )
    parser.add_argument(
        "--pod",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="start the pods of this YAML file; may be given several times (default: the "
        "launcher's own pods)",
    )
    options = parser.parse_args(arguments)
    if options.pod and options.pods is not None:
        parser.error("--pods is about the launcher's own pods; leave it out with --pod")
    options.pods = _PODS if options.pods is None else options.pods
    if not 1 <= options.pods <= MOST_PODS:
        parser.error(f"--pods {options.pods}: want 1 to {MOST_PODS}")
    return options


def main(arguments: Sequence[str]) -> int:
    """Run the command; return the exit status."""
    options = parse(arguments)
    return command.launched(
        "launch",
        options,
        lambda config: wanted_of(config, options.pod),
        lambda base, wanted, verdict: launch(base, options, wanted, verdict),
        lambda failed: to_json(Report("", 0.0, (), (failed,))),
    )


if __name__ == "__main__":
    command.exit_with(main)
