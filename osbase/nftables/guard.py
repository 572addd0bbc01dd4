# SPDX-License-Identifier: Apache-2.0
"""Whether a table is still as its owner committed it."""

from __future__ import annotations

from collections.abc import Callable

from osbase.netlink.transport import NetlinkSocket
from osbase.nftables.digest import Digest, differences, digest, generation, open_socket

_ATTEMPTS = 5


class Guard:
    """Remembers the digest of the tables of a name, right after a commit.

    Not thread-safe. What others commit at the same time must not pass for ours,
    nor be replaced without a word: the namespace's generation says whether they
    did, and then it is committed again, whole.
    """

    def __init__(self, name: str) -> None:
        """Nothing is known."""
        self._name = name
        self._digest: Digest | None = None
        self._generation = 0

    def commit(
        self, whole: Callable[[], None], update: Callable[[], bool] | None = None
    ) -> list[str]:
        """Commit, and remember what is there; return, in words, what others had
        changed and this replaced.

        whole: one transaction that makes the table anew. update: one that takes
        less, for a table that nobody else has touched; false: it was refused.
        Raises what they raise, and NetlinkError or OSError; then nothing is
        remembered.
        """
        known, self._digest = self._digest, None
        with open_socket() as sock:
            # First: whoever commits between the look and ours is noticed.
            before = generation(sock)
            found = self._others(sock, known, before)
            if update is None or found or not update():
                # Refused: what was there a moment ago is gone.
                found = found or self._others(sock, known, generation(sock))
                whole()
            mixed: Digest | None = None
            for _ in range(_ATTEMPTS):
                now, after = digest(sock, self._name), generation(sock)
                if after == before + 1:
                    self._digest, self._generation = now, after
                    return found or ([] if mixed is None else differences(now, mixed))
                mixed, before = now, after
                whole()
        return found

    def differences(self) -> list[str]:
        """Return, in words, what others changed since; []: nothing.

        Costs little if there was no commit at all. Raises NetlinkError or
        OSError.
        """
        if self._digest is None:
            return [f"table {self._name} was not committed, or not alone"]
        with open_socket() as sock:
            now = generation(sock)
            found = self._others(sock, self._digest, now)
        if not found:
            self._generation = now
        return found

    def _others(self, sock: NetlinkSocket, known: Digest | None, now: int) -> list[str]:
        """What is not as it was known, if anything was. now: the generation."""
        if known is None or now == self._generation:
            return []
        return differences(known, digest(sock, self._name))
