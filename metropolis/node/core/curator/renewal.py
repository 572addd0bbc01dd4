# SPDX-License-Identifier: Apache-2.0
"""Credentials that are renewed while they are used.

    files change -> read -> latest -> tried beside the connection -> proven
                     |                 |
                     +-- broken        +-- refused by etcd: the proven stay

Credentials that etcd has accepted stay in memory until etcd has accepted
others, whatever happens to the files: a set that is half written, does not
belong together, has expired or has an authority unknown to etcd (yet) breaks no
connection. While etcd is away both are tried, the newest first.

Refused credentials may be accepted later, since the fault may have been the
network's or etcd's: they are tried again after each connection, each change of
the files, and every minute (Timing.renew_s).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from typing import Final

from metropolis.node.core.curator import credentials
from metropolis.node.core.curator.credentials import (
    Credentials,
    CredentialsError,
    Files,
    Judgement,
)
from osbase import event
from osbase.inotify import EVERY_S, changes
from osbase.supervisor import in_thread

log = logging.getLogger(__name__)

WARN_S: Final = 7 * 86400.0
"""So long before its end a certificate is worth a note."""


class Renewal:
    """`follow` reads the files when they change; `candidates` returns what to
    connect with; `proved` and `refused` take the outcome.

    latest  the last set that could be read, whether etcd accepts it or not
    note    a note for operators; "": none
    """

    def __init__(self, files: Files, *, clock: Callable[[], float] = time.time) -> None:
        """clock: seconds since 1970."""
        self._files = files
        self._clock = clock
        self._proven: Credentials | None = None
        self._judged = Judgement()  # of the proven ones
        self._broken = ""  # why the files cannot be read now
        self._refusal = ""  # why etcd refuses the latest
        self.latest = event.Value[Credentials]("credentials in the files")
        self.note = event.Value[str]("what is to be known of credentials")
        self.note.set("")

    async def follow(self) -> None:
        """Follow the files until cancelled."""
        files = (self._files.ca, self._files.cert, self._files.key)
        try:
            async with contextlib.aclosing(changes(files)) as looks:
                async for _ in looks:
                    with contextlib.suppress(CredentialsError):
                        before = self.latest.peek(None)
                        if await self._look() == before:
                            self.again()
        except OSError as error:
            # Failing here is no reason to do without etcd.
            log.warning(
                "changes of credentials are noticed at connections, and every %.0f s: %s",
                EVERY_S,
                error.strerror,
            )
        while True:
            await asyncio.sleep(EVERY_S)
            with contextlib.suppress(CredentialsError):
                await self._look()

    async def candidates(self) -> tuple[Credentials, ...]:
        """Read the files; return what to connect with, the best first. Raises
        CredentialsError when there are none.
        """
        found: list[Credentials] = []
        try:
            found.append(await self._look())
        except CredentialsError:
            if self._proven is None:
                raise
        if self._proven is not None and self._proven not in found:
            found.append(self._proven)
        return tuple(found)

    def again(self) -> None:
        """Have the latest tried once more beside a connection with others."""
        latest = self.latest.peek(None)
        if latest is not None and self._proven is not None and latest != self._proven:
            self.latest.set(latest)

    def in_use(self, these: Credentials) -> bool:
        """Return whether they are those that etcd accepted last."""
        return these == self._proven

    async def proved(self, used: Credentials) -> None:
        """Record that etcd has accepted them."""
        if used != self._proven:
            self._proven = used
            self._judged = await in_thread(credentials.judge, used)
        if used == self.latest.peek(None):
            self._refusal = ""
        self._tell()

    def refused(self, tried: Credentials, why: str) -> None:
        """Etcd has not, while it accepts the proven ones."""
        if tried == self.latest.peek(None):
            if why != self._refusal:
                self._log_kept(why)
            self._refusal = why
            self._tell()

    async def _look(self) -> Credentials:
        try:
            found = await in_thread(credentials.read, self._files)
        except CredentialsError as error:
            if str(error) != self._broken:
                self._log_kept(str(error))
            self._broken = str(error)
            self._tell()
            raise
        self._broken = ""
        if found == self._proven:
            self._refusal = ""
        if found != self.latest.peek(None):
            self._refusal = ""
            self.latest.set(found)
        self._tell()
        return found

    def _log_kept(self, why: str) -> None:
        if self._proven is not None:
            log.warning("credentials for etcd stay those of before: %s", why)

    def _tell(self) -> None:
        notes = []
        if self._proven is not None:
            if problem := self._broken or self._refusal:
                notes.append(f"those of before are used: {problem}")
            ends = self._judged.ends
            if ends is not None and ends - self._clock() < WARN_S:
                when = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(ends))
                notes.append(f"the certificate in use ends {when}: renew {self._files.cert}")
        text = "; ".join(notes)
        if self.note.peek() != text:
            self.note.set(text)
