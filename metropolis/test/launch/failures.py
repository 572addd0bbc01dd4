# SPDX-License-Identifier: Apache-2.0
"""The report of a test that failed on a machine.

It has node core's log first, then a little of the others, the end of the
console, and last the paths of everything that was kept.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from metropolis.test.launch.node import Node
from osbase.test.qemu import outputs


async def of_nodes(nodes: Iterable[Node]) -> str:
    """Return what nodes say: while their machines run."""
    return "\n".join([await _of_node(node) for node in nodes])


async def _of_node(node: Node) -> str:
    console = f"--- the end of the console\n{node.vm.console_tail()}"
    return f"=== {node.name}\n{await node.logs()}\n{console}"


def paths(kept: Path | None) -> str:
    """Return where the logs are. kept: their directory, when all are there."""
    if kept is None:
        return "the logs are not kept outside of `bazel test`"
    return outputs.listing(kept)


def output(name: str) -> Path | None:
    """Return a directory for what a test keeps; None outside `bazel test`."""
    top = outputs.directory()
    return None if top is None else top / name
