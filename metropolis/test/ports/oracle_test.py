# SPDX-License-Identifier: Apache-2.0
"""The claim by hand, against the oracle's; and SCTP's packets."""

from collections import Counter
from typing import Final

import pytest

from metropolis.test.ports import oracle, sctp
from metropolis.test.ports.matrix import SETTINGS, Selection, listed
from metropolis.test.ports.oracle import (
    At,
    By,
    Cell,
    Client,
    HostIP,
    Mapping,
    Port,
    Setting,
    Source,
)

BARE: Final = Setting(access=False, listening=False)
LISTENING: Final = Setting(access=True, listening=True)
ANY: Final = Mapping(HostIP.ANY)


def answer(setting: Setting, client: Client, mapping: Mapping, at: At, version: int) -> str:
    found = oracle.expected(Cell(setting, client, mapping, at, version, "tcp"))
    return f"{found.by} {found.source}"


@pytest.mark.parametrize(
    ("client", "at", "version", "expected"),
    [
        (Client.OUTSIDE, At.NODE, 4, "pod kept"),
        (Client.OUTSIDE, At.SECOND, 6, "pod kept"),
        (Client.OTHER, At.NODE, 6, "pod kept"),
        (Client.NEIGHBOUR, At.NODE, 4, "pod kept"),
        (Client.SELF, At.NODE, 4, "pod hop"),
        (Client.SELF, At.SECOND, 6, "pod rewritten"),
        (Client.NODE, At.NODE, 4, "pod kept"),
        (Client.NODE, At.LOOPBACK, 4, "pod hop"),
        (Client.NODE, At.LOOPBACK, 6, "refused kept"),
        (Client.NODE, At.LOOPBACK_53, 4, "refused kept"),
        (Client.NODE, At.HOP, 4, "refused kept"),
        (Client.NEIGHBOUR, At.HOP, 4, "silent kept"),
        (Client.OTHER, At.LINK_LOCAL, 6, "refused unknown"),
    ],
)
def test_a_port_of_any_address(client: Client, at: At, version: int, expected: str) -> None:
    assert answer(BARE, client, ANY, at, version) == expected


@pytest.mark.parametrize(
    ("mapping", "answering"),
    [
        (Mapping(HostIP.ANY), {"node4", "node6", "second4", "second6", "loopback4"}),
        (Mapping(HostIP.WILDCARD, 4), {"node4", "second4", "loopback4"}),
        (Mapping(HostIP.WILDCARD, 6), {"node6", "second6"}),
        (Mapping(HostIP.NODE, 4), {"node4"}),
        (Mapping(HostIP.NODE, 6), {"node6"}),
        (Mapping(HostIP.SECOND, 4), {"second4"}),
        (Mapping(HostIP.SECOND, 6), {"second6"}),
        (Mapping(HostIP.LOOPBACK, 4), {"loopback4"}),
    ],
)
def test_what_answers_the_node_itself(mapping: Mapping, answering: set[str]) -> None:
    """By any of its addresses; at the others its own listeners answer."""
    seen = {
        f"{cell.at}{cell.version}": oracle.expected(cell).by
        for cell in oracle.cells(LISTENING)
        if (cell.client, cell.mapping, cell.protocol) == (Client.NODE, mapping, "udp")
    }
    assert {at for at, by in seen.items() if by is By.POD} == answering
    assert {by for at, by in seen.items() if at not in answering} == {By.NODE}


def test_pods_without_access_get_no_answer_of_the_node() -> None:
    """And with access they do: host ports change neither."""
    mapping = Mapping(HostIP.NODE, 4)
    for client in (Client.NEIGHBOUR, Client.SELF):
        assert answer(BARE, client, mapping, At.SECOND, 4) == "silent kept"
        assert answer(LISTENING, client, mapping, At.SECOND, 4) == "node kept"


def test_families() -> None:
    """A pod of one family is reached by that family alone."""
    setting = Setting(access=True, listening=True, versions=(6,))
    assert answer(setting, Client.OUTSIDE, ANY, At.NODE, 4) == "node kept"
    assert answer(setting, Client.OUTSIDE, ANY, At.NODE, 6) == "pod kept"
    assert not any(one.version == 4 for one in oracle.mappings(setting))
    pods = {c.version for c in oracle.cells(setting) if c.client is Client.NEIGHBOUR}
    assert pods == {6}


def test_every_cell_has_a_name_and_a_reason() -> None:
    for setting in SETTINGS:
        cells = list(oracle.cells(setting))
        assert max(Counter(map(str, cells)).values()) == 1
        assert all(oracle.expected(cell).why for cell in cells)
        asked = {(c.client, c.mapping, c.protocol) for c in cells}
        assert len(asked) == len(Client) * len(oracle.mappings(setting)) * 3


def test_a_pod_never_sees_an_address_that_it_cannot_answer() -> None:
    for setting in SETTINGS:
        for cell in oracle.cells(setting):
            one = oracle.expected(cell)
            if one.by is By.POD and (cell.at is At.LOOPBACK or cell.client is Client.SELF):
                assert one.source in (Source.HOP, Source.REWRITTEN)


def test_elements() -> None:
    ports = [
        Port("", "tcp", 8080, 80),
        Port("0.0.0.0", "udp", 53, 5353),
        Port("2001:db8::1", "sctp", 9, 10),
    ]
    both = {4: "10.0.0.1", 6: "fd00::1"}
    assert oracle.elements([(both, ports), ({4: "10.0.0.2"}, [])]) == {
        "any4": {"tcp . 8080 : 10.0.0.1 . 80", "udp . 53 : 10.0.0.1 . 5353"},
        "any6": {"tcp . 8080 : fd00::1 . 80"},
        "at4": set(),
        "at6": {"2001:db8::1 . sctp . 9 : fd00::1 . 10"},
        "self4": {"10.0.0.1 . 10.0.0.1"},
        "self6": {"fd00::1 . fd00::1"},
    }
    assert oracle.elements([({4: "10.0.0.1"}, ports[2:])]) == {name: set() for name in oracle.MAPS}


def test_selection() -> None:
    """Parts of names, and patterns for whole ones."""
    everything = listed(Selection([]))
    assert len(everything) > 4800
    some = listed(Selection(["outside/any/node4/udp"]))
    assert len(some) == len(SETTINGS)
    assert all("/outside/any/node4/udp: " in line for line in some)
    assert listed(Selection(["case/repl"])) == ["case/replaced"]
    (line,) = listed(Selection(["dual/no-access/bare/self/any/node4/tcp"]))
    assert ": pod, source hop: hairpin" in line
    assert not listed(Selection(["outside*nothing"]))


def test_checksum_of_sctp() -> None:
    """The vectors of RFC 3720, B.4: iSCSI has the same CRC."""
    assert sctp.crc32c(bytes(32)) == 0x8A9136AA
    assert sctp.crc32c(b"\xff" * 32) == 0x62A8AB43
    assert sctp.crc32c(bytes(range(32))) == 0x46DD794E


@pytest.mark.parametrize(
    "packet",
    [
        sctp.Packet(1, 65535, sctp.INIT, initiate=7),
        sctp.Packet(40_000, 80, sctp.INIT_ACK, 7, 8, b"any text"),
        sctp.Packet(40_000, 80, sctp.INIT_ACK, 7, 8, b"of 5."),
        sctp.Packet(40_000, 80, sctp.ABORT, 7),
    ],
)
def test_packets_of_sctp(packet: sctp.Packet) -> None:
    data = sctp.encode(packet)
    assert len(data) % 4 == 0
    assert sctp.decode(data) == packet
    for length in range(len(data)):
        assert sctp.decode(data[:length]) is None
    for at in range(len(data)):
        assert sctp.decode(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]) is None
