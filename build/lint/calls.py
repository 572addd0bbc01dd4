# SPDX-License-Identifier: Apache-2.0
"""Functions of libraries for which we have others: a table, and its check.

Pure. Tests and `testing` modules and packages are free.
"""

import ast
from collections.abc import Iterator
from dataclasses import dataclass

from build.lint import layers


@dataclass(frozen=True)
class Replaced:
    """A function that is not to be used.

    name: the last part of its name, of whatever module. paths: the files and
    folders where it is not. free: files and folders below that are not bound.
    """

    name: str
    by: str
    why: str
    paths: tuple[str, ...]
    free: tuple[str, ...] = ()


CALLS = (
    Replaced(
        name="to_thread",
        by="osbase.supervisor.in_thread",
        why="cancelled, it leaves the thread at work",
        paths=("metropolis/node/", "osbase/"),
        free=("osbase/supervisor/threads.py", "osbase/test/"),
    ),
)


def replaced(path: str, text: str) -> Iterator[str]:
    """Yield the uses of functions for which the table has another."""
    if not path.endswith(".py") or layers.is_test(path):
        return
    for call in CALLS:
        if not any(layers.covers(one, path) for one in call.paths):
            continue
        if any(layers.covers(one, path) for one in call.free):
            continue
        for node in ast.walk(ast.parse(text)):
            match node:
                case ast.Attribute(attr=call.name) | ast.alias(name=call.name):
                    yield f"{path}:{node.lineno}: {call.name}: {call.why}; use {call.by}"
