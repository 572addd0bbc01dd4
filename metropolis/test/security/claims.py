# SPDX-License-Identifier: Apache-2.0
"""Run the tests of SECURITY.md's claims and say which hold.

    ./bazelw run //metropolis/test/security:claims
    ./bazelw run //metropolis/test/security:claims -- --json
    ./bazelw run //metropolis/test/security:claims -- --claim pod-metadata

Stdout has only the table, or with --json one line {"ok": ..., "claims":
[{"claim", "test", "ok"}]}; stderr has progress, and the output of failing
tests. A test is ok when at least one case of it ran, all passed and none was
skipped.

Status: 0 when all is ok, 1 when not, 2 for wrong arguments or an incomplete
page, 128 plus the signal's number when a signal ended it. It has the tests'
requirements: user namespaces, and /dev/net/tun for nodes in machines.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from asyncio.subprocess import DEVNULL, STDOUT
from collections.abc import Sequence
from pathlib import Path

from build.lint.claims import PAGE, Claim, parse
from metropolis.test.security import verdicts
from metropolis.test.security.verdicts import Verdict

_TIMEOUT_S = 1800.0
# Seconds that tests have to clean up in, once they are to end.
_GRACE_S = 60.0


class ClaimsError(Exception):
    """The page or an argument is wrong; the text has the reason."""


def say(message: str) -> None:
    """Progress."""
    print(message, file=sys.stderr, flush=True)


def runfiles() -> Path:
    """Return the directory of the page and the tests."""
    return Path(__file__).parents[3]


def read_claims(page: Path, wanted: Sequence[str]) -> list[Claim]:
    """Return the claims of the page with these ids, or all. ClaimsError."""
    try:
        claims, problems = parse(page.read_text())
    except OSError as error:
        raise ClaimsError(f"{page}: {error.strerror}") from error
    if problems:
        raise ClaimsError("\n".join(f"{PAGE}:{line}: {what}" for line, what in problems))
    known = {claim.ident for claim in claims}
    if unknown := [ident for ident in wanted if ident not in known]:
        raise ClaimsError(f"{PAGE} has no claim {', '.join(unknown)}; --list shows them")
    return [claim for claim in claims if not wanted or claim.ident in wanted]


def make_directory(path: Path) -> None:
    """Make the directory if needed, and check that it is writable."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise ClaimsError(f"--output {path}: {error.strerror}") from error


def program(root: Path, path: str) -> Path:
    """Return the test target of a file, which by convention has its name."""
    return root / path.removesuffix(".py")


def packages(root: Path) -> list[str]:
    """Return the import roots of all external packages.

    A test's own runfiles have only the imported part of the tree; here it sees
    the parts of all tests, where a package's __init__ may import more.
    """
    return sorted(str(path) for path in root.parent.glob("*/site-packages"))


async def _end(process: asyncio.subprocess.Process) -> None:
    """Ask tests to end; kill those that do not, with all their children."""
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(signal.SIGINT)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_GRACE_S):
            await process.wait()
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    await process.wait()


async def run_file(
    root: Path, path: str, names: Sequence[str], scratch: Path, timeout_s: float
) -> tuple[dict[str, Verdict], str]:
    """Run tests of one file; return the verdicts, and the reason of failures.

    scratch: a separate directory, which gets output.log and report.xml.
    """
    nothing = {f"{path}::{name}": verdicts.MISSING for name in names}
    binary = program(root, path)
    if not binary.is_file():
        return nothing, f"{path} is not in TESTS of metropolis/test/security/BUILD.bazel"
    report, log = scratch / "report.xml", scratch / "output.log"
    temporary = scratch / "tmp"
    temporary.mkdir()
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(packages(root)),
        "XML_OUTPUT_FILE": str(report),
        "TEST_TMPDIR": str(temporary),
        "TEST_UNDECLARED_OUTPUTS_DIR": str(scratch),
        "PYTHONSAFEPATH": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    # Every test gets new namespaces, also one that does not need them. The
    # conftest.py of folders above belong to other tests.
    arguments = ["--netns", *(f"{path}::{name}" for name in names), "-rP"]
    arguments.append(f"--confcutdir={Path(path).parent}")
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            str(binary), *arguments,
            cwd=root,
            env=environment,
            stdin=DEVNULL,
            stdout=output,
            stderr=STDOUT,
            start_new_session=True,
        )  # fmt: skip
        try:
            async with asyncio.timeout(timeout_s):
                status = await process.wait()
        except TimeoutError:
            await _end(process)
            return nothing, f"not done after {timeout_s:g} s"
        except asyncio.CancelledError:
            say(f"ending {path}")
            await asyncio.shield(_end(process))
            raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    try:
        found = verdicts.read_report(path, names, report.read_bytes())
    except (OSError, ValueError) as error:
        return nothing, f"status {status}, no report: {error}"
    bad = [test for test, verdict in found.items() if not verdict.ok]
    if bad:
        return found, f"not ok: {', '.join(bad)}"
    # The error belongs to no single test, and so to all.
    return (nothing, f"status {status}") if status != 0 else (found, "")


async def run(
    root: Path, claims: Sequence[Claim], output: Path, timeout_s: float
) -> dict[str, Verdict]:
    """Run the claims' tests, a file at a time; return the verdicts."""
    found: dict[str, Verdict] = {}
    wanted = verdicts.files(claims)
    for number, (path, names) in enumerate(wanted.items(), start=1):
        say(f"[{number}/{len(wanted)}] {path}: {len(names)} tests")
        scratch = output / path.removesuffix(".py").replace("/", ".")
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        begin = time.monotonic()
        some, problem = await run_file(root, path, names, scratch, timeout_s)
        found |= some
        took = f"{time.monotonic() - begin:.1f} s"
        if problem:
            with contextlib.suppress(OSError):
                say((scratch / "output.log").read_text(errors="replace"))
            say(f"[{number}/{len(wanted)}] {path}: {problem} ({took})")
        else:
            say(f"[{number}/{len(wanted)}] {path}: ok ({took})")
    return found


async def until_signalled(work: asyncio.Task[int]) -> int:
    """Return the work's status; a signal ends it in good order."""
    loop = asyncio.get_running_loop()
    caught: list[int] = []

    def stop(number: int) -> None:
        caught.append(number)
        work.cancel()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, stop, number)
    try:
        return await work
    except asyncio.CancelledError:
        if not caught:
            raise
        say("ended by a signal; no verdict")
        return 128 + caught[0]


def seconds(text: str) -> float:
    """Parse a time in seconds, for argparse."""
    number = float(text)
    if not 0 < number < float("inf"):
        raise ValueError(text)
    return number


def arguments(given: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="claims", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--claim", action="append", default=[], metavar="ID", help="this claim only; repeatable"
    )
    parser.add_argument("--list", action="store_true", help="print claims and tests; run nothing")
    parser.add_argument("--json", action="store_true", help="print one line of JSON, no table")
    parser.add_argument(
        "--output", type=Path, metavar="DIR",
        help="keep output.log, report.xml and captures there, in a directory for each file "
        "(default: none are kept)",
    )  # fmt: skip
    parser.add_argument(
        "--timeout", type=seconds, default=_TIMEOUT_S, metavar="S",
        help="seconds for one file's tests (default: %(default)g)",
    )  # fmt: skip
    return parser.parse_args(given)


def listing(claims: Sequence[Claim], as_json: bool) -> str:
    """Return the claims and their tests, as --list prints them."""
    if as_json:
        rows = [{"claim": claim.ident, "test": test} for claim in claims for test in claim.tests]
        return json.dumps({"claims": rows})
    lines: list[str] = []
    for claim in claims:
        where = f"{', '.join(claim.directions)}; {claim.families}; {', '.join(claim.where)}"
        lines += [f"{claim.ident} ({where})", *(f"    {test}" for test in claim.tests)]
    return "\n".join(lines)


async def _work(options: argparse.Namespace, root: Path, claims: Sequence[Claim]) -> int:
    kept: Path | None = options.output
    output = kept or Path(tempfile.mkdtemp(prefix="m-claims-"))
    try:
        found = verdicts.rows(claims, await run(root, claims, output, options.timeout))
    finally:
        if kept is None:
            shutil.rmtree(output, ignore_errors=True)
    answer = verdicts.to_json(found)
    print(json.dumps(answer) if options.json else verdicts.to_table(found), flush=True)
    return 0 if answer["ok"] else 1


def main(given: Sequence[str], root: Path) -> int:
    """Run the command; return the exit status."""
    options = arguments(given)
    if options.output is not None:
        # The user's directory: `bazel run` changes it.
        asked_in = os.environ.get("BUILD_WORKING_DIRECTORY", "")
        options.output = Path(asked_in, options.output).absolute()
    try:
        claims = read_claims(root / PAGE, options.claim)
        if options.output is not None and not options.list:
            make_directory(options.output)
    except ClaimsError as error:
        say(f"claims: {error}")
        return 2
    if options.list:
        print(listing(claims, options.json))
        return 0

    async def work() -> int:
        return await until_signalled(asyncio.create_task(_work(options, root, claims)))

    return asyncio.run(work())


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main(sys.argv[1:], runfiles()))
    sys.exit(130)
