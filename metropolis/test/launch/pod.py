# SPDX-License-Identifier: Apache-2.0
"""Pods of the nodes that //metropolis:launch runs: list them, run commands.

    ./bazelw run //metropolis/test/launch:pod -- list
    ./bazelw run //metropolis/test/launch:pod -- exec pod-a ip addr

Output and exit status are the command's. Its stdin is empty; for a shell, use
:console and there `ctr --namespace k8s.io task exec`.
"""

import argparse
import asyncio
import sys
from collections.abc import Sequence

from metropolis.test.launch import state
from metropolis.test.launch.cri import Cri, CriError, unix_channel


async def find(launch: state.Launch) -> dict[str, tuple[str, str]]:
    """Return the pods of all nodes: name to node and container. Pods with the
    same name are named NODE/POD.
    """
    found: dict[str, list[tuple[str, str]]] = {}
    for node, directory in launch.nodes.items():
        async with unix_channel(directory / state.CONTAINERD_SOCKET) as channel:
            for name, container in (await Cri(channel).containers()).items():
                found.setdefault(name, []).append((node, container))
    return {
        name if len(there) == 1 else f"{node}/{name}": (node, container)
        for name, there in found.items()
        for node, container in there
    }


async def run(launch: state.Launch, options: argparse.Namespace) -> int:
    """Run the subcommand of the arguments; return the exit status."""
    found = await find(launch)
    if options.action == "list":
        for name, (node, container) in sorted(found.items()):
            print(f"{name}  {node}  {container}")
        return 0
    if options.pod not in found:
        raise CriError(f"no pod {options.pod}; there are: {', '.join(sorted(found)) or 'none'}")
    node, container = found[options.pod]
    async with unix_channel(launch.node(node) / state.CONTAINERD_SOCKET) as channel:
        done = await Cri(channel).exec(container, options.command, timeout_s=options.timeout)
    sys.stdout.write(done.stdout)
    sys.stderr.write(done.stderr)
    return done.status


def main(arguments: Sequence[str]) -> int:
    """Run the command; return the exit status."""
    parser = argparse.ArgumentParser(prog="pod", description=__doc__.splitlines()[0])
    actions = parser.add_subparsers(dest="action", required=True)
    actions.add_parser("list", help="list pods, their nodes and containers")
    execute = actions.add_parser("exec", help="run a command in a pod")
    execute.add_argument("--timeout", type=int, default=600, help="seconds (default: 600)")
    execute.add_argument("pod")
    execute.add_argument("command", nargs=argparse.REMAINDER)
    options = parser.parse_args(arguments)
    if options.action == "exec" and not options.command:
        parser.error("exec: want a command")
    try:
        return asyncio.run(run(state.only_launch(state.root()), options))
    except (CriError, state.StateError) as error:
        print(f"pod: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
