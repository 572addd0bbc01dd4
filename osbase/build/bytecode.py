# SPDX-License-Identifier: Apache-2.0
"""Byte code for the Python files of a tree (PEP 3147 and 552).

On a read-only root the interpreter cannot store byte code, and compiling at
each start costs seconds. The files are "unchecked hash" ones (PEP 552): the
interpreter does not stat the source or compare its time.

The compiling interpreter must have the version of the image's interpreter,
which is in the file's name and magic number. The result is reproducible with
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
    """Return the .pyc of `source`, which is at `path`; None for invalid Python.

    That is not an error: packages contain files for other versions, and
    broken ones on purpose (test data).
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
    """Return where the interpreter looks for byte code of `path` (PEP 3147)."""
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
