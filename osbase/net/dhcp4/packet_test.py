# SPDX-License-Identifier: Apache-2.0
"""The codec: decode reverses encode, and garbage is a PacketError."""

from __future__ import annotations

import contextlib
import struct
from ipaddress import IPv4Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from osbase.net.dhcp4 import packet
from osbase.net.dhcp4.packet import Message, PacketError, Type

_ADDRESSES = st.integers(0, 2**32 - 1).map(IPv4Address)
_OPTIONS = st.dictionaries(
    st.integers(1, 254).filter(lambda n: n not in (52, 53)), st.binary(max_size=600), max_size=6
)
_MESSAGES = st.builds(
    Message,
    request=st.booleans(),
    kind=st.sampled_from(Type),
    xid=st.integers(0, 2**32 - 1),
    mac=st.binary(min_size=6, max_size=6),
    secs=st.integers(0, 65535),
    client=_ADDRESSES,
    yours=_ADDRESSES,
    options=_OPTIONS,
)

OFFER = Message(False, Type.OFFER, 7, b"\x02abcde", options={1: b"\xff\xff\xff\0"}).encode()


@given(_MESSAGES)
def test_decode_undoes_encode(message: Message) -> None:
    """Also for options longer than 255 bytes."""
    assert packet.decode(message.encode()) == message


@given(st.binary(max_size=600))
def test_decode_survives_garbage(data: bytes) -> None:
    """Any bytes: a message or a PacketError."""
    with contextlib.suppress(PacketError):
        packet.decode(data)


@given(st.data(), st.integers(0, len(OFFER) - 1))
def test_decode_survives_damage(data: st.DataObject, cut: int) -> None:
    """A real message, cut, with bytes overwritten."""
    damaged = bytearray(OFFER[: len(OFFER) - cut])
    for _ in range(data.draw(st.integers(0, 8))):
        if damaged:
            damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(PacketError):
        packet.decode(bytes(damaged))


@given(_ADDRESSES, _ADDRESSES, st.binary(max_size=600))
def test_unframe_undoes_frame(source: IPv4Address, to: IPv4Address, payload: bytes) -> None:
    """Except the ports, which are a client's."""
    framed = bytearray(packet.frame(source, to, payload))
    # Turn the request around; swapping ports keeps the checksum.
    framed[20:24] = struct.pack("!HH", packet.SERVER_PORT, packet.CLIENT_PORT)
    assert packet.unframe(bytes(framed)) == payload
    assert packet.sender_of(bytes(framed)) == source


@given(st.binary(max_size=100), st.booleans())
def test_unframe_survives_garbage(data: bytes, ready: bool) -> None:
    """Any bytes: a payload or a PacketError."""
    for candidate in (data, b"\x45" + data):
        with contextlib.suppress(PacketError):
            packet.unframe(candidate, checksum_ready=ready)


def _reply() -> bytearray:
    framed = bytearray(packet.frame(IPv4Address("192.0.2.1"), IPv4Address("192.0.2.9"), b"x" * 9))
    framed[20:24] = struct.pack("!HH", packet.SERVER_PORT, packet.CLIENT_PORT)
    return framed


@pytest.mark.parametrize("place", [8, 12, 16, 24, 29, 36])
def test_a_flipped_bit_is_found(place: int) -> None:
    """In either header or in the payload."""
    framed = _reply()
    framed[place] ^= 0x10
    with pytest.raises(PacketError):
        packet.unframe(bytes(framed))


def test_missing_checksum_is_accepted_only_on_request() -> None:
    """Between namespaces nothing fills in the UDP checksum."""
    framed = _reply()
    framed[26] ^= 0xFF
    assert packet.unframe(bytes(framed), checksum_ready=False) == b"x" * 9
    with pytest.raises(PacketError, match="UDP checksum"):
        packet.unframe(bytes(framed))


def test_overloaded_fields_are_read() -> None:
    """Options may continue in the file and server name fields."""
    message = bytearray(Message(False, Type.ACK, 1, b"\x02abcde").encode())
    message[108:112] = bytes([3, 2, 1, 2])  # file: option 3
    message[112:115] = bytes([52, 0, 255])  # and an overload option, which has no effect here
    message[44:47] = bytes([6, 1, 9])  # server name: option 6
    message[47] = 255
    message[240:247] = bytes([53, 1, 5, 52, 1, 3, 255])
    assert packet.decode(bytes(message)).options == {3: b"\x01\x02", 6: b"\x09"}


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (b"\xff", "message type missing"),
        (b"\x35\x01\x09\xff", "message type 09"),
        (b"\x35\x02\x05\x05\xff", "message type 0505"),
        (b"\x35\x01\x05\x34\x01\x07\xff", "overload of 07"),
        (b"\x35\x01\x05\x03\xfa", "option 3 is cut off"),
        (b"\x35", "option 53 is cut off"),
    ],
)
def test_refusals_say_why(options: bytes, reason: str) -> None:
    """The error names the invalid part."""
    with pytest.raises(PacketError, match=reason):
        packet.decode(OFFER[:240] + options)
