# SPDX-License-Identifier: Apache-2.0
"""Handshakes after a change of keys: begun at once, and verified.

    a key changes -> use_key, begun -> check -> (0.4 s or 0.8 s later) look

A node that changed its own key begins a handshake at once with each peer with
which it had a session, or has begun one lately: where it has nothing to send,
the other direction would wait. A node that moves the prefixes of a peer to its
new key (see peers) does the same. Whichever of the two acts last finds that the
other knows its key already.

When two handshakes cross each other, each end drops its own as it accepts the
other's (noise.c), and none completes; a handshake may also be lost. WireGuard
tries again after five seconds. So shortly after a change of keys the overlay
checks each peer. It removes and adds again a peer without a handshake: the
kernel then forgets when the last was begun, and so does not wait. One end
checks sooner than the other, so that they do not cross again. This is done only
after a change of keys, and not for a peer that joins, because it takes a list
of all peers. In a large cluster checks wait to share a list, so that lists take
at most a tenth of the time.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from metropolis.node.core.network.overlay.device import Kernel, PeerChange
from metropolis.node.core.network.overlay.peers import Entry
from osbase.supervisor import in_thread

_SESSION_S: Final = 180
"""REJECT_AFTER_TIME of WireGuard, seconds: an older session is unusable."""

_LOOK_AFTER_S: Final = (0.4, 0.8)
"""Delay of the check after a change of keys: on the node with the larger public
key, and on the other."""

_LOOKS_REST: Final = 9
"""The pause after a list, in times of its duration."""


@dataclass(frozen=True)
class _Check:
    """due: when to check, monotonic seconds. since_ns: older handshakes do not
    count, nanoseconds since 1970.
    """

    due: float
    since_ns: int


class Handshakes:
    """The handshakes of one run of the overlay. For its task only, except
    `use_key`, which may run in a thread while the task waits for it.
    """

    def __init__(self, kernel: Kernel, log: logging.Logger) -> None:
        self._kernel = kernel
        self._log = log
        self._prompted: dict[bytes, float] = {}  # public keys: when, monotonic
        self._checks: dict[bytes, _Check] = {}  # by public key
        self._look_from = 0.0  # monotonic

    def begun(self, public_keys: Iterable[bytes]) -> None:
        """Record that handshakes with these peers are about to begin."""
        now = time.monotonic()
        self._prompted |= dict.fromkeys(public_keys, now)

    def time_remaining(self) -> float | None:
        """Return the seconds until the next check is due; None: none is."""
        now = time.monotonic()
        times = [max(check.due, self._look_from) - now for check in self._checks.values()]
        return min(times) if times else None

    def use_key(self, private_key: bytes) -> list[bytes]:
        """Use the private key, and begin a handshake with each peer that had a
        session. Returns their public keys. Blocks.
        """
        self._kernel.set_private_key(private_key)
        since_ns = time.time_ns() - _SESSION_S * 1_000_000_000
        lately = time.monotonic() - _SESSION_S
        # Peers that have sent nothing yet count: packets to them may have been
        # lost, because they came before the peers knew this node's key.
        self._prompted = {key: when for key, when in self._prompted.items() if when >= lately}
        prompted = [
            key
            for key, peer in self._kernel.device().peers.items()
            if peer.allowed and (peer.handshake_ns >= since_ns or key in self._prompted)
        ]
        self._kernel.apply([PeerChange(key, prompt=True) for key in prompted])
        return prompted

    def check(self, public_keys: Iterable[bytes], own_public_key: bytes, since_ns: int) -> None:
        """Check soon whether these peers had a handshake since then.

        since_ns: as in _Check.
        """
        soon, later = _LOOK_AFTER_S
        now = time.monotonic()
        for key in public_keys:
            wait = soon if own_public_key > key else later
            self._checks[key] = _Check(now + wait, since_ns)

    async def look(self, entries: Mapping[bytes, Entry]) -> None:
        """Remove and add again, once, each peer without a handshake in time.

        entries: the wanted peers, by public key. Raises what the kernel
        raises.
        """
        now = time.monotonic()
        due = {key: check for key, check in self._checks.items() if check.due <= now}
        if not due or now < self._look_from:
            return
        for key in due:
            del self._checks[key]
        peers = (await in_thread(self._kernel.device)).peers
        listed = time.monotonic()
        self._look_from = listed + _LOOKS_REST * (listed - now)
        silent = {
            key: entry
            for key, check in due.items()
            if key in peers
            and peers[key].handshake_ns < check.since_ns
            and (entry := entries.get(key)) is not None
        }
        if not silent:
            return
        await in_thread(self._kernel.apply, [PeerChange(key, remove=True) for key in silent])
        await in_thread(
            self._kernel.apply,
            [
                PeerChange(key, entry.endpoint, tuple(entry.allowed), prompt=True)
                for key, entry in silent.items()
            ],
        )
        self._log.info("%s peers had no handshake after a change of keys", f"{len(silent):,}")
