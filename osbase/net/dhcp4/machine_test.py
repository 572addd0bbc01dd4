# SPDX-License-Identifier: Apache-2.0
"""The client's states. Messages stand for the server, numbers for the clock."""

from __future__ import annotations

import itertools
from ipaddress import IPv4Address, IPv4Interface, IPv4Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from osbase.net.dhcp4 import lease as leases
from osbase.net.dhcp4.machine import Machine, Outgoing, State
from osbase.net.dhcp4.packet import BROADCAST, UNSPECIFIED, Option, PacketError, Type
from osbase.net.dhcp4.testmachine import (
    ADDRESS,
    MAC,
    OPTIONS,
    SERVER,
    bound,
    leased,
    machine,
    only,
    reply,
)


def test_obtains_a_lease() -> None:
    """Discover, offer, request, acknowledgement."""
    client = machine()
    discover = only(client.start(100))
    assert discover.message.kind is Type.DISCOVER
    assert (discover.source, discover.destination) == (UNSPECIFIED, BROADCAST)
    assert discover.message.options[Option.HOST_NAME] == b"node-1"
    request = only(client.receive(101, reply(discover, Type.OFFER)))
    assert request.message.kind is Type.REQUEST
    assert request.message.options[Option.REQUESTED_ADDRESS] == ADDRESS.packed
    assert request.message.options[Option.SERVER_ID] == SERVER.packed
    assert leased(client) is None
    assert client.receive(103, reply(request, Type.ACK)) == []
    lease = leased(client)
    assert lease is not None
    assert lease.address == IPv4Interface("192.0.2.50/24")
    assert lease.routes == ((IPv4Network("0.0.0.0/0"), SERVER),)
    assert lease.dns == (SERVER, IPv4Address("9.9.9.9"))
    assert (lease.start, lease.end) == (101, 1101)
    assert client.deadline == 601


def test_asks_for_the_address_it_had() -> None:
    """INIT-REBOOT (RFC 2131, section 4.3.2): to all, no server, no ciaddr."""
    client = machine(hint=ADDRESS)
    request = only(client.start(0))
    assert request.message.kind is Type.REQUEST
    assert (request.source, request.destination) == (UNSPECIFIED, BROADCAST)
    assert request.message.client == UNSPECIFIED
    assert request.message.options[Option.REQUESTED_ADDRESS] == ADDRESS.packed
    assert Option.SERVER_ID not in request.message.options
    with pytest.raises(PacketError, match="acknowledges"):
        client.receive(1, reply(request, Type.ACK, yours=IPv4Address("192.0.2.51")))
    assert client.receive(1, reply(request, Type.ACK)) == []
    assert client.state is State.BOUND
    assert client.lease is not None
    assert client.lease.end == 1000


def test_refused_at_reboot_it_discovers_without_the_address() -> None:
    """In another network, any server refuses at once."""
    client = machine(hint=ADDRESS)
    options = {Option.SERVER_ID: IPv4Address("198.51.100.1").packed}
    nak = reply(only(client.start(0)), Type.NAK, yours=UNSPECIFIED, options=options)
    discover = only(client.receive(1, nak))
    assert discover.message.kind is Type.DISCOVER
    assert Option.REQUESTED_ADDRESS not in discover.message.options


def test_unanswered_at_reboot_it_discovers_with_the_address() -> None:
    """Twice, after 1 and 2 s; a server without the lease does not answer."""
    client = machine(hint=ADDRESS)
    client.start(0)
    sent = []
    for _ in range(2):
        assert client.deadline is not None
        now = client.deadline
        sent.append(only(client.tick(now)))
    assert now == pytest.approx(3)
    assert [one.message.kind for one in sent] == [Type.REQUEST, Type.DISCOVER]
    assert sent[1].message.options[Option.REQUESTED_ADDRESS] == ADDRESS.packed


def test_classless_routes_are_asked_for_before_routers() -> None:
    """As RFC 3442 has it; some servers look at the order."""
    asked = only(machine().start(0)).message.options[Option.PARAMETERS]
    assert asked.index(Option.CLASSLESS_ROUTES) < asked.index(Option.ROUTER)


def test_discover_is_repeated_more_and_more_rarely() -> None:
    """After 1, 2, 4 ... 64, 64 s."""
    client = machine()
    client.start(0)
    delays = []
    for _ in range(8):
        now = client.deadline
        assert now is not None
        assert client.tick(now - 0.01) == []
        only(client.tick(now))
        assert client.deadline is not None
        delays.append(client.deadline - now)
    assert delays == pytest.approx([2, 4, 8, 16, 32, 64, 64, 64])


def test_request_without_answer_goes_back_to_discover() -> None:
    """The server may have died after its offer."""
    client = machine()
    client.receive(0, reply(only(client.start(0)), Type.OFFER))
    kinds = []
    for _ in range(4):
        assert client.deadline is not None
        kinds.append(only(client.tick(client.deadline)).message.kind)
    assert kinds == [Type.REQUEST] * 3 + [Type.DISCOVER]


@pytest.mark.parametrize("refuses", [False, True])
def test_another_server_is_asked_when_the_first_gives_nothing(refuses: bool) -> None:
    """Although its offers always arrive first."""
    good = IPv4Address("192.0.2.66")
    other = OPTIONS | {Option.SERVER_ID: good.packed}
    client = machine()
    messages = client.start(0)
    now = 0.0
    for _ in range(20):
        for message in messages:
            if message.message.kind is Type.DISCOVER:
                messages = client.receive(now, reply(message, Type.OFFER))
                messages += client.receive(now, reply(message, Type.OFFER, options=other))
        for message in messages:
            if message.message.options[Option.SERVER_ID] == good.packed:
                client.receive(now, reply(message, Type.ACK, options=other))
                lease = leased(client)
                assert lease is not None
                assert lease.server == good
                return
            if refuses:
                client.receive(now, reply(message, Type.NAK))
        assert client.deadline is not None
        now = client.deadline
        messages = client.tick(now)
    raise AssertionError("never asked the other")


def test_renews_by_unicast_and_keeps_the_address() -> None:
    """At half time; the new lease counts from the request."""
    client = bound()
    assert client.tick(499) == []
    request = only(client.tick(500))
    assert (request.source, request.destination) == (ADDRESS, SERVER)
    assert request.message.client == ADDRESS
    assert Option.SERVER_ID not in request.message.options
    assert Option.REQUESTED_ADDRESS not in request.message.options
    client.receive(501, reply(request, Type.ACK))
    assert client.state is State.BOUND
    assert client.lease is not None
    assert client.lease.end == 1500


@given(
    st.lists(st.floats(0, 1, exclude_max=True), min_size=2, max_size=2),
    st.integers(4, 2**32 - 2),
    st.none() | st.integers(0, 2**32 - 1),
    st.none() | st.integers(0, 2**32 - 1),
)
def test_renewals_are_spread(
    chances: list[float], length_s: int, renew_s: int | None, rebind_s: int | None
) -> None:
    """Up to a tenth earlier than the server says, in order, never later."""
    options = OPTIONS | {Option.LEASE_TIME: length_s.to_bytes(4)}
    for option, value in ((Option.RENEWAL_TIME, renew_s), (Option.REBINDING_TIME, rebind_s)):
        if value is not None:
            options[option] = value.to_bytes(4)
    numbers = iter([0.1, 0.5, 0.5, *chances])
    client = Machine(MAC, "node-1", None, lambda: next(numbers))
    discover = only(client.start(0))
    request = only(client.receive(0, reply(discover, Type.OFFER, options=options)))
    client.receive(0, acknowledgement := reply(request, Type.ACK, options=options))
    said, lease = leases.parse(acknowledgement, 0), leased(client)
    assert lease is not None
    assert said.renew_s * 0.9 <= lease.renew_s <= said.renew_s
    assert said.rebind_s - (said.rebind_s - said.renew_s) * 0.1 <= lease.rebind_s <= said.rebind_s
    assert lease.renew_s < lease.rebind_s < length_s
    assert client.deadline == lease.renew_s


def test_renewals_of_machines_that_began_together_differ() -> None:
    """The default source of random numbers is enough."""
    times = set()
    for _ in range(10):
        client = Machine(MAC)
        discover = only(client.start(0))
        request = only(client.receive(0, reply(discover, Type.OFFER)))
        client.receive(0, reply(request, Type.ACK))
        times.add(client.deadline)
    assert len(times) > 1


@pytest.mark.parametrize("kind", [Type.OFFER, Type.ACK, Type.NAK])
@pytest.mark.parametrize("identifier", [b"\x01\x02\x00\x00\x00\x00\x08", b"\xff" + MAC, b""])
def test_messages_for_another_identifier_are_ignored(kind: Type, identifier: bytes) -> None:
    """RFC 6842, section 3: another client may have this MAC, and draw the same
    transaction number. Ours, and none at all, are taken.
    """
    for own in (None, b"\x01" + MAC):
        client = machine()
        asked = only(client.start(0))
        if kind is not Type.OFFER:
            asked = only(client.receive(0, reply(asked, Type.OFFER)))
        before = client.state
        foreign = reply(asked, kind, options=OPTIONS | {Option.CLIENT_ID: identifier})
        assert client.receive(0, foreign) == []
        assert (client.state, leased(client)) == (before, None)
        ours = OPTIONS if own is None else OPTIONS | {Option.CLIENT_ID: own}
        client.receive(0, reply(asked, kind, options=ours))
        assert client.state is not before


def test_rebinds_by_broadcast_with_any_server() -> None:
    """When its own server does not answer."""
    client = bound()
    only(client.tick(500))
    assert client.deadline == 500 + 375 / 2
    only(client.tick(500 + 375 / 2))
    rebind = only(client.tick(875))
    assert client.state is State.REBINDING
    assert rebind.destination == BROADCAST
    other = IPv4Address("192.0.2.2")
    options = OPTIONS | {Option.SERVER_ID: other.packed}
    client.receive(876, reply(rebind, Type.ACK, options=options))
    assert client.lease is not None
    assert (client.lease.server, client.lease.end) == (other, 1875)


def test_loses_the_lease_at_its_end() -> None:
    """No server answers: the address is given up, and requested again."""
    client = bound()
    now = 0.0
    while client.lease is not None:
        assert client.deadline is not None
        now = client.deadline
        sent = client.tick(now)
    assert now == 1000
    assert only(sent).message.kind is Type.DISCOVER
    assert only(sent).message.options[Option.REQUESTED_ADDRESS] == ADDRESS.packed


def test_nak_while_renewing_takes_the_lease() -> None:
    """It looks for a new one at once, without requesting the old."""
    client = bound()
    request = only(client.tick(500))
    nak = reply(request, Type.NAK, yours=UNSPECIFIED)
    discover = only(client.receive(501, nak))
    assert client.lease is None
    assert discover.message.kind is Type.DISCOVER
    assert Option.REQUESTED_ADDRESS not in discover.message.options


def test_link_came_up_keeps_the_lease_until_its_end() -> None:
    """A cable pulled and replugged changes nothing at the same server."""
    client = bound()
    request = only(client.start(200))
    assert client.lease is not None
    assert request.message.kind is Type.REQUEST
    client.receive(202, reply(request, Type.ACK))
    assert client.lease.address.ip == ADDRESS
    assert client.lease.end == 1200
    client.start(300)
    while client.deadline is not None and client.deadline < 1200:
        client.tick(client.deadline)
    assert client.lease is not None
    client.tick(1200)
    assert leased(client) is None
    assert client.state is State.SELECTING


def test_refused_after_the_link_came_up_it_is_gone() -> None:
    """The cable leads to another network now."""
    client = bound()
    request = only(client.start(200))
    assert only(client.receive(201, reply(request, Type.NAK))).message.kind is Type.DISCOVER
    assert client.lease is None


@pytest.mark.parametrize("other", [False, True])
def test_an_offer_that_is_refused_takes_the_lease_of_its_address(other: bool) -> None:
    """Leases of other addresses stay: those were not requested."""
    client = bound()
    client.start(200)
    messages: list[Outgoing] = []
    while client.state is State.REBOOTING:
        assert client.deadline is not None
        now = client.deadline
        messages = client.tick(now)
    offered = ADDRESS + 1 if other else ADDRESS
    request = only(client.receive(now, reply(only(messages), Type.OFFER, yours=offered)))
    assert client.receive(now, reply(request, Type.NAK, yours=UNSPECIFIED)) == []
    assert (client.lease is not None) == other


@pytest.mark.parametrize("refused", [State.REBOOTING, State.RENEWING, State.REBINDING])
def test_refused_with_its_address_and_then_every_offer_it_does_not_spin(refused: State) -> None:
    client = bound()
    at = {State.REBOOTING: 1, State.RENEWING: 500, State.REBINDING: 875}[refused]
    request = only(client.start(at) if refused is State.REBOOTING else client.tick(at))
    if refused is State.REBINDING:
        assert client.state is State.RENEWING
        request = only(client.tick(at))
    assert client.state is refused
    messages, now, packets = client.receive(at, reply(request, Type.NAK)), float(at), 0
    while now < at + 60:
        packets += len(messages)
        sent = only(messages)
        if sent.message.kind is Type.DISCOVER:
            messages = client.receive(now, reply(sent, Type.OFFER))
        else:
            messages = client.receive(now, reply(sent, Type.NAK, yours=UNSPECIFIED))
        if not messages:
            assert client.deadline is not None
            now = client.deadline
            messages = client.tick(now)
    assert packets < 15


def test_offers_that_are_refused_are_asked_for_more_and_more_rarely() -> None:
    client, now = machine(), 0.0
    asked: list[float] = []
    messages = client.start(now)
    while len(asked) < 6:
        if asked:  # it hopes for another server first
            assert client.receive(now, reply(only(messages), Type.OFFER)) == []
            assert client.deadline is not None
            now = client.deadline
            request = only(client.tick(now))
        else:
            request = only(client.receive(now, reply(only(messages), Type.OFFER)))
        asked.append(now)
        assert client.receive(now, reply(request, Type.NAK, yours=UNSPECIFIED)) == []
        assert client.state is State.SELECTING
        assert client.deadline is not None
        now = client.deadline
        messages = client.tick(now)
    waits = [later - earlier for earlier, later in itertools.pairwise(asked)]
    assert waits == [3, 6, 12, 24, 48]
    # What it gets in the end makes all good.
    client.receive(now, reply(only(messages), Type.OFFER))
    assert client.deadline is not None
    request = only(client.tick(client.deadline))
    client.receive(now, reply(request, Type.ACK))
    assert client.state is State.BOUND
