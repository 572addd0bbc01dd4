# SPDX-License-Identifier: Apache-2.0
"""Pods of the node that //metropolis:launch runs: list them, run commands.

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


async def run(launch: state.Launch, options: argparse.Namespace) -> int:
    """Do what the arguments say; return the exit status."""
    async with unix_channel(launch.containerd_socket) as channel:
        cri = Cri(channel)
        found = await cri.containers()
        if options.action == "list":
            print("\n".join(f"{name}  {container}" for name, container in sorted(found.items())))
            return 0
        if options.pod not in found:
            raise CriError(f"no pod {options.pod}; there are: {', '.join(sorted(found)) or 'none'}")
        done = await cri.exec(found[options.pod], options.command, timeout_s=options.timeout)
        sys.stdout.write(done.stdout)
        sys.stderr.write(done.stderr)
        return done.status


def main(arguments: Sequence[str]) -> int:
    """Run the command; return the exit status."""
    parser = argparse.ArgumentParser(prog="pod", description=__doc__.splitlines()[0])
    actions = parser.add_subparsers(dest="action", required=True)
    actions.add_parser("list", help="list pods and their containers")
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
