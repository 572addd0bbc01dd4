# SPDX-License-Identifier: Apache-2.0
"""Install one pinned package for //build/python:pypi.bzl: REQUIREMENT TARGET.

It runs pip (hashes required, wheels only, no dependencies) in the host's
configuration, drops files that no program needs, adds byte code that does not
depend on file times, and prints as a JSON list the names of the packages that
this one requires on this machine, in the normal form of the lock.
"""

import compileall
import json
import pathlib
import py_compile
import re
import shutil
import sys
from importlib import metadata

from build.python.host_pip import PipError, pip

# Files of *.dist-info that name the machine, or that only pip reads.
PIP_ONLY = ("INSTALLER", "RECORD", "REQUESTED", "direct_url.json")


def prune(target: pathlib.Path) -> None:
    """Remove scripts, tests, caches and pip's own records; keep licences."""
    for path in target.rglob("__pycache__"):
        shutil.rmtree(path)
    for path in target.glob("bin/*"):
        # A script has this machine's path of the interpreter; a program stays.
        if path.read_bytes()[:2] == b"#!":
            path.unlink()
    for path in sorted(target.rglob("tests")):
        if path.is_dir() and path.parent != target:
            shutil.rmtree(path)
    for info in target.glob("*.dist-info"):
        for name in PIP_ONLY:
            (info / name).unlink(missing_ok=True)
    # Bazel's labels and runfiles lists do not take every character.
    for path in sorted(target.rglob("*"), reverse=True):
        if not re.fullmatch(r"[\w.+@=,~#-]+", path.name, re.ASCII):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def requirements(target: pathlib.Path) -> list[str]:
    """Return the normalised names of the requirements of `target`."""
    # pip is there anyway; `packaging` itself comes from the lock.
    from pip._vendor.packaging.requirements import Requirement

    names = set()
    for distribution in metadata.distributions(path=[str(target)]):
        for text in distribution.requires or []:
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                names.add(re.sub(r"[-_.]+", "_", requirement.name).lower())
    return sorted(names)


def main() -> None:
    """Install, prune, compile, report; exit non-zero with pip's messages."""
    requirement, target = sys.argv[1], pathlib.Path(sys.argv[2])
    try:
        pip(
            *("install", "-qq", "--require-hashes", "--no-deps", "--only-binary=:all:"),
            *("--no-compile", "--root-user-action=ignore"),
            *(f"--target={target}", f"--requirement={requirement}"),
        )
    except PipError as error:
        sys.exit(str(error))
    prune(target)
    compileall.compile_dir(
        target,
        quiet=2,
        stripdir=str(target.resolve()),
        invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
    )
    json.dump(requirements(target), sys.stdout)


if __name__ == "__main__":
    main()
