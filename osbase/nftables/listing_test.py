# SPDX-License-Identifier: Apache-2.0
"""What is listed is what was made, also by nft(8)."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from osbase.netlink.errors import BatchError, DumpInterrupted, ProtocolError
from osbase.netlink.message import Message
from osbase.netlink.transport import NetlinkSocket
from osbase.nftables import Nftables, digest, elements, listing
from osbase.nftables.elements import Change, encode, encode_range
from osbase.nftables.listing import Listed

TABLE = """
table inet t {
    map ports { type inet_proto . inet_service : ipv4_addr; size 131072; }
    set ranges { type mark . ipv4_addr . inet_service; flags interval; size 65536; }
    map verdicts { type mark : verdict; size 16; }
    chain c { }
}
"""
MARK = (7).to_bytes(4)


@pytest.fixture
def sock() -> Iterator[NetlinkSocket]:
    with Nftables() as nft, digest.open_socket() as opened:
        nft.apply(TABLE)
        yield opened
        nft.apply("flush ruleset")


def listed(sock: NetlinkSocket, name: str) -> list[Listed]:
    found = listing.elements(sock, "inet", "t", name)
    assert found is not None
    return sorted(found, key=lambda one: one.key)


def port(number: int) -> bytes:
    return number.to_bytes(2) + b"\0\0"


def key(number: int) -> bytes:
    return b"\6\0\0\0" + port(number)


def address(number: int) -> bytes:
    return (0x0A000000 + number).to_bytes(4)


def test_what_nft_made(sock: NetlinkSocket) -> None:
    with Nftables() as nft:
        nft.apply(
            'add element inet t ports { tcp . 80 comment "x" : 10.0.0.1 }\n'
            "add element inet t ranges { 7 . 10.0.0.0/30 . 80-90, 7 . 10.0.0.9 . 1 }\n"
            "add element inet t verdicts { 7 : jump c }"
        )
    assert listed(sock, "ports") == [Listed(key(80), data=address(1))]
    assert listed(sock, "ranges") == [
        Listed(MARK + address(0) + port(80), MARK + address(3) + port(90)),
        Listed(MARK + address(9) + port(1), MARK + address(9) + port(1)),
    ]
    assert listed(sock, "verdicts") == [Listed((7).to_bytes(4, sys.byteorder))]


def test_there_is_no_such_set(sock: NetlinkSocket) -> None:
    assert listing.elements(sock, "inet", "t", "none") is None
    assert listing.elements(sock, "inet", "none", "ports") is None


def test_intervals_come_back_as_they_were_made(sock: NetlinkSocket) -> None:
    made = [
        Listed(MARK + address(4 * n) + port(10), MARK + address(4 * n + 2) + port(20))
        for n in range(1000)
    ]
    ranges = Change("inet", "t", "ranges", [encode_range(one.key, one.last) for one in made])
    elements.create(sock, [ranges])
    assert listed(sock, "ranges") == made
    elements.destroy(sock, [ranges])
    assert listed(sock, "ranges") == []


def test_an_exchange_is_one_transaction(sock: NetlinkSocket) -> None:
    """A key gets other data, an interval gives way to one that overlaps it, and
    what is there already, or gone, is no error.
    """

    def ports(*numbers: int, to: int) -> Change:
        return Change("inet", "t", "ports", [encode(key(n), address(to)) for n in numbers])

    def ranges(*spans: tuple[int, int]) -> Change:
        made = [
            encode_range(MARK + address(a) + port(1), MARK + address(b) + port(9)) for a, b in spans
        ]
        return Change("inet", "t", "ranges", made)

    elements.create(sock, [ports(1, 2, 3, to=1), ranges((0, 10), (20, 30))])
    before = digest.generation(sock)
    gone, new = [ports(1, 9, to=0), ranges((0, 10), (50, 60))], [ports(1, 3, to=1), ranges((5, 15))]
    for _ in range(2):
        elements.exchange(sock, [*gone, ranges((5, 15))], [*new, ranges((20, 30))])
        assert [one.data for one in listed(sock, "ports")] == [address(1)] * 3
        spans = [(one.key[4:8], one.last[4:8]) for one in listed(sock, "ranges")]
        assert spans == [(address(5), address(15)), (address(20), address(30))]
    assert digest.generation(sock) == before + 2
    elements.exchange(sock, [ports(2, to=0)], [ports(2, to=7)])
    assert [one.data for one in listed(sock, "ports")] == [address(1), address(7), address(1)]
    for refused in ([ports(3, to=2)], [ranges((1, 6))]):
        with pytest.raises(BatchError, match=r"EEXIST|ENOTEMPTY"):
            elements.exchange(sock, [ports(1, 2, to=0)], refused)
    assert len(listed(sock, "ports")) == 3
    elements.exchange(sock, [], [ports(8, to=8)], emptied=[ports(to=0), ranges()])
    assert [one.key for one in listed(sock, "ports")] == [key(8)]
    assert listed(sock, "ranges") == []


def test_fifty_thousand_at_once(sock: NetlinkSocket) -> None:
    """In both directions; also without the privilege of a large buffer."""

    def all_to(number: int) -> list[Change]:
        return [
            Change("inet", "t", "ports", [encode(key(n), address(number)) for n in range(50_000)])
        ]

    before = digest.generation(sock)
    elements.exchange(sock, [], all_to(1))
    elements.exchange(sock, all_to(1), all_to(2))
    assert digest.generation(sock) == before + 2
    found = listed(sock, "ports")
    assert [one.key for one in found] == [key(n) for n in range(50_000)]
    assert {one.data for one in found} == {address(2)}


def test_others_commit_meanwhile(sock: NetlinkSocket) -> None:
    """A list is whole, or there is an error: none is missing."""
    wanted = [Listed(key(n), data=address(n)) for n in range(20_000)]
    elements.create(
        sock, [Change("inet", "t", "ports", [encode(o.key, data=o.data) for o in wanted])]
    )
    done = threading.Event()

    def commit() -> None:
        with digest.open_socket() as other:
            for n in range(60_000, 60_020):
                elements.create(other, [Change("inet", "t", "ports", [encode(key(n), address(0))])])
                done.wait(0.02)

    thread = threading.Thread(target=commit)
    thread.start()
    try:
        for _ in range(5):
            with contextlib.suppress(DumpInterrupted):
                assert set(listed(sock, "ports")).issuperset(wanted)
    finally:
        done.set()
        thread.join()
    assert len(listed(sock, "ports")) == 20_020


@given(st.binary(max_size=200), st.sampled_from([0xA0C, 0xA0D, 2]))
def test_garbage(body: bytes, kind: int) -> None:
    message = Message(kind, 0, 1, 0, body)
    try:
        for one in listing.parse(message):
            assert one.key
    except ProtocolError:
        pass
