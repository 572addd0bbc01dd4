# SPDX-License-Identifier: Apache-2.0
"""Whether a table is still as its owner committed it."""

from __future__ import annotations

from collections.abc import Callable

from osbase.nftables.digest import Digest, differences, digest, generation, open_socket

_ATTEMPTS = 5


class Guard:
    """Remembers the digest of the tables of a name, right after a commit.

    Not thread-safe. What others commit between ours and the digest must not
    pass for ours: the namespace's generation says whether they did, and then
    it is committed again.
    """

    def __init__(self, name: str) -> None:
        """Nothing is known."""
        self._name = name
        self._digest: Digest | None = None
        self._generation = 0

    def commit(self, commit: Callable[[], None]) -> None:
        """Call `commit`, which is one transaction, and remember what is there.

        Raises what it raises, and NetlinkError or OSError; then nothing is
        remembered.
        """
        self._digest = None
        with open_socket() as sock:
            for _ in range(_ATTEMPTS):
                before = generation(sock)
                commit()
                found = digest(sock, self._name)
                after = generation(sock)
                if after == before + 1:
                    self._digest, self._generation = found, after
                    return

    @property
    def known(self) -> bool:
        """Whether there was a commit, alone."""
        return self._digest is not None

    def differences(self) -> list[str]:
        """Return, in words, what others changed since; []: nothing.

        Costs little if there was no commit at all. Raises NetlinkError or
        OSError.
        """
        if self._digest is None:
            return [f"table {self._name} was not committed, or not alone"]
        with open_socket() as sock:
            now = generation(sock)
            if now == self._generation:
                return []
            found = differences(self._digest, digest(sock, self._name))
        if not found:
            self._generation = now
        return found
