# SPDX-License-Identifier: Apache-2.0
"""Let other commands of the same user find a running launch.

Each launch has its own directory below ROOT, with a directory for each node
(sockets and logs), and `launch.json`, which it keeps locked: if the lock is
free, the launch has ended.
"""

import contextlib
import fcntl
import getpass
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_FILE = "launch.json"
# In a node's directory, while it runs.
CONSOLE_SOCKET = "console.sock"
CONTAINERD_SOCKET = "containerd.sock"
WORKLOAD_SOCKET = "workload.sock"


class StateError(Exception):
    """There is no launch, or more than one."""


def root() -> Path:
    """Return the user's directory of launches. The path is short, for sockets.

    It has the user's name, not the number: in the user namespace that bazelw
    makes for ordinary users, every user is number 0.
    """
    return Path(tempfile.gettempdir() if len(tempfile.gettempdir()) < 40 else "/tmp") / (
        f"metropolis-{getpass.getuser()}"
    )


@dataclass(frozen=True)
class Launch:
    """A running launch."""

    directory: Path
    pid: int

    @property
    def nodes(self) -> dict[str, Path]:
        """Return the running nodes: name to directory."""
        return {
            path.parent.name: path.parent
            for path in sorted(self.directory.glob(f"*/{CONSOLE_SOCKET}"))
        }

    def node(self, name: str | None, how: str) -> Path:
        """Return a node's directory. None: that of the only node. Raises
        StateError when there is no such node, or several; how: a caller gives
        the name, such as --node NODE.
        """
        nodes = self.nodes
        names = ", ".join(nodes) or "none"
        if name is None and len(nodes) != 1:
            raise StateError(f"which node? Say it by {how}; there are: {names}")
        if name is not None and name not in nodes:
            raise StateError(f"no node {name}; there are: {names}")
        return nodes[name] if name is not None else next(iter(nodes.values()))


@contextlib.contextmanager
def directory(base: Path) -> Iterator[Path]:
    """Make a launch's directory below `base`; remove it at the end. base: the
    result of root(), called before namespaces change the user.
    """
    base.mkdir(mode=0o700, exist_ok=True)
    if base.stat().st_uid != os.getuid():
        raise StateError(f"{base} belongs to somebody else (uid {base.stat().st_uid})")
    path = Path(tempfile.mkdtemp(prefix="l", dir=base))
    try:
        # Locked before it has its name, so that no command finds it unlocked.
        fresh = path / f"{_FILE}.new"
        with fresh.open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            json.dump({"pid": os.getpid()}, file)
            file.flush()
            fresh.rename(path / _FILE)
            yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def launches(base: Path) -> list[Launch]:
    """Return the running launches; remove directories of dead ones."""
    found = []
    for path in sorted(base.glob("l*")):
        try:
            with (path / _FILE).open() as file:
                with contextlib.suppress(BlockingIOError):
                    fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                    shutil.rmtree(path, ignore_errors=True)
                    continue
                pid = json.load(file).get("pid")
        except OSError, ValueError, AttributeError:
            # Incomplete, or being removed.
            continue
        if isinstance(pid, int):
            found.append(Launch(path, pid))
    return found


def only_launch(base: Path) -> Launch:
    """Return the running launch. Raises StateError unless there is just one."""
    found = launches(base)
    if not found:
        raise StateError("nothing runs; start a node: ./bazelw run //metropolis:launch")
    if len(found) > 1:
        names = ", ".join(f"pid {launch.pid}" for launch in found)
        raise StateError(f"{len(found)} launches run ({names}); stop all but one")
    return found[0]
