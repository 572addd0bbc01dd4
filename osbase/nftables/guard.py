# SPDX-License-Identifier: Apache-2.0
"""Check whether a table is still as its owner committed it."""

from __future__ import annotations

from collections.abc import Callable

from osbase.netlink.transport import NetlinkSocket
from osbase.nftables.digest import Digest, differences, digest, generation, open_socket

_ATTEMPTS = 5


class Guard:
    """Stores the digest of the tables with a name, right after a commit.

    Not thread-safe. A commit by others at the same time must not count as ours,
    nor be replaced silently: the namespace's generation shows it, and then the
    whole table is committed again. If others commit all the time, the guard
    stores what is equal after each of ours, and the digest is `doubtful`.
    """

    def __init__(self, name: str, *, elements: bool = True) -> None:
        """Begin without a digest. elements: False if those of the sets come and
        go beside the guard.
        """
        self._name = name
        self._elements = elements
        self._digest: Digest | None = None
        self._generation = 0
        self._sure = True
        self._quiet = False

    @property
    def doubtful(self) -> bool:
        """Return whether the table should be committed again, since the digest
        is doubtful, and others have not committed between the last two looks.
        """
        return self._digest is not None and not self._sure and self._quiet

    def commit(
        self, whole: Callable[[], None], update: Callable[[], bool] | None = None
    ) -> list[str]:
        """Commit, and store the new digest; return, in words, changes by others
        that this commit replaced.

        whole: a transaction that replaces the table. update: a cheaper one, for
        a table without changes by others; False: it was refused. Raises the
        exceptions of both, NetlinkError and OSError; then no digest is stored.
        """
        known, self._digest, again = self._digest, None, self.doubtful
        self._quiet = False
        with open_socket() as sock:
            # First: a commit between this look and ours is then noticed.
            before = generation(sock)
            found = self._others(sock, known, before)
            if update is None or found or not update():
                # Refused: an object that existed a moment ago is gone.
                found = found or self._others(sock, known, generation(sock))
                whole()
            mixed: Digest | None = None
            same = True
            for _ in range(_ATTEMPTS):
                now, after = self._look(sock), generation(sock)
                if after == before + 1:
                    self._digest, self._generation, self._sure = now, after, True
                    return found or ([] if mixed is None else differences(now, mixed))
                same = same and mixed in (None, now)
                mixed, before = now, after
                whole()
            # Others who commit only when we do may be changing this table.
            if same and not again and self._look(sock) == mixed:
                # No generation is 0: the next look compares.
                self._digest, self._generation, self._sure = mixed, 0, False
        return found

    def differences(self) -> list[str]:
        """Return, in words, changes by others since the commit; []: none.

        Costs little if there was no commit at all. Raises NetlinkError or
        OSError.
        """
        if self._digest is None:
            return [f"table {self._name} was not committed, or not alone"]
        with open_socket() as sock:
            now = generation(sock)
            found = self._others(sock, self._digest, now)
        self._quiet = now == self._generation
        if not found:
            self._generation = now
        return found

    def _others(self, sock: NetlinkSocket, known: Digest | None, now: int) -> list[str]:
        """Return differences from the digest `known`. now: the generation."""
        if known is None or now == self._generation:
            return []
        return differences(known, self._look(sock))

    def _look(self, sock: NetlinkSocket) -> Digest:
        return digest(sock, self._name, elements=self._elements)
