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
import traceback
import warnings
from collections.abc import Mapping
from pathlib import PurePosixPath

from osbase.build.tree import Data, Kind, Tree, TreeError

_UNCHECKED_HASH = (1).to_bytes(4, "little")


def compile_source(source: bytes, path: str, name: str | None = None) -> bytes | None:
    """Return the .pyc of `source`, which is at `path`; None for invalid Python.

    That is not an error: packages contain files for other versions, and
    broken ones on purpose (test data). With `name`, it is: raises TreeError,
    which reports it as a fault in the file of that name, with the line.
    """
    try:
        with warnings.catch_warnings(action="ignore"):
            code = compile(source, path, "exec", dont_inherit=True, optimize=0)
    except (SyntaxError, ValueError) as error:
        if name is not None:
            raise TreeError(describe(error, name)) from error
        return None
    return (
        importlib.util.MAGIC_NUMBER
        + _UNCHECKED_HASH
        + importlib.util.source_hash(source)
        + marshal.dumps(code)
    )


def describe(error: SyntaxError | ValueError, name: str) -> str:
    """Return the error as `NAME:LINE: ...`, with the line and a mark below."""
    if not isinstance(error, SyntaxError):
        return f"{name}:1: {error}"
    error.filename = name
    *place, what = traceback.format_exception_only(error)
    lines = [f"{name}:{error.lineno or 1}: {what.strip()}\n", *place[1:]]
    return "".join(lines).rstrip()


def pyc_path(path: str) -> str:
    """Return where the interpreter looks for byte code of `path` (PEP 3147)."""
    return importlib.util.cache_from_source(path, optimization="")


def add_bytecode(tree: Tree, must_compile: Mapping[str, str] | None = None) -> int:
    """Compile each .py of `tree` that has no byte code yet; return how many.

    must_compile: files, with the names of their sources, that have to be valid.
    Raises TreeError for the first that is not.
    """
    done = 0
    for entry in list(tree):
        if entry.kind is not Kind.FILE or PurePosixPath(entry.path).suffix != ".py":
            continue
        path = pyc_path(entry.path)
        if tree.get(path):
            continue
        name = (must_compile or {}).get(entry.path)
        data = compile_source(entry.content.read(), entry.path, name)
        if data is not None and posixpath.dirname(path) not in ("", "/"):
            tree.add_file(path, Data(data), entry.layer)
            done += 1
    return done
