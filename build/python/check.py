# SPDX-License-Identifier: Apache-2.0
"""Check the Python code of an image while it is made: mypy, with a cache.

    check DONE PYPROJECT IMPORT-PATH=FILE...     as a flag file: check @FLAGS

The files are all code of an image that is not from PyPI, and the stubs of its
generated modules. A name that does not exist, a missing import or a call with
wrong arguments thus fails the build, and not a machine minutes later. The lint
(//build/lint:mypy_test) is strict and reads the whole tree; this reports only
what is likely to fail when it runs, so that code under work, with annotations
missing, can be started.

As an action it would read 180 modules each time, in 7 seconds. So it is a
persistent worker of Bazel (JSON protocol: bazel.build/remote/creating), which
keeps mypy's cache: a changed module takes about a second, beside the making of
the image. Where Bazel runs no worker, it works the same without a cache.
"""

import argparse
import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from typing import IO, Any

# Matters of style; mypy_test reports them.
NOT_HERE = (
    "comparison-overlap",
    "explicit-override",
    "misc",
    "no-any-return",
    "no-any-unimported",
    "no-untyped-call",
    "no-untyped-def",
    "redundant-cast",
    "type-arg",
    "unreachable",
    "untyped-decorator",
    "unused-ignore",
)

ADVICE = (
    "This code goes into an image, so the build checks it (build/python/check.py);"
    " to try it as it is, add: --norun_validations"
)


class CheckError(Exception):
    """The check could not run (this is not a finding)."""


def update(mirror: pathlib.Path, files: Mapping[str, pathlib.Path]) -> None:
    """Make `mirror` a tree of copies of exactly `files`, by import path.

    A copy that is right is left alone. One that changes gets another time:
    mypy's cache goes by time, in whole seconds, and size.
    """
    for folder, _, names in os.walk(mirror):
        for name in names:
            copy = pathlib.Path(folder, name)
            if str(copy.relative_to(mirror)) not in files:
                copy.unlink()
    # A folder without files would be a package, whose import is right.
    for folder, _, _ in os.walk(mirror, topdown=False):
        if folder != str(mirror) and not os.listdir(folder):
            os.rmdir(folder)
    for path, file in files.items():
        copy, text = mirror / path, file.read_bytes()
        time = int(copy.stat().st_mtime) + 1 if copy.exists() else 1
        if time > 1 and copy.read_bytes() == text:
            continue
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(text)
        os.utime(copy, (time, time))


def check(files: Mapping[str, pathlib.Path], config: pathlib.Path, scratch: pathlib.Path) -> str:
    """Return mypy's findings in `files`, a line each; empty if there are none.

    `scratch` is empty, or has the cache of an earlier call. Raises CheckError.
    """
    mirror = scratch / "tree"
    mirror.mkdir(exist_ok=True)
    update(mirror, files)
    sources = sorted(path for path in files if path.endswith(".py") and "_pb2" not in path)
    command = [sys.executable, "-P", "-m", "mypy", f"--config-file={config.absolute()}"]
    command += [f"--cache-dir={scratch / 'cache'}", "--no-error-summary", "--hide-error-context"]
    command += [f"--disable-error-code={code}" for code in NOT_HERE]
    # mypy takes packages there as installed, and reports nothing in them.
    packages = [os.path.abspath(entry) for entry in sys.path if entry.endswith("site-packages")]
    done = subprocess.run(
        [*command, "--", *sources],
        cwd=mirror,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(packages)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    ours = set(sources)
    lines = [line for line in done.stdout.splitlines() if line.partition(":")[0] in ours]
    found = [line for line in lines if ": error: " in line]
    # Status 1: all was checked, and there are findings, perhaps only in stubs.
    whole = done.returncode == 0 or (done.returncode == 1 and done.stdout.startswith(tuple(files)))
    if not whole and not found:
        raise CheckError(f"mypy ended with status {done.returncode}: {done.stdout}{done.stderr}")
    return "\n".join(lines) if found else ""


def act(arguments: Sequence[str], scratch: pathlib.Path) -> tuple[int, str]:
    """Do what the arguments say; return the exit status and the messages."""
    if len(arguments) == 1 and arguments[0].startswith("@"):
        arguments = pathlib.Path(arguments[0][1:]).read_text().splitlines()
    done, config, *pairs = arguments
    files = {path: pathlib.Path(file) for path, _, file in (p.partition("=") for p in pairs)}
    try:
        found = check(files, pathlib.Path(config), scratch)
    except (CheckError, OSError) as error:
        return 1, f"checking Python: {error}\n"
    if found:
        return 1, f"{found}\n{ADVICE}\n"
    pathlib.Path(done).touch()
    return 0, ""


def serve(requests: IO[str], responses: IO[str], scratch: pathlib.Path) -> None:
    """Answer Bazel's work requests, one after the other, until it ends."""
    for line in requests:
        request: dict[str, Any] = json.loads(line)
        status, output = act(request["arguments"], scratch)
        answer = {"exitCode": status, "output": output, "requestId": request.get("requestId", 0)}
        print(json.dumps(answer), file=responses, flush=True)


def main(argv: Sequence[str]) -> int:
    """Run as Bazel's worker or as a single command."""
    if not argv or (argv[0].startswith("-") and "--persistent_worker" not in argv):
        argparse.ArgumentParser(
            prog="check", usage="%(prog)s [--persistent_worker | DONE CONFIG ...]",
            epilog="exit status: 0 nothing is wrong, else 1; 2 for wrong arguments",
            description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
        ).parse_args(argv or ["--help"])  # fmt: skip
    # Bazel ends a worker by this signal: leave by the usual way, and clean up.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with contextlib.ExitStack() as stack:
        made = tempfile.TemporaryDirectory(prefix="check-python-", ignore_cleanup_errors=True)
        scratch = pathlib.Path(stack.enter_context(made))
        if "--persistent_worker" in argv:
            serve(sys.stdin, sys.stdout, scratch)
            return 0
        status, output = act(argv, scratch)
        sys.stderr.write(output)
        return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
