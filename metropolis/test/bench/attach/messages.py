# SPDX-License-Identifier: Apache-2.0
"""The netlink messages of a minimal attach. Pure.

    host        veth pair: both indexes chosen, peer created in the namespace;
                alias, up; a route to each address
    namespace   lo up, link up; an address, first hop and default route each

The module has its own encoder, so that the floor does not change with ours.
Every batch is one send, in which only the last message asks for an
acknowledgement.

Source: linux/rtnetlink.h, linux/if_link.h, linux/if_addr.h.
"""

import struct
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address

_HEADER = struct.Struct("=IHHII")
_IFINFO = struct.Struct("=BxHiII")
_IFADDR = struct.Struct("=BBBBI")
_RTMSG = struct.Struct("=BBBBBBBBI")
_REQUEST, _ACK, _NEW = 0x1, 0x4, 0x600
_NEWLINK, _DELLINK, _NEWADDR, _NEWROUTE = 16, 17, 20, 24
_ERROR = 2
_INET, _INET6 = 2, 10
_NODAD = 2
_GEN_MODE_NONE = 1
_MAIN, _STATIC, _WORKLOAD, _LINK_SCOPE, _UNICAST = 254, 4, 77, 253, 1
_GROUP = 8
_MTU = 1420
_MAC = bytes.fromhex("029c52fe6d0a")
_HOP4, _HOP6 = IPv4Address("169.254.77.1"), IPv6Address("fe80::1")
_NET4, _NET6 = IPv4Address("10.192.0.0"), IPv6Address("fd00:10:192::")
_FIRST_INDEX = 100_000
_PEER = 2
_LOOPBACK = 1

type _Address = IPv4Address | IPv6Address
type _Message = tuple[int, int, bytes]  # type, flags, body


def _attr(kind: int, payload: bytes) -> bytes:
    padding = bytes(-len(payload) % 4)
    return struct.pack("=HH", 4 + len(payload), kind) + payload + padding


def _text(kind: int, text: str) -> bytes:
    return _attr(kind, text.encode() + b"\0")


def _u32(kind: int, value: int) -> bytes:
    return _attr(kind, struct.pack("=I", value))


def _link(index: int, attributes: bytes = b"", *, up: bool = False) -> bytes:
    return _IFINFO.pack(0, 0, index, up, up) + attributes


def _veth(number: int, netns_fd: int) -> _Message:
    own = _text(3, f"wl{number}") + _u32(4, _MTU) + _attr(1, _MAC) + _u32(27, _GROUP)
    return _NEWLINK, _NEW, _link(_FIRST_INDEX + number, own + _peer_of_veth(netns_fd))


def _peer_of_veth(netns_fd: int) -> bytes:
    peer = _text(3, "eth0") + _u32(28, netns_fd) + _u32(4, _MTU)
    return _attr(18, _text(1, "veth") + _attr(2, _attr(1, _link(_PEER, peer))))


def _route(
    target: _Address | None,
    index: int,
    *,
    family: int,
    protocol: int,
    gateway: _Address | None = None,
    source: _Address | None = None,
) -> _Message:
    scope = _LINK_SCOPE if gateway is None and family == _INET else 0
    bits = 0 if target is None else target.max_prefixlen
    body = _RTMSG.pack(family, bits, 0, 0, _MAIN, protocol, scope, _UNICAST, 0)
    for kind, address in ((1, target), (5, gateway), (7, source)):
        if address is not None:
            body += _attr(kind, address.packed)
    return _NEWROUTE, _NEW, body + _u32(4, index)


def _addresses(number: int, versions: Sequence[int]) -> list[tuple[int, _Address, _Address]]:
    """Return family, address and first hop of each."""
    found: list[tuple[int, _Address, _Address]] = []
    if 4 in versions:
        found.append((_INET, _NET4 + number, _HOP4))
    if 6 in versions:
        found.append((_INET6, _NET6 + number, _HOP6))
    return found


def host_batch(number: int, netns_fd: int, versions: Sequence[int]) -> bytes:
    """Return the batch for the host."""
    index = _FIRST_INDEX + number
    attributes = _attr(20, f"wk-{number:08}".encode())
    if 6 not in versions:
        # Otherwise the kernel gives the link an IPv6 address, and its removal
        # takes another grace period.
        attributes += _attr(26, _attr(_INET6, _attr(8, bytes([_GEN_MODE_NONE]))))
    alias = _link(index, attributes, up=True)
    messages: list[_Message] = [_veth(number, netns_fd), (_NEWLINK, 0, alias)]
    for family, ip, _ in _addresses(number, versions):
        messages.append(_route(ip, index, family=family, protocol=_WORKLOAD))
    return encode(messages)


def inner_batch(number: int, versions: Sequence[int]) -> bytes:
    """Return the batch for the namespace."""
    messages: list[_Message] = [(_NEWLINK, 0, _link(i, up=True)) for i in (_LOOPBACK, _PEER)]
    for family, ip, hop in _addresses(number, versions):
        flags = _NODAD if family == _INET6 else 0
        body = _IFADDR.pack(family, ip.max_prefixlen, flags, 0, _PEER)
        messages.append((_NEWADDR, _NEW, body + _attr(2, ip.packed) + _attr(1, ip.packed)))
        messages.append(_route(hop, _PEER, family=family, protocol=_STATIC))
        source = ip if family == _INET else None
        messages.append(
            _route(None, _PEER, family=family, protocol=_STATIC, gateway=hop, source=source)
        )
    return encode(messages)


def delete_batch(index: int) -> bytes:
    """Return the batch that removes one link."""
    return encode([(_DELLINK, 0, _link(index))])


def host_index(number: int) -> int:
    """Return the index of the link that host_batch makes."""
    return _FIRST_INDEX + number


def encode(messages: Sequence[_Message]) -> bytes:
    """Encode one datagram; sequence numbers are positions, from 1."""
    parts = []
    for position, (kind, flags, body) in enumerate(messages, 1):
        ack = _ACK if position == len(messages) else 0
        header = _HEADER.pack(16 + len(body), kind, _REQUEST | ack | flags, position, 0)
        parts.append(header + body + bytes(-len(body) % 4))
    return b"".join(parts)


def split(data: bytes) -> list[bytes]:
    """Return the messages of a datagram."""
    messages = []
    while data:
        length = (_HEADER.unpack_from(data)[0] + 3) & ~3
        messages.append(data[:length])
        data = data[length:]
    return messages


def acknowledgement(data: bytes) -> tuple[int, int]:
    """Return sequence number and errno of a datagram's first message."""
    _, kind, _, sequence, _ = _HEADER.unpack_from(data)
    if kind != _ERROR:
        return 0, 0
    return sequence, -struct.unpack_from("=i", data, 16)[0]


def last_sequence(data: bytes) -> int:
    """Return the sequence number of a datagram's last message."""
    return int(_HEADER.unpack_from(split(data)[-1])[3])


def new_link_index(data: bytes) -> int | None:
    """Return the index of the veth that a datagram makes, if any."""
    for message in split(data):
        _, kind, flags, _, _ = _HEADER.unpack_from(message)
        if kind == _NEWLINK and flags & _NEW == _NEW:
            return int(_IFINFO.unpack_from(message, 16)[2])
    return None


def netns_fd(data: bytes) -> int:
    """Return the descriptor of the namespace in which a peer is created."""
    for message in split(data):
        found = _find_netns_fd(message[32:])
        if found is not None:
            return found
    raise ValueError("no file of a namespace in the message")


def _find_netns_fd(attributes: bytes) -> int | None:
    """In IFLA_LINKINFO, IFLA_INFO_DATA, VETH_INFO_PEER."""
    info = _find(_find(attributes, 18), 2)
    value = _find(_find(info, 1)[16:], 28)
    return struct.unpack("=I", value)[0] if value else None


def _find(attributes: bytes, wanted: int) -> bytes:
    while len(attributes) >= 4:
        length, kind = struct.unpack_from("=HH", attributes)
        if length < 4:
            break
        if kind & 0x3FFF == wanted:
            return attributes[4:length]
        attributes = attributes[(length + 3) & ~3 :]
    return b""


def with_netns(data: bytes, before: int, after: int) -> bytes:
    """Return the datagram with another descriptor of the peer's namespace."""
    old = _u32(28, before)
    if data.count(old) != 1:
        raise ValueError(f"file {before} is {data.count(old)} times in the message")
    return data.replace(old, _u32(28, after))


def requests_in(data: bytes) -> int:
    """Return the number of messages in a datagram."""
    return len(split(data))
