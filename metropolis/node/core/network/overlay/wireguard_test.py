# SPDX-License-Identifier: Apache-2.0
"""Messages are read back as sent, however split; garbage is an error."""

from __future__ import annotations

import contextlib
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network

from hypothesis import given
from hypothesis import strategies as st

from metropolis.node.core.network.overlay import wireguard
from metropolis.node.core.network.overlay.device import DevicePeer, Endpoint, PeerChange
from metropolis.node.core.network.overlay.mesh import IPNetwork
from osbase.netlink import attrs, genl
from osbase.netlink.errors import ProtocolError
from osbase.netlink.message import Message, Request

FAMILY = 33
KEYS = st.binary(min_size=32, max_size=32)
ENDPOINTS = st.builds(Endpoint, st.ip_addresses(), st.integers(0, 65535))


def _network(address: tuple[int, bytes]) -> IPNetwork:
    bits, packed = address
    return ip_network((ip_address(packed), bits % (len(packed) * 8 + 1)), strict=False)


NETWORKS: st.SearchStrategy[IPv4Network | IPv6Network] = st.tuples(
    st.integers(0, 128),
    st.one_of(st.binary(min_size=4, max_size=4), st.binary(min_size=16, max_size=16)),
).map(_network)
PEERS = st.dictionaries(
    KEYS, st.builds(DevicePeer, ENDPOINTS, st.frozensets(NETWORKS, max_size=6)), max_size=8
)


def answer(request: Request) -> Message:
    """Read what is sent: the attributes are the same."""
    return Message(request.kind, 0, 1, 1, request.body)


@given(ENDPOINTS)
def test_endpoints(endpoint: Endpoint) -> None:
    assert wireguard.parse_endpoint(wireguard.encode_endpoint(endpoint)) == endpoint


@given(PEERS, st.sampled_from([200, 500, wireguard.MAX_MESSAGE]))
def test_peers_survive_however_they_are_cut(peers: dict[bytes, DevicePeer], limit: int) -> None:
    changes = [
        PeerChange(key, peer.endpoint, tuple(sorted(peer.allowed, key=str)))
        for key, peer in peers.items()
    ]
    requests = wireguard.set_peers(FAMILY, "overlay", changes, limit=limit)
    assert wireguard.parse_device(map(answer, requests)).peers == peers


@given(PEERS, st.integers(1, 4))
def test_a_peer_that_continues_in_further_messages(
    peers: dict[bytes, DevicePeer], at_once: int
) -> None:
    """As the kernel dumps: single attributes in a peer's first part only."""
    messages = [attrs.attr(4, bytes(32)) + attrs.attr(6, b"\x39\x30")]
    for key, peer in peers.items():
        allowed = sorted(peer.allowed, key=str)
        chunks = [allowed[n : n + at_once] for n in range(0, len(allowed), at_once)] or [[]]
        for number, chunk in enumerate(chunks):
            parts = [attrs.attr(1, key)]
            if number == 0 and peer.endpoint is not None:
                parts.append(attrs.attr(4, wireguard.encode_endpoint(peer.endpoint)))
            parts.append(wireguard._allowed(chunk, remove=False))
            messages.append(attrs.nested(8, attrs.nested(0, *parts)))
    device = wireguard.parse_device(
        Message(FAMILY, 2, 1, 1, genl.body(0, 1, message)) for message in messages
    )
    assert (device.public_key, device.port, device.peers) == (bytes(32), 12345, peers)


def test_messages_stay_below_their_limit() -> None:
    many = tuple(ip_network(f"10.{n >> 8}.{n & 255}.0/24") for n in range(5000))
    changes = [PeerChange(bytes([n]) * 32, drop=many, prompt=True) for n in range(3)]
    requests = wireguard.set_peers(FAMILY, "overlay", changes)
    assert max(len(request.body) for request in requests) <= wireguard.MAX_MESSAGE + 64
    assert len(requests) > 10


def test_order_is_add_drop_remove_prompt() -> None:
    """Whatever order the changes come in."""
    endpoint = Endpoint(ip_address("192.0.2.1"), 1)
    some = (ip_network("10.0.0.0/24"),)
    gone = PeerChange(b"g" * 32, remove=True)
    both = PeerChange(b"b" * 32, endpoint, some, some, prompt=True)
    new = PeerChange(b"n" * 32, endpoint, some)
    (request,) = wireguard.set_peers(FAMILY, "overlay", [gone, both, new])
    (peers,) = [data for kind, data in attrs.walk(request.body[4:]) if kind == 8]
    order = []
    for _, entry in attrs.walk(peers):
        found = attrs.parse(entry)
        order.append((found[1][:1], attrs.to_u32(found[3])))
    # Flags: 1 remove, 4 only if it is there.
    assert order == [(b"b", 0), (b"n", 0), (b"b", 4), (b"g", 1), (b"b", 4), (b"b", 4)]


@given(st.lists(st.binary(max_size=120), max_size=3))
def test_garbage_is_a_protocol_error(bodies: list[bytes]) -> None:
    with contextlib.suppress(ProtocolError):
        wireguard.parse_device(Message(FAMILY, 0, 1, 1, body) for body in bodies)


@given(PEERS.filter(bool), st.data())
def test_one_changed_byte_is_a_protocol_error_or_another_device(
    peers: dict[bytes, DevicePeer], data: st.DataObject
) -> None:
    changes = [PeerChange(key, peer.endpoint, tuple(peer.allowed)) for key, peer in peers.items()]
    (request,) = wireguard.set_peers(FAMILY, "overlay", changes)
    body = bytearray(request.body)
    body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(ProtocolError):
        wireguard.parse_device([Message(FAMILY, 0, 1, 1, bytes(body))])
