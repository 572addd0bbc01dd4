# SPDX-License-Identifier: Apache-2.0
"""The client's states (RFC 2131, section 4.4), with time passed in. Pure.

    REBOOTING ---------- ACK -----+
        | NAK, no answer          v
        +-> SELECTING -> REQUESTING -> BOUND -> RENEWING -> REBINDING
                ^            |           ^          |           |
                |<- no answer/NAK        +---- ACK -+-----------+
                |<------------------------------- NAK, lease at its end

A client that had an address, in an earlier run or before the link came back,
begins at REBOOTING: this takes one exchange, and the server of another network
refuses the address at once. A lease stays valid when the link comes back, until
it ends, is refused or is replaced.

A server that offered, and then refused or did not answer, is asked again only
when no other has offered by the time of the next message.

The server that grants a request is the server from then on: servers behind a
relay, or with several addresses, may use any identifier. A refusal counts only
from the server that was asked, since servers of other networks refuse, too.

    messages = machine.start(now) | receive(now, ...) | tick(now)   to be sent
    machine.deadline                    when tick is due; machine.lease
"""

from __future__ import annotations

import enum
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from ipaddress import IPv4Address
from typing import Final

from osbase.net.dhcp4 import lease as leases
from osbase.net.dhcp4.lease import Lease
from osbase.net.dhcp4.packet import BROADCAST, UNSPECIFIED, Message, Option, PacketError, Type

# RFC 2131 4.1 asks for 4, 8, ... 64 s. At boot the link is barely up, and the
# first packet is often lost: so the series begins at 1 s.
_FIRST_RETRY_S: Final = 1.0
_LAST_RETRY_S: Final = 64.0
_REQUEST_TRIES: Final = 4
_REBOOT_TRIES: Final = 2  # a server without our lease does not answer
_RENEW_RETRY_MIN_S: Final = 60.0
_SPREAD: Final = 0.1
_MAX_MESSAGE: Final = 1472  # bytes, without fragments on Ethernet

_PARAMETERS: Final = bytes(
    [
        Option.SUBNET_MASK,
        # Before the router option, which it replaces (RFC 3442, page 5).
        Option.CLASSLESS_ROUTES,
        Option.CLASSLESS_ROUTES_MICROSOFT,
        Option.ROUTER,
        Option.STATIC_ROUTES,
        Option.DNS,
        Option.DOMAIN_NAME,
        Option.DOMAIN_SEARCH,
        Option.INTERFACE_MTU,
        Option.NTP,
        Option.LEASE_TIME,
        Option.SERVER_ID,
        Option.RENEWAL_TIME,
        Option.REBINDING_TIME,
    ]
)


class State(enum.Enum):
    """RFC 2131, figure 5; INIT and INIT-REBOOT last no time here."""

    REBOOTING = "rebooting"
    SELECTING = "selecting"
    REQUESTING = "requesting"
    BOUND = "bound"
    RENEWING = "renewing"
    REBINDING = "rebinding"


_TRANSITIONS: Final[Mapping[State, frozenset[State]]] = {
    State.REBOOTING: frozenset({State.BOUND, State.REBOOTING, State.SELECTING}),
    State.SELECTING: frozenset({State.SELECTING, State.REQUESTING, State.REBOOTING}),
    State.REQUESTING: frozenset({State.BOUND, State.SELECTING, State.REBOOTING}),
    # Without a renewal if the lease ended unnoticed, as in suspension.
    State.BOUND: frozenset({State.RENEWING, State.SELECTING, State.REBOOTING}),
    State.RENEWING: frozenset({State.BOUND, State.REBINDING, State.SELECTING, State.REBOOTING}),
    State.REBINDING: frozenset({State.BOUND, State.SELECTING, State.REBOOTING}),
}


@dataclass(frozen=True)
class Outgoing:
    """A message to send: to all if `destination` is the broadcast address, else
    to the server, from our address.
    """

    message: Message
    source: IPv4Address
    destination: IPv4Address


class Machine:
    """One client on one Ethernet link. Times are seconds of any one clock."""

    def __init__(
        self,
        mac: bytes,
        host_name: str = "",
        hint: IPv4Address | None = None,
        rand: Callable[[], float] = random.random,
    ) -> None:
        """mac: 6 bytes. hint: the address to ask for. rand: in [0, 1)."""
        self._mac = mac
        self._client_id = b"\x01" + mac
        self._host_name = host_name.encode("ascii", "ignore")[:63]
        self._hint = hint
        self._rand = rand
        self._state = State.SELECTING
        self._xid = 0
        self._offer: Lease | None = None
        self._began = 0.0
        self._requested = 0.0
        self._tries = 0
        self._refusals = 0  # offers in a row that were then refused
        self._shunned: IPv4Address | None = None  # offered, and then gave nothing
        self._last_resort: Lease | None = None  # an offer of that server
        self._retry: float = 0.0
        self.lease: Lease | None = None

    @property
    def state(self) -> State:
        """Where the client stands."""
        return self._state

    @property
    def deadline(self) -> float | None:
        """Return when `tick` is due; None: not before the next message."""
        times = []
        lease = self.lease
        if self._state is State.BOUND:
            assert lease is not None, "bound to a lease"
            times.append(lease.start + lease.renew_s)
        else:
            times.append(self._retry)
        if self._state is State.RENEWING and lease is not None:
            times.append(lease.start + lease.rebind_s)
        if lease is not None and lease.end is not None:
            times.append(lease.end)
        soonest = min(times)
        return None if soonest == float("inf") else soonest

    def start(self, now: float) -> list[Outgoing]:
        """Look for a server: at the start, and after the link came back."""
        if self.lease is not None:
            self._hint = self.lease.address.ip
        if self._hint is None:
            return self._select(now)
        self._begin(now, State.REBOOTING)
        return [self._request(now)]

    def _select(self, now: float) -> list[Outgoing]:
        self._begin(now, State.SELECTING)
        return [self._discover(now)]

    def _begin(self, now: float, state: State) -> None:
        self._to(state)
        self._began, self._tries, self._offer, self._last_resort = now, 0, None, None
        self._new_xid()

    def receive(
        self, now: float, message: Message, sender: IPv4Address | None = None
    ) -> list[Outgoing]:
        """Process a received message. sender: counts as the server if the
        message has no server identifier. Raises PacketError, and changes
        nothing, for an invalid message to us.
        """
        if message.request or message.xid != self._xid or message.mac != self._mac:
            return []
        # Servers older than RFC 6842 return no client identifier; a foreign one
        # belongs to another client with our MAC (section 3).
        if message.options.get(Option.CLIENT_ID, self._client_id) != self._client_id:
            return []
        if self._state is State.SELECTING and message.kind is Type.OFFER:
            offer = leases.parse(message, now, sender)
            if offer.server == self._shunned:
                self._last_resort = offer
                return []
            return self._take(now, offer)
        if self._state in (State.SELECTING, State.BOUND):
            return []
        if message.kind is Type.ACK:
            self._acknowledged(message, sender)
        elif message.kind is Type.NAK and self._believes(
            leases.server_of(message, self._asked() or sender)
        ):
            self._hint = None
            if self._state is State.REQUESTING:
                self._refused(now)
                return []
            self.lease = None
            return self._select(now)
        return []

    def _take(self, now: float, offer: Lease) -> list[Outgoing]:
        self._offer, self._last_resort = offer, None
        self._to(State.REQUESTING)
        self._tries = 0
        return [self._request(now)]

    def _refused(self, now: float) -> None:
        """Begin again, after a delay: else a server that refuses what it offers
        would be asked as fast as it answers.
        """
        assert self._offer is not None, "an offer was refused"
        if self.lease is not None and self.lease.address.ip == self._offer.address.ip:
            self.lease = None
        self._shunned = self._offer.server
        self._begin(now, State.SELECTING)
        self._tries = self._refusals
        self._back_off(now)
        self._refusals = self._tries

    def tick(self, now: float) -> list[Outgoing]:
        """Do what is due; a call before the deadline does nothing."""
        lease = self.lease
        if lease is not None and lease.end is not None and now >= lease.end:
            self.lease = None
            if self._state in (State.BOUND, State.RENEWING, State.REBINDING):
                self._hint = lease.address.ip
                return self._select(now)
        if self._state is State.BOUND:
            assert lease is not None, "bound to a lease"
            if now < lease.start + lease.renew_s:
                return []
            self._to(State.RENEWING)
            self._began = now
            self._new_xid()
            return [self._request(now)]
        if self._state is State.RENEWING:
            assert lease is not None, "renewing a lease"
            if now >= lease.start + lease.rebind_s:
                self._to(State.REBINDING)
                return [self._request(now)]
        if now < self._retry:
            return []
        if self._state is State.SELECTING:
            if self._last_resort is not None:
                return self._take(now, self._last_resort)
            return [self._discover(now)]
        tries = {State.REQUESTING: _REQUEST_TRIES, State.REBOOTING: _REBOOT_TRIES}
        if self._tries >= tries.get(self._state, self._tries + 1):
            self._shunned = None if self._offer is None else self._offer.server
            return self._select(now)
        return [self._request(now)]

    def _to(self, new: State) -> None:
        assert new in _TRANSITIONS[self._state], f"{self._state} to {new}"
        self._state = new

    def _new_xid(self) -> None:
        self._xid = int(self._rand() * 2**32)

    def _believes(self, server: IPv4Address) -> bool:
        """Return whether we expect answers of this server; after a broadcast,
        of any.
        """
        return self._asked() in (None, server)

    def _asked(self) -> IPv4Address | None:
        """The server that a request went to; None: to all."""
        current = self._offer if self._state is State.REQUESTING else self.lease
        to_all = self._state in (State.REBINDING, State.REBOOTING)
        return None if current is None or to_all else current.server

    def _acknowledged(self, message: Message, sender: IPv4Address | None) -> None:
        granted = leases.parse(message, self._requested, self._asked() or sender)
        current = self._offer if self._state is State.REQUESTING else self.lease
        wanted = self._hint if self._state is State.REBOOTING else current and current.address.ip
        if granted.address.ip != wanted:
            asked = current.server if current is not None else "anyone"
            raise PacketError(
                f"{granted.server} acknowledges {granted.address.ip}; asked was "
                f"{asked} for {wanted}"
            )
        self._to(State.BOUND)
        self._refusals, self._shunned = 0, None
        self.lease, self._offer = self._spread(granted), None

    def _spread(self, granted: Lease) -> Lease:
        """Renew and rebind up to a tenth earlier, at random: clients that got
        leases together, as after a power cut, would renew together for ever
        (RFC 2131, section 4.4.5). Never later: the server chose the times.
        """
        if granted.length_s is None:
            return granted
        renew, rebind = granted.renew_s, granted.rebind_s
        return replace(
            granted,
            renew_s=renew * (1 - _SPREAD * self._rand()),
            rebind_s=rebind - (rebind - renew) * _SPREAD * self._rand(),
        )

    def _discover(self, now: float) -> Outgoing:
        self._back_off(now)
        options: dict[int, bytes] = {}
        if self._hint is not None:
            options[Option.REQUESTED_ADDRESS] = self._hint.packed
        message = self._message(now, Type.DISCOVER, options)
        return Outgoing(message, UNSPECIFIED, BROADCAST)

    def _request(self, now: float) -> Outgoing:
        self._requested = now
        if self._state is State.REQUESTING:
            assert self._offer is not None, "a request is for an offer"
            self._back_off(now)
            options: dict[int, bytes] = {
                Option.REQUESTED_ADDRESS: self._offer.address.ip.packed,
                Option.SERVER_ID: self._offer.server.packed,
            }
            return Outgoing(self._message(now, Type.REQUEST, options), UNSPECIFIED, BROADCAST)
        if self._state is State.REBOOTING:
            assert self._hint is not None, "rebooting with an address"
            self._back_off(now)
            options = {Option.REQUESTED_ADDRESS: self._hint.packed}
            return Outgoing(self._message(now, Type.REQUEST, options), UNSPECIFIED, BROADCAST)
        lease = self.lease
        assert lease is not None, "renewing a lease"
        own = lease.address.ip
        message = replace(self._message(now, Type.REQUEST, {}), client=own)
        if self._state is State.RENEWING:
            left = lease.start + lease.rebind_s - now
            self._retry = now + max(left / 2, _RENEW_RETRY_MIN_S)
            return Outgoing(message, own, lease.server)
        left = (lease.end or now) - now
        self._retry = now + max(left / 2, _RENEW_RETRY_MIN_S)
        return Outgoing(message, own, BROADCAST)

    def _back_off(self, now: float) -> None:
        delay = min(_FIRST_RETRY_S * 2.0**self._tries, _LAST_RETRY_S)
        self._tries = min(self._tries + 1, 16)
        self._retry = now + delay * (0.9 + 0.2 * self._rand())

    def _message(self, now: float, kind: Type, options: dict[int, bytes]) -> Message:
        options = options | {
            Option.CLIENT_ID: self._client_id,
            Option.PARAMETERS: _PARAMETERS,
            Option.MAX_SIZE: _MAX_MESSAGE.to_bytes(2),
        }
        if self._host_name:
            options[Option.HOST_NAME] = self._host_name
        secs = max(0, int(now - self._began))
        return Message(True, kind, self._xid, self._mac, secs=secs, options=options)
