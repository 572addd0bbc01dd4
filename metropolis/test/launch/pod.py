# SPDX-License-Identifier: Apache-2.0
"""Pods of the nodes that a launcher runs: start, list, enter, remove them.

    ./bazelw pod list [--json]
    ./bazelw pod run web [--node node-2]
    ./bazelw pod run web -- sleep 1000
    ./bazelw pod exec pod-a ip addr
    ./bazelw pod exec -it pod-a sh
    ./bazelw pod fetch http://198.51.100.10:18080/
    ./bazelw pod rm web

Pods are named NAME, or NODE/NAME where several nodes have one of that name.
WORKLOAD is the beginning of the id that metroctl and node core's log have. The
exit status of exec is the command's; else it is 0, 1 when something failed, 2
for a wrong usage. The programs in a pod are those of the image's busybox.
"""

import argparse
import asyncio
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path

from metropolis.test.launch import checks, control, state, terminal
from metropolis.test.launch.control import ControlError
from metropolis.test.launch.cri import Cri, CriError, Found, unix_channel
from metropolis.test.launch.report import grid

# As Kubernetes names pods: it is also the host name.
_NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")


@dataclass(frozen=True)
class Place:
    """A pod and its node. directory: the node's."""

    node: str
    directory: Path
    pod: Found


async def find(launch: state.Launch) -> dict[str, Place]:
    """Return the pods of all nodes that run, by NAME or NODE/NAME."""
    return named([place for node in launch.nodes.items() for place in await _of_node(*node)])


async def _of_node(node: str, directory: Path) -> list[Place]:
    async with unix_channel(directory / state.CONTAINERD_SOCKET) as channel:
        return [Place(node, directory, pod) for pod in await Cri(channel).pods()]


def named(places: Sequence[Place]) -> dict[str, Place]:
    """Return the pods by name, with the node's where several have the name."""
    found: dict[str, list[Place]] = {}
    for place in places:
        found.setdefault(place.pod.name, []).append(place)
    return {
        name if len(there) == 1 else f"{place.node}/{name}": place
        for name, there in sorted(found.items())
        for place in there
    }


def pick(pods: dict[str, Place], name: str) -> Place:
    """Return a pod by NAME or NODE/NAME. Raises CriError with what there is."""
    if name in pods:
        return pods[name]
    node, slash, rest = name.partition("/")
    for place in pods.values():
        if slash and (place.node, place.pod.name) == (node, rest):
            return place
    several = [full for full in pods if full.endswith(f"/{name}")]
    if several:
        raise CriError(f"which pod? There are: {', '.join(several)}")
    raise CriError(f"no pod {name}; there are: {', '.join(pods) or 'none'}")


def to_json(pods: dict[str, Place]) -> str:
    """Return the list as one line of JSON."""
    return json.dumps(
        [
            {
                "name": name,
                "node": place.node,
                "state": "running" if place.pod.running else "ended",
                "ipv4": _address(place.pod, 4),
                "ipv6": _address(place.pod, 6),
                "container": place.pod.container,
                "id": place.pod.id,
            }
            for name, place in pods.items()
        ]
    )


def to_table(pods: dict[str, Place]) -> str:
    """Return the list for people."""
    rows = [["POD", "NODE", "STATE", "IPV4", "IPV6", "WORKLOAD"]]
    for name, place in pods.items():
        pod = place.pod
        cells = [name, place.node, "running" if pod.running else "ended"]
        cells += [_address(pod, 4), _address(pod, 6), pod.id[:12]]
        rows.append([cell or "-" for cell in cells])
    return "\n".join(grid(rows)) if pods else "no pods"


def _address(pod: Found, version: int) -> str:
    return next((str(ip) for ip in pod.ips if ip.version == version), "")


async def start(launch: state.Launch, options: argparse.Namespace) -> int:
    """Start a pod; print its line."""
    directory = launch.node(options.node, "--node NODE")
    if any(place.pod.name == options.pod for place in await _of_node(directory.name, directory)):
        raise CriError(
            f"{directory.name} has a pod {options.pod} already; "
            f"remove it first: ./bazelw pod rm {directory.name}/{options.pod}"
        )
    command = options.command or checks.pod_command(options.pod)
    async with unix_channel(directory / state.CONTAINERD_SOCKET) as channel:
        pod = await Cri(channel).run_pod(options.pod, command)
    place = Place(
        directory.name, directory, Found(pod.name, pod.id, pod.container, pod.ips, running=True)
    )
    print(to_table({options.pod: place}))
    if not options.command:
        host = next((ip for ip in pod.ips if isinstance(ip, IPv4Address)), None)
        if host is not None:
            print(f"it serves its name: wget -O - http://{host}:{checks.PORT}/name, in another pod")
    return 0


async def run(launch: state.Launch, options: argparse.Namespace) -> int:
    """Run the subcommand of the arguments; return the exit status."""
    if options.action == "fetch":
        request = {"op": "fetch", "url": options.url}
        sys.stdout.write(control.ask(launch.directory, request, lambda text: None))
        return 0
    if options.action == "run":
        return await start(launch, options)
    pods = await find(launch)
    if options.action == "list":
        print(to_json(pods) if options.json else to_table(pods))
        return 0
    if options.action == "rm":
        for place in [pick(pods, name) for name in options.pods]:
            async with unix_channel(place.directory / state.CONTAINERD_SOCKET) as channel:
                await Cri(channel).remove_pod(place.pod.id)
        return 0
    place = pick(pods, options.pod)
    async with unix_channel(place.directory / state.CONTAINERD_SOCKET) as channel:
        if not place.pod.running:
            raise CriError(f"pod {options.pod}: its command has ended")
        if options.interactive:
            # Below: a terminal's signals, and asyncio's, do not mix.
            options.place = place
            return 0
        done = await Cri(channel).exec(
            place.pod.container, options.command, timeout_s=options.timeout
        )
    sys.stdout.write(done.stdout)
    sys.stderr.write(done.stderr)
    return done.status


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the command line; exit with 2 when it is wrong."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="pod", description=__doc__, formatter_class=raw, allow_abbrev=False
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="list|run|exec|fetch|rm")
    listing = actions.add_parser("list", help="list pods, their nodes and addresses")
    listing.add_argument("--json", action="store_true", help="print one line of JSON")
    running = actions.add_parser(
        "run", help="start a pod",
        description="Start a pod. Without a command it serves its name by HTTP, port "
        f"{checks.PORT}, as the launcher's own do.",
    )  # fmt: skip
    running.add_argument("--node", metavar="NODE", help="such as node-2; default: the only one")
    running.add_argument("pod", metavar="NAME", help="of the new pod")
    running.add_argument("command", nargs="*", metavar="COMMAND", help="after --")
    execute = actions.add_parser(
        "exec", help="run a command in a pod",
        description="Run a command in a pod. With -i it gets our stdin; with -t also a terminal "
        "that has our window's size; Ctrl-C goes to the pod.",
    )  # fmt: skip
    execute.add_argument("-i", "--stdin", action="store_true", help="send stdin")
    execute.add_argument("-t", "--tty", action="store_true", help="on a terminal; needs -i")
    execute.add_argument(
        "--timeout", type=int, default=600, metavar="SECONDS",
        help="for a command without -i, default: %(default)s",
    )  # fmt: skip
    execute.add_argument("pod", metavar="NAME", help="as list prints it")
    execute.add_argument(
        "command", nargs=argparse.REMAINDER, metavar="COMMAND", help="with its arguments"
    )
    fetching = actions.add_parser(
        "fetch", help="ask a host port from outside",
        description="Print what a URL has for a host outside of the node, whose network is the "
        "launcher's own: the way to a pod's host port at the node's address.",
    )  # fmt: skip
    fetching.add_argument("url", metavar="URL", help="http://ADDRESS:PORT/PATH")
    remove = actions.add_parser("rm", help="stop and remove pods")
    remove.add_argument("pods", nargs="+", metavar="NAME", help="as list prints it")
    options = parser.parse_args(arguments)
    if options.action == "run" and not _NAME.fullmatch(options.pod):
        running.error(f"{options.pod!r}: want a name of a-z, 0-9 and '-', such as web-1")
    if options.action == "exec":
        if options.command[:1] == ["--"]:
            del options.command[0]
        if not options.command:
            execute.error("want a command, such as: exec -it pod-a sh")
        if options.tty and not options.stdin:
            execute.error("-t needs -i: exec -it")
        if options.tty and not sys.stdin.isatty():
            execute.error("-t: stdin is no terminal; leave -t out")
        options.interactive = options.stdin
    return options


def main(arguments: Sequence[str]) -> int:
    """Run the command; return the exit status."""
    options = parse(arguments)
    try:
        launch = state.only_launch(state.root())
        status = asyncio.run(run(launch, options))
        place: Place | None = getattr(options, "place", None)
        if place is None:
            return status
        return terminal.run(
            launch.directory, place.node, place.pod.container, options.command, options.tty
        )
    except (ControlError, CriError, state.StateError) as error:
        print(f"pod: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
