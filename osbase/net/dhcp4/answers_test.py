# SPDX-License-Identifier: Apache-2.0
"""Which answers of servers the client accepts, and which parts of them."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from osbase.net.dhcp4 import lease as leases
from osbase.net.dhcp4.machine import Outgoing, State
from osbase.net.dhcp4.packet import BROADCAST, UNSPECIFIED, Message, Option, PacketError, Type
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


@pytest.mark.parametrize("gateway", ["192.0.2.0", "192.0.2.255", str(ADDRESS)])
def test_a_gateway_that_is_nobody_is_left_out(gateway: str) -> None:
    client = machine()
    router = {Option.ROUTER: IPv4Address(gateway).packed}
    offer = reply(only(client.start(0)), Type.OFFER, options=OPTIONS | router)
    assert leases.parse(offer, 0).routes == ()


@pytest.mark.parametrize("gateway", ["192.0.2.0", "192.0.2.255", str(ADDRESS)])
def test_a_classless_route_by_nobody_is_left_out(gateway: str) -> None:
    """The others stay."""
    routes = b"".join(
        bytes([8, destination]) + IPv4Address(by).packed
        for destination, by in ((10, gateway), (11, str(SERVER)))
    )
    offer = Message(
        False,
        Type.OFFER,
        1,
        MAC,
        yours=ADDRESS,
        options=OPTIONS | {Option.CLASSLESS_ROUTES: routes},
    )
    assert leases.parse(offer, 0).routes == ((IPv4Network("11.0.0.0/8"), SERVER),)


@pytest.mark.parametrize(
    ("length", "address", "usable"),
    [
        (24, "192.0.2.0", False),
        (24, "192.0.2.255", False),
        (25, "192.0.2.127", False),
        (31, "192.0.2.0", True),
        (31, "192.0.2.1", True),
        (32, "192.0.2.0", True),
    ],
)
def test_an_address_of_a_whole_network_is_refused(length: int, address: str, usable: bool) -> None:
    mask = IPv4Network((0, length)).netmask.packed
    options = OPTIONS | {Option.SUBNET_MASK: mask}
    offer = Message(False, Type.OFFER, 1, MAC, yours=IPv4Address(address), options=options)
    if usable:
        assert str(leases.parse(offer, 0).address) == f"{address}/{length}"
    else:
        with pytest.raises(PacketError, match="its network's own"):
            leases.parse(offer, 0)


@pytest.mark.parametrize(
    ("sent", "taken"), [(68, None), (1279, None), (1280, 1280), (65535, 65535)]
)
def test_an_mtu_that_would_end_ipv6_is_left_out(sent: int, taken: int | None) -> None:
    options = OPTIONS | {Option.INTERFACE_MTU: sent.to_bytes(2)}
    offer = Message(False, Type.OFFER, 1, MAC, yours=ADDRESS, options=options)
    assert leases.parse(offer, 0).mtu == taken


def test_a_gateway_outside_of_the_network_is_on_the_link() -> None:
    client = machine()
    mask = {Option.SUBNET_MASK: b"\xff\xff\xff\xff"}
    offer = reply(only(client.start(0)), Type.OFFER, options=OPTIONS | mask)
    everywhere = IPv4Network("0.0.0.0/0")
    assert leases.parse(offer, 0).routes == ((IPv4Network(SERVER), None), (everywhere, SERVER))


def test_infinite_lease_has_no_deadline() -> None:
    """0xffffffff seconds are for ever."""
    client = machine()
    options = OPTIONS | {Option.LEASE_TIME: b"\xff\xff\xff\xff"}
    request = only(client.receive(0, reply(only(client.start(0)), Type.OFFER, options=options)))
    client.receive(0, reply(request, Type.ACK, options=options))
    assert client.state is State.BOUND
    assert client.deadline is None
    assert client.tick(1e9) == []


@pytest.mark.parametrize(
    "changes",
    [
        {"xid": 1},
        {"mac": b"\x02\x00\x00\x00\x00\x08"},
        {"request": True},
        {"kind": Type.ACK},
        {"kind": Type.NAK},
    ],
)
def test_messages_for_others_are_ignored(changes: dict[str, object]) -> None:
    """Another transaction, another MAC, a message in the wrong state."""
    client = machine()
    discover = only(client.start(0))
    assert client.receive(0, replace(reply(discover, Type.OFFER), **changes)) == []  # type: ignore[arg-type]
    assert client.state is State.SELECTING


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"yours": UNSPECIFIED}, "cannot be a host"),
        ({"yours": BROADCAST}, "cannot be a host"),
        ({"yours": IPv4Address("127.0.0.1")}, "cannot be a host"),
        ({"options": OPTIONS, "yours": IPv4Address("192.0.2.255")}, "its network's own"),
    ],
)
def test_nonsense_is_refused_and_changes_nothing(changes: dict[str, object], reason: str) -> None:
    """As an offer, and as the acknowledgement of a renewal."""
    client = machine()
    discover = only(client.start(0))
    with pytest.raises(PacketError, match=reason):
        client.receive(0, reply(discover, Type.OFFER, **changes))
    assert client.state is State.SELECTING
    only(client.receive(0, reply(discover, Type.OFFER)))

    client = bound()
    before = client.lease
    request = only(client.tick(500))
    with pytest.raises(PacketError, match=reason):
        client.receive(501, reply(request, Type.ACK, **changes))
    assert (client.state, client.lease) == (State.RENEWING, before)


def test_acknowledgement_of_something_else_is_refused() -> None:
    """Another address is refused; another server's NAK is ignored."""
    client = machine()
    request = only(client.receive(0, reply(only(client.start(0)), Type.OFFER)))
    with pytest.raises(PacketError, match="acknowledges"):
        client.receive(0, reply(request, Type.ACK, yours=IPv4Address("192.0.2.51")))
    other = OPTIONS | {Option.SERVER_ID: OTHER.packed}
    assert client.receive(0, reply(request, Type.NAK, options=other)) == []
    assert client.state is State.REQUESTING


OTHER = IPv4Address("192.0.2.66")


@pytest.mark.parametrize("renewing", [False, True])
def test_a_server_that_acknowledges_by_another_name(renewing: bool) -> None:
    """Renewals then go to it: another address, or the second of a pair."""
    client = machine()
    request = only(client.receive(0, reply(only(client.start(0)), Type.OFFER)))
    now = 0
    if renewing:
        client.receive(now, reply(request, Type.ACK))
        now = 500
        request = only(client.tick(now))
    other = OPTIONS | {Option.SERVER_ID: OTHER.packed}
    assert client.receive(now, reply(request, Type.ACK, options=other)) == []
    lease = leased(client)
    assert lease is not None
    assert (client.state, lease.server) == (State.BOUND, OTHER)
    assert only(client.tick(now + 500)).destination == OTHER


@pytest.mark.parametrize("sender", [SERVER, IPv4Address("192.0.2.66")])
def test_a_server_that_does_not_say_who_it_is(sender: IPv4Address) -> None:
    """The sender counts as the server; for an answer to a request, the server
    that was asked, since a relay's packet has the relay's address.
    """
    nameless = {k: v for k, v in OPTIONS.items() if k != Option.SERVER_ID}
    client = machine()
    discover = only(client.start(0))
    with pytest.raises(PacketError, match="server identifier missing"):
        client.receive(0, reply(discover, Type.OFFER, options=nameless))
    request = only(client.receive(0, reply(discover, Type.OFFER, options=nameless), sender))
    assert request.message.options[Option.SERVER_ID] == sender.packed
    assert client.receive(0, reply(request, Type.ACK, options=nameless), SERVER) == []
    lease = leased(client)
    assert lease is not None
    assert lease.server == sender
    renewal = only(client.tick(500))
    client.receive(501, reply(renewal, Type.ACK, options=nameless), SERVER)
    lease = leased(client)
    assert lease is not None
    assert (lease.start, lease.server) == (500, sender)
    renewal = only(client.tick(1000))
    assert only(client.receive(1001, reply(renewal, Type.NAK, options={}), SERVER))
    assert leased(client) is None


def test_offers_that_come_twice_or_from_two() -> None:
    """There is one request; later offers change nothing."""
    client = machine()
    discover = only(client.start(0))
    offer = reply(discover, Type.OFFER)
    request = only(client.receive(0, offer))
    other = OPTIONS | {Option.SERVER_ID: IPv4Address("192.0.2.66").packed}
    assert client.receive(0, offer) == []
    assert client.receive(0, reply(discover, Type.OFFER, options=other)) == []
    assert client.receive(1, reply(request, Type.ACK)) == []
    assert client.receive(1, reply(request, Type.ACK)) == []
    assert client.receive(1, reply(request, Type.NAK)) == []
    assert client.state is State.BOUND


def test_classless_routes_replace_the_router() -> None:
    """RFC 3442, with gateways that are on the link only by a route."""
    raw = (
        bytes([32, 10, 0, 0, 1, 0, 0, 0, 0])
        + bytes([0, 10, 0, 0, 1])
        + bytes([12, 172, 16, 10, 0, 0, 9])
    )
    options = OPTIONS | {Option.CLASSLESS_ROUTES: raw}
    lease = leases.parse(Message(False, Type.ACK, 1, MAC, yours=ADDRESS, options=options), 0)
    assert lease.routes == (
        (IPv4Network("10.0.0.1/32"), None),
        (IPv4Network("10.0.0.9/32"), None),
        (IPv4Network("0.0.0.0/0"), IPv4Address("10.0.0.1")),
        (IPv4Network("172.16.0.0/12"), IPv4Address("10.0.0.9")),
    )


@given(st.dictionaries(st.sampled_from(list(Option)), st.binary(max_size=40), max_size=8))
def test_any_options_give_a_lease_or_an_error(options: dict[int, bytes]) -> None:
    """The times of a lease are in order."""
    base: dict[int, bytes] = dict(OPTIONS)
    message = Message(False, Type.ACK, 1, MAC, yours=ADDRESS, options=base | options)
    try:
        lease = leases.parse(message, 0)
    except PacketError:
        return
    assert 1 <= lease.renew_s <= lease.rebind_s
    assert lease.end is None or lease.rebind_s < lease.end
    assert lease.mtu is None or lease.mtu >= 1280
    nobodys = (lease.address.network[0], lease.address.network[-1])
    if lease.address.network.prefixlen < 31:
        assert lease.address.ip not in nobodys
        assert not {gateway for _, gateway in lease.routes}.intersection(nobodys)


@given(st.data())
def test_any_sequence_leaves_a_machine_that_goes_on(data: st.DataObject) -> None:
    """With time and messages in any order, it never fails or loops."""
    client = machine()
    now = 0.0
    last = only(client.start(now))
    for _ in range(40):
        step = data.draw(st.sampled_from(["tick", "early", "message", "relink"]))
        sent: list[Outgoing] = []
        if step == "tick" and client.deadline is not None:
            now = max(now, client.deadline)
            sent = client.tick(now)
            assert client.deadline is None or client.deadline > now
        elif step == "early":
            now += 0.001
            sent = client.tick(now)
        elif step == "relink":
            sent = client.start(now)
        elif step == "message":
            kind = data.draw(st.sampled_from([Type.OFFER, Type.ACK, Type.NAK]))
            try:
                sent = client.receive(now, reply(last, kind))
            except PacketError:
                sent = []
        last = sent[-1] if sent else last
        if client.state in (State.BOUND, State.RENEWING, State.REBINDING):
            assert client.lease is not None
