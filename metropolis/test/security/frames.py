# SPDX-License-Identifier: Apache-2.0
"""Ethernet frames around the packets of rules.testing, and back. Pure."""

from __future__ import annotations

import struct
from ipaddress import IPv6Address

from metropolis.node.core.network.rules.testing import packets
from metropolis.node.core.network.rules.testing.packets import Packet

_TCP_FLAGS = {
    "F": packets.FIN, "S": packets.SYN, "R": packets.RST, "P": packets.PSH, "A": packets.ACK,
}  # fmt: skip


def mac_bytes(text: str) -> bytes:
    """Parse a link address."""
    return bytes.fromhex(text.replace(":", ""))


def ethernet(to: bytes, source: bytes, data: bytes, kind: int = 0) -> bytes:
    """Return a frame. kind: 0: IPv4 or IPv6, as the packet is."""
    of_packet = packets.ETHER_IPV4 if data[0] >> 4 == 4 else packets.ETHER_IPV6
    return to + source + (kind or of_packet).to_bytes(2) + data


def arp_request(mac: bytes, sender: str, target: str) -> bytes:
    """Return an ARP request for a target."""
    asked = packets.arp(sender, target, mac=mac)
    return ethernet(b"\xff" * 6, mac, asked, packets.ETHER_ARP)


def solicitation(mac: bytes, sender: str, target: str) -> bytes:
    """Return a neighbour solicitation, to the solicited-node address."""
    to = packets.solicited(target)
    # RFC 2464, section 7
    group = b"\x33\x33" + IPv6Address(to).packed[12:]
    return ethernet(group, mac, packets.neighbour(sender, to, target, mac=mac))


def read(frame: bytes) -> Packet | None:
    """Return the IP packet in a frame; None: there is none, or only a part."""
    if int.from_bytes(frame[12:14]) not in (packets.ETHER_IPV4, packets.ETHER_IPV6):
        return None
    return read_packet(frame[14:])


def read_packet(data: bytes) -> Packet | None:
    """Parse an IP packet, possibly truncated; None: the header is, too."""
    least = 40 if data[:1] >= b"\x60" else 20
    return packets.parse(data) if len(data) >= least else None


def _transport(packet: Packet) -> bytes:
    start = 40 if packet.version == 6 else 4 * (packet.data[0] & 15)
    return packet.data[start:]


def sequence(packet: Packet) -> tuple[int, int]:
    """Return the own and the acknowledged number of a TCP segment."""
    own, acknowledged = struct.unpack_from("!II", _transport(packet), 4)
    return own, acknowledged


def payload(packet: Packet) -> bytes:
    """Return the payload of TCP or UDP, or else of IP."""
    body = _transport(packet)
    if packet.protocol == packets.TCP:
        return body[body[12] >> 4 << 2 :]
    return body[8:] if packet.protocol == packets.UDP else body


def to_text(packet: Packet) -> str:
    """Return a line about a packet."""
    kind = {packets.TCP: "TCP", packets.UDP: "UDP"}.get(packet.protocol)
    if kind is None:
        return f"{packet.source} > {packet.to} protocol {packet.protocol}"
    flags = "".join(name for name, flag in _TCP_FLAGS.items() if packet.flags & flag)
    ends = f"{packet.source}.{packet.ports[0]} > {packet.to}.{packet.ports[1]}"
    return f"{ends} {kind} {flags}".rstrip()
