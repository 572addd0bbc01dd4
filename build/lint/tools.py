# SPDX-License-Identifier: Apache-2.0
"""Run ruff and mypy over a tree; return their findings."""

import os
import pathlib
import subprocess
import sys

from build.lint.tree import LintError, mirror
from build.proto.generate import generate


def _run(command: list[str], cwd: pathlib.Path, environ: dict[str, str]) -> tuple[int, str]:
    done = subprocess.run(
        command, cwd=cwd, env=environ, text=True, capture_output=True, check=False
    )
    return done.returncode, done.stdout + done.stderr


def ruff(command: list[str], root: pathlib.Path, paths: list[str]) -> str:
    """Return the findings of `ruff COMMAND` in `paths`, with the tree's
    pyproject.toml.
    """
    config = root / "pyproject.toml"
    sources = [path for path in paths if path.endswith((".py", ".pyi"))]
    # -m: the program's path in the package is internal to ruff.
    full = [sys.executable, "-P", "-m", "ruff", *command, "--no-cache", f"--config={config}"]
    status, text = _run([*full, "--", *sources], root, dict(os.environ))
    if status not in (0, 1):
        raise LintError(f"ruff {command[0]}: {text}")
    return text if status else ""


def own_path(environ: dict[str, str]) -> dict[str, str]:
    """Return the environment with only the PyPI packages on PYTHONPATH.

    mypy treats packages there as installed (it reports nothing in them); the
    tree, which Bazel also puts there, must not be.
    """
    entries = environ.get("PYTHONPATH", "").split(os.pathsep)
    packages = [os.path.abspath(e) for e in entries if e.endswith("site-packages")]
    return {**environ, "PYTHONPATH": os.pathsep.join(packages)}


def mypy(
    root: pathlib.Path, paths: list[str], generated: pathlib.Path, scratch: pathlib.Path
) -> str:
    """Return mypy's findings in `paths` of `root`, with pyproject.toml.

    Modules of the protos among `paths` are generated here, so they need no
    registration; those of external protos are in `generated`, part of the
    test's runfiles. `scratch` gets the combined tree.
    """
    mirror(root, [p for p in paths if p.endswith((".py", ".pyi"))], scratch)
    mirror(root, ["pyproject.toml"], scratch)
    protos = {path: root / path for path in paths if path.endswith(".proto")}
    # One by one: two may define the same names, for different programs.
    for proto in protos:
        if status := generate([proto], protos, scratch, grpc=True):
            raise LintError(f"protoc ended with status {status} for {proto}")
    for stub in generated.glob("third_party/**/*_pb2*.pyi"):
        link = scratch / stub.relative_to(generated)
        if not link.exists():
            mirror(generated.absolute(), [str(stub.relative_to(generated))], scratch)
    sources = [path for path in paths if path.endswith((".py", ".pyi"))]
    command = [sys.executable, "-P", "-m", "mypy", "--config-file=pyproject.toml"]
    command += ["--cache-dir", os.devnull, "--no-error-summary", "--", *sources]
    status, text = _run(command, scratch, own_path(dict(os.environ)))
    if status not in (0, 1):
        raise LintError(f"mypy: {text}")
    # Errors in generated stubs are not ours.
    lines = [line for line in text.splitlines() if line.partition(":")[0] in set(sources)]
    if status and not lines and not any("_pb2" in line for line in text.splitlines()):
        raise LintError(f"mypy ended with status {status}: {text}")
    return "\n".join(lines)
