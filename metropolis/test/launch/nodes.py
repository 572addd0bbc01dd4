# SPDX-License-Identifier: Apache-2.0
"""Nodes of a launch that runs: list them, add one, power one off or on.

    ./bazelw nodes list [--json]
    ./bazelw nodes add
    ./bazelw nodes poweroff node-2
    ./bazelw nodes boot node-2

A node that is powered off is off at once, as in a power failure; its disk and
its place in the cluster stay. A node that is added is new to the cluster. Both
have a pod when the command returns. The exit status is 0, 1 when something
failed, 2 for a wrong usage.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from metropolis.test.launch import control, state
from metropolis.test.launch.control import ControlError
from metropolis.test.launch.report import grid

KEYS = ("name", "state", "ipv4", "ipv6", "mac", "boots", "pod")
"""The keys of a node in JSON; the columns of the table."""


def to_table(nodes: Sequence[Mapping[str, object]]) -> str:
    """Return the list for people."""
    rows = [[key.upper() for key in KEYS]]
    rows += [[str(node[key]) or "-" for key in KEYS] for node in nodes]
    return "\n".join(grid(rows))


def main(arguments: Sequence[str]) -> int:
    """Run the command; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="nodes", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )  # fmt: skip
    json_too = argparse.ArgumentParser(add_help=False)
    json_too.add_argument("--json", action="store_true", help="print one line of JSON")
    actions = parser.add_subparsers(dest="op", required=True, metavar="list|add|poweroff|boot")
    actions.add_parser("list", help="list the nodes", parents=[json_too])
    actions.add_parser("add", help="add a new node to the cluster", parents=[json_too])
    for name, help_ in (("poweroff", "power a node off at once"), ("boot", "boot it again")):
        one = actions.add_parser(name, help=help_, parents=[json_too])
        one.add_argument("node", metavar="NAME", help="such as node-2")
    options = parser.parse_args(arguments)
    request = {"op": options.op, "node": getattr(options, "node", None)}
    try:
        launch = state.only_launch(state.root())
        nodes: list[dict[str, Any]] = control.ask(
            launch.directory, request, lambda text: print(text, file=sys.stderr, flush=True)
        )
    except (ControlError, state.StateError) as error:
        print(f"nodes: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    print(json.dumps(nodes) if options.json else to_table(nodes))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
