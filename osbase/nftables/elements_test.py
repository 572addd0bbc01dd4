# SPDX-License-Identifier: Apache-2.0
"""What nft(8) shows of elements that were made without libnftables."""

from __future__ import annotations

import errno
import json
import subprocess
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from osbase.netlink.errors import BatchError
from osbase.netlink.transport import NetlinkSocket
from osbase.nftables import Nftables, digest, elements
from osbase.nftables.elements import Change, encode

TABLE = """
table inet t {
    map ports { type inet_proto . inet_service : ipv4_addr . inet_service; size 131072; }
    set small { type inet_service; size 3; }
}
"""
TCP, UDP = b"\6\0\0\0", b"\x11\0\0\0"


@pytest.fixture
def sock() -> Iterator[NetlinkSocket]:
    with Nftables() as nft, digest.open_socket() as opened:
        nft.apply(TABLE)
        yield opened
        nft.apply("flush ruleset")


def port(number: int) -> bytes:
    return number.to_bytes(2) + b"\0\0"


def led(number: int, comment: str = "") -> bytes:
    return encode(TCP + port(number), b"\x0a\0\0\1" + port(8080), comment)


def ports(*encoded: bytes) -> Change:
    return Change("inet", "t", "ports", encoded)


def small(*numbers: int) -> Change:
    return Change("inet", "t", "small", [encode(number.to_bytes(2)) for number in numbers])


def shown(kind: str, name: str) -> Any:
    command = ["nft", "-j", "list", kind, "inet", "t", name]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    (found,) = (one[kind] for one in json.loads(out)["nftables"] if kind in one)
    return found.get("elem", [])


def test_an_element_is_as_nft_makes_it(sock: NetlinkSocket) -> None:
    elements.create(sock, [ports(led(80, "x" * 128), led(81))])
    first = {"elem": {"val": {"concat": ["tcp", 80]}, "comment": "x" * 128}}
    to = {"concat": ["10.0.0.1", 8080]}
    assert sorted(shown("map", "ports"), key=str) == sorted(
        [[first, to], [{"concat": ["tcp", 81]}, to]], key=str
    )
    with Nftables() as nft:
        nft.apply("delete element inet t ports { tcp . 80, tcp . 81 }")


def test_all_or_none(sock: NetlinkSocket) -> None:
    elements.create(sock, [ports(led(80)), small(1)])
    refused = {
        errno.EEXIST: [small(2), ports(led(81), led(80))],
        errno.ENOENT: [small(2), Change("inet", "t", "absent", [encode(b"\0\1")])],
        errno.ENFILE: [ports(led(81)), small(2, 3, 4)],
        errno.EINVAL: [small(2), ports(encode(port(1), bytes(8)))],
    }
    before = shown("map", "ports"), shown("set", "small")
    for number, changes in refused.items():
        with pytest.raises(BatchError) as caught:
            elements.create(sock, changes)
        assert caught.value.errors[0].errno == number
        assert (shown("map", "ports"), shown("set", "small")) == before
    with pytest.raises(BatchError, match="ENOENT"):
        elements.create(sock, [Change("ip", "t", "ports", [led(1)])])
    # Answers to what was refused do not disturb what comes next.
    elements.create(sock, [small(2, 3)])
    assert shown("set", "small") == [1, 2, 3]


def test_what_is_gone_is_no_error(sock: NetlinkSocket) -> None:
    elements.create(sock, [ports(led(80), led(81))])
    for _ in range(2):
        elements.destroy(sock, [ports(encode(TCP + port(80)), encode(UDP + port(80)))])
        assert [key for key, _ in shown("map", "ports")] == [{"concat": ["tcp", 81]}]
    with pytest.raises(BatchError, match="ENOENT"):
        elements.destroy(sock, [ports(encode(TCP + port(81))), Change("inet", "u", "s", [led(1)])])
    assert len(shown("map", "ports")) == 1


def test_nothing_is_no_transaction(sock: NetlinkSocket) -> None:
    before = digest.generation(sock)
    elements.create(sock, [])
    elements.destroy(sock, [])
    assert digest.generation(sock) == before


def test_as_many_as_there_are_ports(sock: NetlinkSocket) -> None:
    """In one transaction; more than one send may have by default."""
    before = digest.generation(sock)
    elements.create(sock, [ports(*(led(number, f"{number:060}") for number in range(1, 65536)))])
    assert digest.generation(sock) == before + 1
    comments = digest.element_comments(sock, "inet", "t", "ports") or ()
    assert len(comments) == 65535
    elements.destroy(sock, [ports(*(encode(TCP + port(n)) for n in range(1, 65536)))])
    assert shown("map", "ports") == []


@pytest.mark.parametrize("count", [200, 2048])
def test_a_large_transaction_is_refused(sock: NetlinkSocket, count: int) -> None:
    """By all its messages, which the answers do not repeat."""
    wanted = [led(number, "x" * 100) for number in range(1, count + 1)]
    elements.create(sock, [ports(*wanted[::100])])
    with pytest.raises(BatchError) as refused:
        elements.create(sock, [ports(*wanted)])
    assert refused.value.errors[0].errno == errno.EEXIST
    elements.destroy(sock, [ports(*wanted[::100])])


def test_a_full_set_refuses_many(sock: NetlinkSocket) -> None:
    many = [encode(number.to_bytes(2), comment="x" * 100) for number in range(1, 4000)]
    with pytest.raises(BatchError) as refused:
        elements.create(sock, [Change("inet", "t", "small", many)])
    assert refused.value.errors[0].errno == errno.ENFILE


def test_transactions_at_once() -> None:
    """The kernel takes one after the other, and answers each."""
    with Nftables() as nft:
        nft.apply(TABLE)

    def make(first: int) -> None:
        with digest.open_socket() as sock:
            for number in range(first, first + 200):
                elements.create(sock, [ports(led(number))])

    threads = [threading.Thread(target=make, args=(1 + 1000 * n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(shown("map", "ports")) == 1600
    with Nftables() as nft:
        nft.apply("flush ruleset")
