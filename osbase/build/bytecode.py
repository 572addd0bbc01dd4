# SPDX-License-Identifier: Apache-2.0
"""Byte code for the Python files of a tree (PEP 3147 and 552).

On a read-only root the interpreter cannot keep byte code, and compiling at each
start costs seconds. Files are "unchecked hash" ones (PEP 552): no stat of the
source, no dependence on its time.

The compiling interpreter must be of the same version as the image's, as the
name and the magic number in the file say. Reproducible when run with
PYTHONHASHSEED=0 (the order of sets among the constants) and in one thread.
"""

import importlib.util
import marshal
import posixpath
import warnings
from pathlib import PurePosixPath

from osbase.build.tree import Data, Kind, Tree

_UNCHECKED_HASH = (1).to_bytes(4, "little")


def compile_source(source: bytes, path: str) -> bytes | None:
    """The .pyc of `source`, to live at `path`; None when it is no Python.

    Packages carry files for other versions and broken ones on purpose (test
    data), so that is no error.
    """
    try:
        with warnings.catch_warnings(action="ignore"):
            code = compile(source, path, "exec", dont_inherit=True, optimize=0)
    except SyntaxError, ValueError:
        return None
    return (
        importlib.util.MAGIC_NUMBER
        + _UNCHECKED_HASH
        + importlib.util.source_hash(source)
        + marshal.dumps(code)
    )


def pyc_path(path: str) -> str:
    """Where the interpreter looks for the byte code of `path` (PEP 3147)."""
    return importlib.util.cache_from_source(path, optimization="")


def add_bytecode(tree: Tree) -> int:
    """Compile each .py of `tree` that has no byte code yet; return how many."""
    done = 0
    for entry in list(tree):
        if entry.kind is not Kind.FILE or PurePosixPath(entry.path).suffix != ".py":
            continue
        path = pyc_path(entry.path)
        if tree.get(path):
            continue
        data = compile_source(entry.content.read(), entry.path)
        if data is not None and posixpath.dirname(path) not in ("", "/"):
            tree.add_file(path, Data(data), entry.layer)
            done += 1
    return done
