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
    did, and then it is committed again, whole. Where others commit all the
    time, what is the same after each of ours is remembered, and is not `sure`.
    """

    def __init__(self, name: str) -> None:
        """Nothing is known."""
        self._name = name
        self._digest: Digest | None = None
        self._generation = 0
        self._sure = True
        self._quiet = False

    @property
    def doubtful(self) -> bool:
        """Whether what is remembered ought to be committed once more, and can
        be: others have been quiet between the last two looks.
        """
        return self._digest is not None and not self._sure and self._quiet

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
        known, self._digest, again = self._digest, None, self.doubtful
        self._quiet = False
        with open_socket() as sock:
            # First: whoever commits between the look and ours is noticed.
            before = generation(sock)
            found = self._others(sock, known, before)
            if update is None or found or not update():
                # Refused: what was there a moment ago is gone.
                found = found or self._others(sock, known, generation(sock))
                whole()
            mixed: Digest | None = None
            same = True
            for _ in range(_ATTEMPTS):
                now, after = digest(sock, self._name), generation(sock)
                if after == before + 1:
                    self._digest, self._generation, self._sure = now, after, True
                    return found or ([] if mixed is None else differences(now, mixed))
                same = same and mixed in (None, now)
                mixed, before = now, after
                whole()
            # Others who are busy only when we are, may be so with this table.
            if same and not again and digest(sock, self._name) == mixed:
                # No generation is 0: the next look compares.
                self._digest, self._generation, self._sure = mixed, 0, False
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
        self._quiet = now == self._generation
        if not found:
            self._generation = now
        return found

    def _others(self, sock: NetlinkSocket, known: Digest | None, now: int) -> list[str]:
        """What is not as it was known, if anything was. now: the generation."""
        if known is None or now == self._generation:
            return []
        return differences(known, digest(sock, self._name))
