# SPDX-License-Identifier: Apache-2.0
"""The allowed imports between parts of the tree: a table and its check. Pure.

A line of the table is a promise of the design. It binds the files below its
paths. Tests and `testing` modules and packages are free, since they construct
the parts under test, except where the line binds them.

Limit: it reads import statements. A module that is passed as an argument, or
loaded by name, is not seen.
"""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass

_WORKLOADS = "metropolis/node/core/network/workloads/"
_API, _ENGINE, _DATAPATH = (
    (_WORKLOADS + room).replace("/", ".") for room in ("api", "engine", "datapath")
)
_INTERFACE = _DATAPATH + ".interface"
_NETLINK = ("osbase.netlink", "pyroute2")


@dataclass(frozen=True)
class Layer:
    """A promise.

    paths: the files that it binds; a folder ends with "/", "" is all files.
    never: modules that they do not import, including their submodules.
    but: exceptions, which they may import.
    free: files and folders below `paths` that are not bound.
    tests: whether tests and `testing` packages are bound too.
    """

    paths: tuple[str, ...]
    never: tuple[str, ...]
    why: str
    but: tuple[str, ...] = ()
    free: tuple[str, ...] = ()
    tests: bool = False


LAYERS = (
    Layer(
        paths=("osbase/",),
        never=("metropolis",),
        why="osbase does not know metropolis",
        tests=True,
    ),
    Layer(
        paths=tuple(
            f"{_WORKLOADS}{name}.py"
            for name in ("model", "errors", "validate", "conditions", "parts")
        ),
        never=(_API, _ENGINE, _DATAPATH, *_NETLINK),
        why="the values are below all rooms",
    ),
    Layer(
        paths=(_WORKLOADS + "datapath/",),
        never=(_API, _ENGINE),
        why="the datapath does not know its callers",
    ),
    Layer(
        paths=(_WORKLOADS + "datapath/interface.py",),
        never=(_DATAPATH, *_NETLINK),
        why="the interface knows no implementation",
    ),
    Layer(
        paths=(_WORKLOADS + "engine/",),
        never=(_API, _DATAPATH),
        but=(_INTERFACE,),
        why="the engine knows the datapath by its interface",
    ),
    Layer(
        paths=tuple(
            f"{_WORKLOADS}engine/{name}.py"
            for name in (
                "entries",
                "held",
                "ledger",
                "numbers",
                "pool",
                "protected",
                "resources",
                "watchers",
            )
        ),
        never=_NETLINK,
        why="no kernel work happens under the ledger's mutex",
    ),
    Layer(
        paths=(_WORKLOADS + "api/",),
        never=(_DATAPATH,),
        free=(_WORKLOADS + "api/serve.py",),
        why="the API asks the engine",
    ),
    Layer(
        paths=("",),
        never=(_DATAPATH + ".veth",),
        free=(
            _WORKLOADS + "datapath/",
            _WORKLOADS + "api/serve.py",
            "metropolis/node/core/network/workload_service.py",
            "metropolis/test/",
        ),
        why="only serve and workload_service choose an implementation of the datapath",
    ),
)

# The same of osbase in other languages.
REFERENCES = {
    ".proto": re.compile(r'^\s*import\s+(?:public\s+)?"metropolis/'),
    ".bazel": re.compile(r'"(@@?)?//metropolis[/:"]'),
    ".bzl": re.compile(r'"(@@?)?//metropolis[/:"]'),
    ".go": re.compile(r'^\s*(import\s+)?(\w+\s+)?"[^"]*metropolis/'),
    ".c": re.compile(r'^\s*#\s*include\s+"metropolis/'),
    ".h": re.compile(r'^\s*#\s*include\s+"metropolis/'),
}


def layering(path: str, text: str) -> Iterator[str]:
    """Yield the imports of a file that break a line of the table."""
    if path.endswith((".py", ".pyi")):
        layers = [layer for layer in LAYERS if _binds(layer, path)]
        for number, module in _imports(path, text) if layers else ():
            for layer in layers:
                if _below(module, layer.never) and not _below(module, layer.but):
                    yield f"{path}:{number}: imports {module}: {layer.why}"
    if path.startswith("osbase/"):
        for end, pattern in REFERENCES.items():
            if path.endswith(end):
                for number, line in enumerate(text.split("\n"), start=1):
                    if pattern.search(line):
                        yield f"{path}:{number}: osbase refers to metropolis: {line.strip()}"


def _binds(layer: Layer, path: str) -> bool:
    if not any(covers(one, path) for one in layer.paths):
        return False
    if any(covers(one, path) for one in layer.free):
        return False
    return layer.tests or not is_test(path)


def covers(entry: str, path: str) -> bool:
    """Return whether an entry of a table covers the path."""
    return path == entry or entry == "" or (entry.endswith("/") and path.startswith(entry))


def is_test(path: str) -> bool:
    """Return whether the file is a test or for tests only."""
    return (
        path.endswith(("_test.py", "conftest.py", "/testing.py"))
        or "testing" in path.split("/")[:-1]
    )


def _below(module: str, roots: tuple[str, ...]) -> bool:
    return any(module == root or module.startswith(root + ".") for root in roots)


def _imports(path: str, text: str) -> Iterator[tuple[int, str]]:
    """Yield each import's line and full name: `from a import b` is a.b."""
    package = path.split("/")[:-1]
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base = base + ([node.module] if node.module else [])
            for alias in node.names:
                yield node.lineno, ".".join([*base, alias.name])
