# SPDX-License-Identifier: Apache-2.0
"""Messages of WireGuard's generic netlink: encode and parse. Pure.

    WG_CMD_SET_DEVICE  link, key, port, [peer, peer, ...]     up to 32 KiB each
    WG_CMD_GET_DEVICE  a dump: a device and its peers, over many messages

A dump's message ends where the next allowed IP does not fit; the next message
then has the same peer again, with its key and further allowed IPs only.

Why not pyroute2: its WireGuard.set takes one peer, a message and a round trip
each; it cannot drop one allowed IP, only replace all, so a prefix that moves
would have no peer for a moment; it decodes a dump to nested lists of attributes
and leaves peers that continue to the caller; and the image would import it for
this alone, which takes a quarter of a second. The scale test prints the cost
of both.

Source: linux/wireguard.h, drivers/net/wireguard/netlink.c.
"""

from __future__ import annotations

import itertools
import socket
import struct
from collections.abc import Iterable, Iterator, Sequence
from ipaddress import ip_address, ip_network
from typing import Final

from metropolis.node.core.network.overlay.device import (
    KEY_SIZE,
    Device,
    DevicePeer,
    Endpoint,
    PeerChange,
)
from metropolis.node.core.network.overlay.mesh import IPNetwork
from osbase.netlink import attrs, genl
from osbase.netlink.errors import ProtocolError
from osbase.netlink.message import Message, Request

FAMILY_NAME: Final = "wireguard"
MAX_MESSAGE: Final = 32 * 1024
"""Bytes of peers in a message. The attribute's own limit is 64 KiB, a socket's
send buffer 208 KiB; the kernel holds the lock of all links meanwhile."""

_VERSION: Final = 1
_GET_DEVICE: Final = 0
_SET_DEVICE: Final = 1

_DEVICE_IFNAME: Final = 2
_DEVICE_PRIVATE_KEY: Final = 3
_DEVICE_PUBLIC_KEY: Final = 4
_DEVICE_LISTEN_PORT: Final = 6
_DEVICE_PEERS: Final = 8
_PEER_PUBLIC_KEY: Final = 1
_PEER_FLAGS: Final = 3
_PEER_ENDPOINT: Final = 4
_PEER_KEEPALIVE: Final = 5
_PEER_HANDSHAKE: Final = 6
_PEER_ALLOWED: Final = 9
_PEER_REMOVE_ME: Final = 1
_PEER_UPDATE_ONLY: Final = 4
_ALLOWED_FAMILY: Final = 1
_ALLOWED_ADDRESS: Final = 2
_ALLOWED_BITS: Final = 3
_ALLOWED_FLAGS: Final = 4
_ALLOWED_REMOVE_ME: Final = 1  # since Linux 6.16

_U16: Final = struct.Struct("=H")
_TIMESPEC: Final = struct.Struct("=qq")
_FAMILIES: Final = {4: int(socket.AF_INET), 6: int(socket.AF_INET6)}
_SOCKADDR_IN: Final = 16  # bytes
_SOCKADDR_IN6: Final = 28
_ALLOWED_AT_ONCE: Final = 400  # 48 bytes each at most: they fit a message
_PROMPT_S: Final = 25  # any keepalive interval above 0


def set_identity(
    family: int, link: str, *, private_key: bytes | None = None, port: int | None = None
) -> Request:
    """Set the link's key (which the kernel clamps) or UDP port."""
    parts = [attrs.text(_DEVICE_IFNAME, link.encode())]
    if private_key is not None:
        parts.append(attrs.attr(_DEVICE_PRIVATE_KEY, private_key))
    if port is not None:
        parts.append(attrs.attr(_DEVICE_LISTEN_PORT, _U16.pack(port)))
    body = genl.body(_SET_DEVICE, _VERSION, *parts)
    return Request(family, 0, body, "set key or port of {}", (link,))


def get_device(family: int, link: str) -> Request:
    """Request the link's whole state, as a dump. ENODEV: no such link;
    EOPNOTSUPP: it is of another kind.
    """
    body = genl.body(_GET_DEVICE, _VERSION, attrs.text(_DEVICE_IFNAME, link.encode()))
    return Request(family, 0, body, "list peers of {}", (link,))


def set_peers(
    family: int, link: str, changes: Sequence[PeerChange], *, limit: int = MAX_MESSAGE
) -> list[Request]:
    """Encode the changes, in the order that Kernel.apply promises."""
    name = attrs.text(_DEVICE_IFNAME, link.encode())
    requests: list[Request] = []
    entries: list[bytes] = []
    size = 0

    def flush() -> None:
        nonlocal size
        body = genl.body(_SET_DEVICE, _VERSION, name, attrs.nested(_DEVICE_PEERS, *entries))
        requests.append(Request(family, 0, body, "set {} peers of {}", (len(entries), link)))
        entries.clear()
        size = 0

    for entry in _entries(changes):
        if entries and size + len(entry) > limit:
            flush()
        entries.append(entry)
        size += len(entry)
    if entries:
        flush()
    return requests


def _entries(changes: Sequence[PeerChange]) -> Iterator[bytes]:
    """Yield up to four entries a change: add, drop, remove, prompt."""
    for change in changes:
        if change.remove or not (change.endpoint or change.add):
            continue
        endpoint = []
        if change.endpoint is not None:
            endpoint.append(attrs.attr(_PEER_ENDPOINT, encode_endpoint(change.endpoint)))
        flags = 0 if endpoint else _PEER_UPDATE_ONLY
        for chunk in itertools.batched(change.add, _ALLOWED_AT_ONCE, strict=False):
            yield _peer(change, flags, *endpoint, _allowed(chunk, remove=False))
        if not change.add:
            yield _peer(change, flags, *endpoint)
    for change in changes:
        for chunk in itertools.batched(change.drop, _ALLOWED_AT_ONCE, strict=False):
            yield _peer(change, _PEER_UPDATE_ONLY, _allowed(chunk, remove=True))
    for change in changes:
        if change.remove:
            yield _peer(change, _PEER_REMOVE_ME)
    for change in changes:
        if change.prompt:
            # When the keepalive becomes non-zero, the kernel sends one at once,
            # for which it needs a session (set_peer in netlink.c).
            for seconds in (_PROMPT_S, 0):
                keepalive = attrs.attr(_PEER_KEEPALIVE, _U16.pack(seconds))
                yield _peer(change, _PEER_UPDATE_ONLY, keepalive)


def _peer(change: PeerChange, flags: int, *more: bytes) -> bytes:
    key = attrs.attr(_PEER_PUBLIC_KEY, change.public_key)
    return attrs.nested(0, key, attrs.u32(_PEER_FLAGS, flags), *more)


def _allowed(networks: Iterable[IPNetwork], *, remove: bool) -> bytes:
    flags = attrs.u32(_ALLOWED_FLAGS, _ALLOWED_REMOVE_ME) if remove else b""
    return attrs.nested(
        _PEER_ALLOWED,
        *(
            attrs.nested(
                0,
                attrs.attr(_ALLOWED_FAMILY, _U16.pack(_FAMILIES[network.version])),
                attrs.attr(_ALLOWED_ADDRESS, network.network_address.packed),
                attrs.attr(_ALLOWED_BITS, bytes([network.prefixlen])),
                flags,
            )
            for network in networks
        ),
    )


def encode_endpoint(endpoint: Endpoint) -> bytes:
    """Return a struct sockaddr_in or sockaddr_in6."""
    family = _U16.pack(_FAMILIES[endpoint.address.version])
    head = family + struct.pack("!H", endpoint.port)
    if endpoint.address.version == 4:
        return head + endpoint.address.packed + bytes(8)
    return head + bytes(4) + endpoint.address.packed + bytes(4)


def parse_endpoint(data: bytes) -> Endpoint:
    """Parse; the inverse of encode_endpoint. Raises ProtocolError."""
    if len(data) not in (_SOCKADDR_IN, _SOCKADDR_IN6):
        raise ProtocolError(f"an endpoint of {len(data)} bytes")
    (family,) = _U16.unpack_from(data)
    version = 4 if len(data) == _SOCKADDR_IN else 6
    if family != _FAMILIES[version]:
        raise ProtocolError(f"an endpoint of family {family}")
    packed = data[4:8] if version == 4 else data[8:24]
    return Endpoint(ip_address(packed), int.from_bytes(data[2:4]))


def parse_device(messages: Iterable[Message]) -> Device:
    """Join the messages of a dump. Raises ProtocolError."""
    public_key: bytes | None = None
    port = 0
    peers: dict[bytes, DevicePeer] = {}
    allowed: dict[bytes, set[IPNetwork]] = {}
    for message in messages:
        for kind, data in attrs.walk(genl.payload(message)):
            if kind == _DEVICE_PUBLIC_KEY:
                public_key = _key(data)
            elif kind == _DEVICE_LISTEN_PORT:
                port = _u16(data)
            elif kind == _DEVICE_PEERS:
                for _, entry in attrs.walk(data):
                    key, peer, networks = _parse_peer(entry)
                    # A continuation: it lacks the peer's single attributes.
                    peers.setdefault(key, peer)
                    allowed.setdefault(key, set()).update(networks)
    return Device(
        public_key,
        port,
        {
            key: DevicePeer(
                peer.endpoint, frozenset(allowed[key]), peer.keepalive_s, peer.handshake_ns
            )
            for key, peer in peers.items()
        },
    )


def _parse_peer(data: bytes) -> tuple[bytes, DevicePeer, list[IPNetwork]]:
    found = attrs.parse(data)
    networks = [_parse_allowed(one) for _, one in attrs.walk(found.get(_PEER_ALLOWED, b""))]
    handshake = found.get(_PEER_HANDSHAKE, bytes(_TIMESPEC.size))
    if len(handshake) != _TIMESPEC.size:
        raise ProtocolError(f"a time of {len(handshake)} bytes")
    seconds, nanoseconds = _TIMESPEC.unpack(handshake)
    endpoint = found.get(_PEER_ENDPOINT)
    peer = DevicePeer(
        None if endpoint is None else parse_endpoint(endpoint),
        keepalive_s=_u16(found.get(_PEER_KEEPALIVE, b"\0\0")),
        handshake_ns=seconds * 1_000_000_000 + nanoseconds,
    )
    return _key(found.get(_PEER_PUBLIC_KEY, b"")), peer, networks


def _parse_allowed(data: bytes) -> IPNetwork:
    found = attrs.parse(data)
    family = _u16(found.get(_ALLOWED_FAMILY, b""))
    packed = found.get(_ALLOWED_ADDRESS, b"")
    bits = found.get(_ALLOWED_BITS, b"")
    version = {4: 4, 16: 6}.get(len(packed))
    if version is None or family != _FAMILIES[version] or len(bits) != 1:
        raise ProtocolError(f"an allowed IP of family {family} and {len(packed)} bytes")
    try:
        return ip_network((ip_address(packed), bits[0]))
    except ValueError as error:
        raise ProtocolError(f"an allowed IP: {error}") from error


def _key(data: bytes) -> bytes:
    if len(data) != KEY_SIZE:
        raise ProtocolError(f"a key of {len(data)} bytes")
    return data


def _u16(data: bytes) -> int:
    if len(data) != _U16.size:
        raise ProtocolError(f"a 16 bit number of {len(data)} bytes")
    value: int = _U16.unpack(data)[0]
    return value
