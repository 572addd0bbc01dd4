# SPDX-License-Identifier: Apache-2.0
"""Parsing entries of the table, and messages that are not entries."""

import contextlib
from collections import Counter
from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from osbase.conntrack import sources
from osbase.netlink import attrs
from osbase.netlink.errors import ProtocolError
from osbase.netlink.message import Message

# A UDP flow from 127.0.0.1, as a kernel (6.18) dumped it.
REAL = bytes.fromhex(
    "02000000340001801400018008000100"
    "7f00000108000200"
    "7f0000011c00028005000100110000000600020096a60000060003000a870000"
    "3400028014000180080001007f000001080002007f0000011c000280050001001100000006000200"
    "0a8700000600030096a600000800030000000008080008000000000008000c0024d1aa24"
    "08000b0000000001080007000000001d"
)


def entry(source: IPv4Address | IPv6Address, *before: bytes) -> bytes:
    """Build an entry from `source`. before: attributes that come first."""
    kind = 1 if source.version == 4 else 3
    ends = attrs.nested(
        1, attrs.attr(kind, source.packed), attrs.attr(kind + 1, bytes(len(source.packed)))
    )
    return bytes(4) + b"".join(before) + attrs.nested(1, ends, attrs.nested(2))


def message(body: bytes, kind: int = 0x100) -> Message:
    """Return a message of a dump."""
    return Message(kind, 2, 1, 1, body)


def test_a_real_entry() -> None:
    assert sources.source_of(message(REAL)) == IPv4Address("127.0.0.1").packed


@pytest.mark.parametrize("source", ["192.0.2.1", "2001:db8::1"])
@pytest.mark.parametrize(
    "before", [(), (attrs.u32(8, 5),), (attrs.nested(2, attrs.nested(1, attrs.u32(1, 7))),)]
)
def test_both_families_in_any_order(source: str, before: tuple[bytes, ...]) -> None:
    address = ip_address(source)
    assert sources.source_of(message(entry(address, *before))) == address.packed


def test_what_is_no_entry_is_an_error() -> None:
    whole = entry(IPv4Address("192.0.2.1"))
    for body, kind in (
        (whole, 0x101),
        (b"", 0x100),
        (bytes(4), 0x100),
        (whole[:19], 0x100),
        (bytes(4) + attrs.nested(1, attrs.nested(2)), 0x100),
        (bytes(4) + attrs.nested(1, attrs.nested(1, attrs.attr(1, bytes(5)))), 0x100),
        (bytes(4) + attrs.nested(1, attrs.nested(1, attrs.u32(9, 1))), 0x100),
    ):
        with pytest.raises(ProtocolError):
            sources.source_of(message(body, kind))


@given(st.binary(max_size=80), st.integers(0, 70))
def test_garbage_is_a_protocol_error(data: bytes, keep: int) -> None:
    """The garbage is at the start, or follows some bytes of a real entry."""
    with contextlib.suppress(ProtocolError):
        assert len(sources.source_of(message(REAL[:keep] + data))) in (4, 16)


@given(st.lists(st.sampled_from(["192.0.2.1", "192.0.2.2", "fd00::1", "fd00::2"])))
def test_a_census_counts(found: list[str]) -> None:
    census = sources.take(message(entry(ip_address(one))) for one in found)
    assert census.entries == Counter(ip_address(one) for one in found)
    assert (census.total, census.others) == (len(found), 0)


def test_a_census_is_bounded() -> None:
    """Sources beyond the limit are counted together, earlier ones by name."""
    found = [IPv4Address(f"192.0.2.{number}") for number in (1, 2, 3, 1, 4, 2, 1)]
    census = sources.take((message(entry(one)) for one in found), most=2)
    assert census.entries == {IPv4Address("192.0.2.1"): 3, IPv4Address("192.0.2.2"): 2}
    assert (census.others, census.total) == (2, 7)


def translated(source: str, to: str, port: int, by: str, protocol: int = 6) -> Message:
    """Build an entry as the kernel writes it; answers go to `by`."""
    a, b, c = (ip_address(one).packed for one in (source, to, by))
    kind = 1 if len(a) == 4 else 3

    def ends(first: bytes, second: bytes, *ports: int) -> bytes:
        proto = [attrs.attr(1, bytes([protocol]))]
        proto += [attrs.attr(2 + n, one.to_bytes(2)) for n, one in enumerate(ports)]
        addresses = attrs.nested(1, attrs.attr(kind, first), attrs.attr(kind + 1, second))
        return addresses + attrs.nested(2, *proto)

    return message(
        bytes(4) + attrs.nested(1, ends(a, b, 4000, port)) + attrs.nested(2, ends(b, c, port, 1024))
    )


@pytest.mark.parametrize(
    ("pod", "to", "node"),
    [("10.0.0.7", "192.0.2.1", "192.0.2.9"), ("fd00::7", "2001:db8::1", "2001:db8::9")],
)
def test_crowds_at_a_destination(pod: str, to: str, node: str) -> None:
    """Only translated flows count, each port and protocol separately."""
    found = [translated(pod, to, 443, node)] * 3 + [translated(pod, to, 80, node)] * 2
    found += [translated(pod, to, 443, node, protocol=17)] * 2 + [translated(pod, to, 53, pod)] * 9
    census = sources.take(found)
    assert census.crowds == {ip_address(pod): 3}
    assert census.entries == {ip_address(pod): 16}
    real = sources.take([message(REAL)])
    assert real.crowds == {}
