# SPDX-License-Identifier: Apache-2.0
"""The serial console of a node that //metropolis:launch runs: a root shell.

    ./bazelw console [NODE]

Ctrl-] leaves; the node goes on. There is one console at a time. Without a
terminal it sends stdin, and prints the console's output until stdin has ended
and the console has been silent for two seconds.
"""

import argparse
import os
import select
import socket
import sys

from metropolis.test.launch import state, terminal

_LEAVE = b"\x1d"
_SILENCE_S = 2.0


def relay(console: socket.socket) -> None:
    """Copy both ways until Ctrl-], or the console ends."""
    watched: list[socket.socket | int] = [console, 0]
    while True:
        timeout = None if 0 in watched else _SILENCE_S
        ready, _, _ = select.select(watched, [], [], timeout)
        if not ready:
            return
        if console in ready:
            data = console.recv(65536)
            if not data:
                return
            os.write(1, data)
        if 0 in ready:
            keys = os.read(0, 65536)
            before, leave, _ = keys.partition(_LEAVE)
            console.sendall(before)
            if leave:
                return
            if not keys:
                watched.remove(0)


def main() -> int:
    """Run the command; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="console",
        description=__doc__,
        epilog="exit status: 0 when left, 2 without such a node",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("node", nargs="?", help="of a cluster; may be left out when there is one")
    options = parser.parse_args()
    try:
        directory = state.only_launch(state.root()).node(options.node, "console NODE")
        with socket.socket(socket.AF_UNIX) as console:
            console.connect(str(directory / state.CONSOLE_SOCKET))
            print("console of the node; Ctrl-] leaves, Enter shows the prompt", file=sys.stderr)
            with terminal.raw_terminal(sys.stdin.isatty()):
                relay(console)
    except (state.StateError, OSError) as error:
        print(f"console: {error}", file=sys.stderr)
        return 2
    print(file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
