# SPDX-License-Identifier: Apache-2.0
"""Flows of a real kernel's table, in a fresh namespace."""

import contextlib
import socket
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from osbase.conntrack import marks
from osbase.netlink.errors import ProtocolError
from osbase.netlink.message import Message
from osbase.nftables import Nftables

FAMILIES = pytest.mark.parametrize("to", ["127.0.0.2", "fd00::2"])
tracked = pytest.mark.usefixtures("tracked")


def send(to: str, port: int, mark: int) -> None:
    """Begin a UDP flow with a mark."""
    with (
        Nftables() as nft,
        socket.socket(socket.AF_INET6 if ":" in to else socket.AF_INET, socket.SOCK_DGRAM) as sock,
    ):
        nft.apply(f"flush chain inet t c; add rule inet t c ct mark set {mark}")
        sock.bind((to, 0))
        sock.sendto(b"", (to, port))


def found(mark: int, mask: int) -> set[tuple[str, int, int, int]]:
    with marks.open_socket() as sock:
        return {
            (str(one.destination), one.protocol, one.port, one.mark)
            for one in marks.flows(sock, mark, mask)
        }


@tracked
@FAMILIES
def test_by_mark_and_mask(to: str) -> None:
    for port, mark in ((81, 0x50007), (82, 0x50008), (83, 0x60007), (84, 0)):
        send(to, port, mark)
    five, six = (to, 17, 81, 0x50007), (to, 17, 83, 0x60007)
    eight, none = (to, 17, 82, 0x50008), (to, 17, 84, 0)
    assert found(0x50000, 0xFFFF0000) == {five, eight}
    assert found(7, 0xFFFF) == {five, six}
    assert found(0x50007, 0xFFFFFFFF) == {five}
    assert found(0, 0xFFFFFFFF) == {none}
    assert found(*marks.ALL) == {five, six, eight, none}


@tracked
@FAMILIES
def test_one_by_one(to: str) -> None:
    """Only these; and a flow that has ended is no error."""
    for port in (81, 82, 83):
        send(to, port, 9)
    with marks.open_socket() as sock:
        by_port = {one.port: one for one in marks.flows(sock, *marks.ALL)}
        for _ in range(2):
            marks.change(sock, [marks.deletion(by_port[81]), marks.marking(by_port[82], 10)])
    assert {(port, mark) for _, _, port, mark in found(*marks.ALL)} == {(82, 10), (83, 9)}
    with marks.open_socket() as sock:
        marks.change(sock, [marks.marking(by_port[81], 10)])
    assert len(found(*marks.ALL)) == 2, "marking makes no entry"


@tracked
def test_the_port_is_that_after_translation() -> None:
    with Nftables() as nft:
        nft.apply(
            "table ip t2 { chain n { type nat hook output priority dstnat;"
            " udp dport 81 dnat to 127.0.0.2:91; }; }"
        )
        send("127.0.0.1", 81, 3)
        nft.apply("delete table ip t2")
    with marks.open_socket() as sock:
        (one,) = marks.flows(sock, 3, 0xFFFFFFFF)
    assert (one.source, one.destination, one.port) == (
        ip_address("127.0.0.1"),
        ip_address("127.0.0.2"),
        91,
    )


@given(st.binary(max_size=200))
def test_garbage(body: bytes) -> None:
    with contextlib.suppress(ProtocolError):
        marks.parse(Message(1 << 8, 0, 1, 0, body))
