# SPDX-License-Identifier: Apache-2.0
"""Resolve requirements*.in to requirements.lock: `run :update [-- --keep]`.

It asks pip, in the host's own configuration (indexes, find-links, proxies),
which files it would install on each platform of PLATFORMS, and writes only
their versions and sha256: the origin of a file stays out of the tree. Without
--keep everything moves to its newest version; with it the lock's versions stay.

Why not pip-tools or uv: pip's own `--report` is enough.
"""

import argparse
import json
import os
import pathlib
import re
import sys
import tempfile
from collections.abc import Iterable

from build.python.host_pip import PipError, pip

HEADER = """\
# SPDX-License-Identifier: Apache-2.0
# Written from requirements.in by `./bazelw run //third_party/python:update`.
# The hashes of a package are those of its files for each platform.
"""

MACHINES = ("x86_64", "aarch64")
PLATFORMS = tuple(
    [f"manylinux_2_{minor}_{machine}" for minor in (17, 24, 26, 27, 28, 31, 34)]
    + [f"manylinux2014_{machine}", f"linux_{machine}"]
    for machine in MACHINES
)

Pins = dict[str, tuple[str, set[str]]]


class UpdateError(Exception):
    """The lock could not be written; the text has the remedy."""


def normalise(name: str) -> str:
    """Return a distribution's name in normal form (PEP 503, with _)."""
    return re.sub(r"[-_.]+", "_", name).lower()


def read_report(report: object) -> Pins:
    """Return name -> (version, sha256s) of pip's report (version 1)."""
    if not isinstance(report, dict) or report.get("version") != "1":
        raise UpdateError("pip's report is not of version 1: is this pip newer than 22.2?")
    pins: Pins = {}
    for item in report["install"]:
        name = normalise(item["metadata"]["name"])
        archive = item["download_info"].get("archive_info", {})
        digest = archive.get("hashes", {}).get("sha256")
        if digest is None:
            raise UpdateError(f"{name}: pip found no sha256 for it; is it a local directory?")
        pins[name] = (item["metadata"]["version"], {digest})
    return pins


def merge(platforms: Iterable[Pins]) -> Pins:
    """Return pins for all platforms, which must agree on the versions."""
    merged: Pins = {}
    for pins in platforms:
        for name, (version, hashes) in pins.items():
            known, union = merged.setdefault(name, (version, set()))
            if known != version:
                raise UpdateError(
                    f"{name}: {known} on one platform, {version} on another; "
                    "pin a version that both have in requirements.in"
                )
            union |= hashes
    return merged


def render(pins: Pins) -> str:
    """Return the text of the lock: one entry per package, sorted."""
    entries = []
    for name, (version, hashes) in sorted(pins.items()):
        lines = [f"{name}=={version}", *(f"    --hash=sha256:{h}" for h in sorted(hashes))]
        entries.append(" \\\n".join(lines) + "\n")
    return HEADER + "".join(entries)


def constraints(lock: str) -> str:
    """Return the name==version lines of a lock, as pip constraints."""
    return "\n".join(re.findall(r"^[\w.-]+==[^\s;\\]+", lock, re.MULTILINE)) + "\n"


def resolve(requirements: pathlib.Path, keep: str, platforms: list[str]) -> Pins:
    """Return what pip would install for `requirements` on `platforms`."""
    with tempfile.TemporaryDirectory() as scratch:
        report = pathlib.Path(scratch, "report.json")
        kept = pathlib.Path(scratch, "constraints.txt")
        kept.write_text(keep)
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        abis = ("cp" + version.replace(".", ""), "abi3", "none")
        try:
            pip(
                *("install", "-qq", "--dry-run", "--ignore-installed", "--only-binary=:all:"),
                *(f"--report={report}", f"--requirement={requirements}", f"--constraint={kept}"),
                *(f"--target={scratch}/target", "--implementation=cp"),
                f"--python-version={version}",
                *(f"--abi={abi}" for abi in abis),
                *(f"--platform={platform}" for platform in platforms),
            )
        except PipError as error:
            raise UpdateError(
                f"pip cannot resolve {requirements.name} for {platforms[-1]}:\n{error}"
            ) from error
        return read_report(json.loads(report.read_text()))


def main() -> None:
    """Write the lock beside requirements.in, atomically."""
    parser = argparse.ArgumentParser(
        prog="update",
        description="Refresh third_party/python/requirements.lock.",
        epilog="exit status: 0 the lock is as it should be, 1 an error, 2 wrong arguments",
    )
    parser.add_argument("--keep", action="store_true", help="keep the versions already pinned")
    arguments = parser.parse_args()
    workspace = os.environ.get("BUILD_WORKSPACE_DIRECTORY")
    if workspace is None:
        parser.error("run me as: ./bazelw run //third_party/python:update")
    folder = pathlib.Path(workspace, "third_party/python")
    lock = folder / "requirements.lock"
    before = lock.read_text() if lock.exists() else ""
    keep = constraints(before) if arguments.keep else ""
    try:
        found = [resolve(folder / "requirements.in", keep, p) for p in PLATFORMS]
        found.append(resolve(folder / "requirements-x86_64.in", keep, PLATFORMS[0]))
        text = render(merge(found))
    except UpdateError as error:
        sys.exit(f"update: {error}")
    fresh = lock.with_suffix(".new")
    fresh.write_text(text)
    fresh.replace(lock)
    print(f"{lock.relative_to(workspace)}: {'unchanged' if text == before else 'written'}")


if __name__ == "__main__":
    main()
