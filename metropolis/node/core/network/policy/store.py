# SPDX-License-Identifier: Apache-2.0
"""What the kernel cannot hold, in files: policies, and what workloads are.

    DIRECTORY/sources/NAME       a SetPoliciesRequest, as it came
    DIRECTORY/workloads/DIGEST   a SetLabelsRequest; DIGEST: of the workload's
                                 id, which may have any characters
    DIRECTORY/complete           empty: a workload without a file is one of
                                 which nothing was said

The directory is in memory, as the workloads are: both end with the boot. A file
is written beside its place and renamed, so that a crash leaves the old one or
the new one. If one cannot be read, that is said, and what it was about is
isolated: the workload, or for a source all of them.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Final

from google.protobuf.message import DecodeError, Message

from metropolis.node.core.network.policy.spec import policy_pb2 as pb

log = logging.getLogger(__name__)

_UNFINISHED: Final = ".new"


class Store:
    """See the module. Not thread-safe. Methods that write raise OSError."""

    def __init__(self, directory: str | Path) -> None:
        self._directory = Path(directory)
        self._sources = Path(directory) / "sources"
        self._workloads = Path(directory) / "workloads"
        self._complete = Path(directory) / "complete"

    def open(self) -> bool:
        """Make the directories where they are missing, for the owner alone;
        remove what was not finished. Return whether they are complete.
        """
        is_complete = self._complete.exists() and self._workloads.is_dir()
        # With the sockets' directory, which may not be there yet, and must be
        # as private: `parents` gives its mode to the last one only.
        for directory in (self._directory.parent, self._directory):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        for directory in (self._sources, self._workloads):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            for path in directory.glob(f"*{_UNFINISHED}"):
                path.unlink(missing_ok=True)
        return is_complete

    def complete(self) -> None:
        """Say that all workloads have a file of which something was said, or
        may have been.
        """
        self._complete.touch(mode=0o600)

    def put_source(self, request: pb.SetPoliciesRequest) -> None:
        """Keep a source's policies in place of those before."""
        _write(self._sources / request.source, request)

    def drop_source(self, name: str) -> None:
        """Forget a source, also an unknown one."""
        (self._sources / name).unlink(missing_ok=True)

    def sources(self) -> Iterator[tuple[str, pb.SetPoliciesRequest | None]]:
        """Yield the policies of all sources; None: they cannot be read."""
        for path in sorted(self._sources.iterdir()):
            yield path.name, _read(path, pb.SetPoliciesRequest)

    def put_workload(self, request: pb.SetLabelsRequest) -> None:
        """Keep what a workload is."""
        _write(self._path(request.workload_id), request)

    def has_workload(self, workload_id: str) -> bool:
        """Return whether something was kept of a workload, readable or not."""
        return self._path(workload_id).exists()

    def workload(self, workload_id: str) -> pb.SetLabelsRequest | None:
        """Return what a workload is; None: nothing was kept, or is readable."""
        found = _read(self._path(workload_id), pb.SetLabelsRequest)
        return found if found is not None and found.workload_id == workload_id else None

    def drop_workload(self, workload_id: str) -> None:
        """Forget a workload, also an unknown one."""
        self._path(workload_id).unlink(missing_ok=True)

    def keep_workloads(self, workload_ids: Collection[str]) -> None:
        """Forget all workloads but these."""
        kept = {self._path(one) for one in workload_ids}
        for path in self._workloads.iterdir():
            if path not in kept:
                path.unlink(missing_ok=True)

    def _path(self, workload_id: str) -> Path:
        digest = hashlib.blake2b(workload_id.encode(), digest_size=16).hexdigest()
        return self._workloads / digest


def _write(path: Path, message: Message) -> None:
    unfinished = path.with_name(path.name + _UNFINISHED)
    try:
        descriptor = os.open(
            unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600
        )
        with open(descriptor, "wb") as file:
            file.write(message.SerializeToString())
        os.rename(unfinished, path)
    except OSError:
        with contextlib.suppress(OSError):
            unfinished.unlink()
        raise


def _read[M: Message](path: Path, kind: type[M]) -> M | None:
    try:
        return kind.FromString(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, DecodeError) as error:
        log.warning("%s: cannot be read: %s", path, error)
        return None
