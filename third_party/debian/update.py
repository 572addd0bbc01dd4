# SPDX-License-Identifier: Apache-2.0
"""Refresh packages.lock from packages.in and the mirror's present index.

Run it as `./bazelw run //third_party/debian:update`. It asks apt, with the apt
configuration of the build root but its own package lists, so that it does not
write to that root and does not depend on its age.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from third_party.debian import lock


def _apt(tool: str, state: Path, *args: str) -> str:
    """Run an apt tool with its state under `state`; return its stdout."""
    for sub in ("lists/partial", "cache/archives/partial"):
        (state / sub).mkdir(parents=True, exist_ok=True)
    command = [
        tool,
        "-q",
        f"-oDir::State::Lists={state}/lists",
        f"-oDir::Cache={state}/cache",
        # Own files only: no other user could write to `state`.
        "-oAPT::Sandbox::User=",
        "-oAcquire::Check-Valid-Until=false",
        "-oAcquire::Languages=none",
        *args,
    ]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode or "\nE: " in "\n" + done.stderr:
        raise lock.LockError(f"{' '.join(command)}: {done.stderr.strip() or done.returncode}")
    return done.stdout


def _sources(state: Path) -> list[str]:
    """Return apt options for the source packages of the binary archives."""
    targets = ("indextargets", "--no-release-info", "--format")
    origins = _apt("apt-get", state, *targets, "deb-src $(REPO_URI) $(RELEASE) $(COMPONENT)")
    listing = state / "sources.list"
    listing.write_text("\n".join(dict.fromkeys(origins.splitlines())) + "\n")
    return [f"-oDir::Etc::SourceList={listing}", "-oDir::Etc::SourceParts=/dev/null"]


def _pins(wanted: list[lock.Wanted], state: Path) -> dict[str, lock.Pin]:
    """Return pins of the mirror's present packages."""
    sources = {item.name: item for item in wanted if item.path[0].startswith(lock.SOURCE)}
    _apt("apt-get", state, "update", "--error-on=any")
    index = lock.parse_index(_apt("apt-cache", state, "dumpavail"))
    pins = {item.name: lock.resolve(item, index) for item in wanted if item.name not in sources}
    options = _sources(state)
    _apt("apt-get", state, *options, "update", "--error-on=any")
    for name, item in sources.items():
        package = item.path[0].removeprefix(lock.SOURCE)
        text = _apt("apt-cache", state, *options, "showsrc", "--only-source", package)
        pins[name] = lock.resolve_source(item, text)
    return pins


def main(arguments: list[str]) -> int:
    """Write the lock beside packages.in; print the changes."""
    argparse.ArgumentParser(
        prog="update", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="exit status: 0 the lock is written, 1 an error, 2 wrong arguments",
    ).parse_args(arguments)  # fmt: skip
    workspace = os.environ.get("BUILD_WORKSPACE_DIRECTORY")
    if not workspace:
        print("run me as: ./bazelw run //third_party/debian:update", file=sys.stderr)
        return 2
    folder = Path(workspace, "third_party/debian")
    target = folder / "packages.lock"
    try:
        wanted = lock.parse_wanted((folder / "packages.in").read_text())
        with tempfile.TemporaryDirectory() as state:
            pins = _pins(wanted, Path(state))
        old = lock.parse_lock(target.read_text()) if target.exists() else {}
    except (lock.LockError, OSError) as e:
        print(f"update of the Debian lock: {e}", file=sys.stderr)
        return 1
    fresh = target.with_suffix(".lock.new")
    fresh.write_text(lock.render_lock(pins))
    fresh.replace(target)
    lines = list(lock.changes(old, pins))
    print("\n".join(lines) or "no package has changed")
    print(f"{target.relative_to(workspace)}: {len(pins)} packages, {len(lines)} changed")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
