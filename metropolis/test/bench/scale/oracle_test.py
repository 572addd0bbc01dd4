# SPDX-License-Identifier: Apache-2.0
"""The actual and the expected state of the kernel."""

import base64
from ipaddress import ip_address, ip_network

import pytest

from metropolis.test.bench.scale.oracle import OracleError, Peer, differences, parse_dump

A, B = bytes(range(32)), bytes(range(1, 33))
PEER = Peer(
    (ip_address("198.18.0.7"), 51820),
    frozenset({ip_network("10.128.7.0/24"), ip_network("fd00:200:0:7::/64")}),
)


def _line(key: bytes, endpoint: str, allowed: str) -> str:
    text = base64.b64encode(key).decode()
    return "\t".join([text, "(none)", endpoint, allowed, "0", "0", "0", "off"])


DEVICE = "\t".join(["private", "public", "51820", "off"])


def test_a_dump_is_read() -> None:
    dump = "\n".join(
        [
            DEVICE,
            _line(A, "198.18.0.7:51820", "fd00:200:0:7::/64,10.128.7.0/24"),
            _line(B, "[2001:2::3]:51820", "(none)"),
        ]
    )
    assert parse_dump(dump) == {
        A: PEER,
        B: Peer((ip_address("2001:2::3"), 51820), frozenset()),
    }


def test_no_peers() -> None:
    assert parse_dump(DEVICE) == {}
    assert parse_dump("") == {}


@pytest.mark.parametrize(
    "line",
    [
        "x",
        _line(b"short", "(none)", "(none)"),
        _line(A, "here:1", "(none)"),
        _line(A, "(none)", "x"),
    ],
)
def test_what_is_not_understood_is_an_error(line: str) -> None:
    with pytest.raises(OracleError):
        parse_dump(f"{DEVICE}\n{line}")


def test_differences_say_what_is_wrong() -> None:
    assert differences({A: PEER}, {A: PEER}) == []
    missing, extra = differences({A: PEER}, {B: Peer(None, frozenset())})
    assert missing.startswith("0001020304050607: is absent, should be at 198.18.0.7 port 51820")
    assert extra == "0102030405060708: is at nowhere with nothing, should be absent"
    assert len(differences({A: PEER}, {A: Peer(PEER.endpoint, frozenset())})) == 1
