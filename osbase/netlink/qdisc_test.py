# SPDX-License-Identifier: Apache-2.0
"""A closed link passes nothing, either way, of any protocol, as tc(8) and
packet sockets see it.
"""

import contextlib
import json
import socket
import subprocess
from collections.abc import Collection, Iterator

import pytest

from osbase.netlink import qdisc
from osbase.netlink.errors import BatchError, ProtocolError
from osbase.netlink.message import Message
from osbase.netlink.qdisc import Clsact
from osbase.netlink.transport import NetlinkSocket

IN, OUT = 0x6D771001, 0x6D771002
WAIT_S = 10.0
BRIEF_S = 0.3  # for what must not come


def ip(command: str) -> None:
    subprocess.run(["ip", *command.split()], check=True)


class Pair:
    """The two ends of a veth pair, `host` and `pod`, and a socket on each."""

    def __init__(self, number: int) -> None:
        self.host, self.pod = f"host{number}", f"pod{number}"
        ip(f"link add {self.host} type veth peer name {self.pod}")
        ip(f"link set {self.host} up")
        ip(f"link set {self.pod} up")
        self.index = socket.if_nametoindex(self.host)
        self.ends = {name: _bound(name) for name in (self.host, self.pod)}

    def passes(self, start: str, end: str, kind: int, wait_s: float = WAIT_S) -> bool:
        """Return whether a frame of this kind comes through to the end."""
        taker = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(kind))
        with taker:
            taker.bind((end, kind))
            taker.settimeout(wait_s)
            mark = f"{start}{end}{kind}".encode()
            frame = b"\xff" * 6 + b"\x02\0\0\0\0\1" + kind.to_bytes(2) + mark
            with contextlib.suppress(OSError):  # ENOBUFS: it was dropped
                self.ends[start].send(frame.ljust(60, b"\0"))
            with contextlib.suppress(TimeoutError):
                while mark not in taker.recv(2000):
                    pass
                return True
            return False

    def close(self) -> None:
        for one in self.ends.values():
            one.close()
        ip(f"link del {self.host}")


def _bound(name: str) -> socket.socket:
    made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    made.bind((name, 0))
    return made


@pytest.fixture
def pairs() -> Iterator[list[Pair]]:
    made = [Pair(0), Pair(1)]
    yield made
    for pair in made:
        pair.close()


@pytest.fixture
def sock() -> Iterator[NetlinkSocket]:
    with NetlinkSocket() as opened:
        yield opened


def close(sock: NetlinkSocket, pair: Pair, tolerate: Collection[int] = ()) -> None:
    requests = [qdisc.add_clsact(pair.index, pair.host, IN, OUT)]
    sock.batch([*requests, qdisc.drop_all(IN), qdisc.drop_all(OUT)], tolerate=tolerate)


def clsacts(sock: NetlinkSocket) -> set[Clsact]:
    found = (qdisc.parse_clsact(message) for message in sock.dump(qdisc.dump_qdiscs()))
    return {one for one in found if one is not None}


# Local experimental Ethertype, IPv4, ARP, IPv6.
@pytest.mark.parametrize("kind", [0x88B5, 0x0800, 0x0806, 0x86DD])
def test_nothing_passes(sock: NetlinkSocket, pairs: list[Pair], kind: int) -> None:
    """A socket on the link itself sees what comes from outside before the
    filters; all later takers do not, e.g. the other end.
    """
    closed, other = pairs
    assert closed.passes(closed.host, closed.pod, kind)
    close(sock, closed)
    assert not closed.passes(closed.host, closed.pod, kind, BRIEF_S)
    assert other.passes(other.host, other.pod, kind)
    assert other.passes(other.pod, other.host, kind)


def test_what_it_receives_comes_to_no_protocol(sock: NetlinkSocket, pairs: list[Pair]) -> None:
    closed, other = pairs
    for number, pair in enumerate(pairs):
        ip(f"addr add 10.0.{number}.1/24 dev {pair.host}")
    close(sock, closed)

    def asks(pair: Pair, number: int) -> bool:
        """Send an ARP request into the pair; return whether it is answered."""
        taker = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0806))
        with taker:
            taker.bind((pair.pod, 0x0806))
            taker.settimeout(BRIEF_S if pair is closed else WAIT_S)
            mac = bytes.fromhex("020000000009")
            body = bytes.fromhex("0001080006040001") + mac + bytes([10, 0, number, 2])
            frame = b"\xff" * 6 + mac + b"\x08\x06" + body + bytes(6) + bytes([10, 0, number, 1])
            pair.ends[pair.pod].send(frame.ljust(60, b"\0"))
            try:
                while True:
                    found = taker.recv(2000)
                    if found[12:14] == b"\x08\x06" and found[21] == 2:
                        return True
            except TimeoutError:
                return False

    assert asks(other, 1)
    assert not asks(closed, 0)


def test_what_tc_shows(sock: NetlinkSocket, pairs: list[Pair]) -> None:
    assert clsacts(sock) == set()
    for pair in pairs:
        close(sock, pair, {17})
    assert clsacts(sock) == {Clsact(pair.index, IN, OUT) for pair in pairs}
    shown = json.loads(
        subprocess.check_output(["tc", "-j", "qdisc", "show", "clsact", "dev", pairs[0].host])
    )
    assert shown[0]["ingress_block"] == IN
    assert shown[0]["egress_block"] == OUT


def test_refusals(sock: NetlinkSocket, pairs: list[Pair]) -> None:
    """Each is reported with its number; the rest of the batch is done."""
    close(sock, pairs[0])
    with pytest.raises(BatchError) as refused:
        close(sock, pairs[0])
    assert [error.errno for error in refused.value.errors] == [17, 17, 17]
    with pytest.raises(BatchError) as refused:
        sock.batch([qdisc.add_clsact(99999, "gone", IN, OUT)])
    assert [error.errno for error in refused.value.errors] == [19]
    with pytest.raises(BatchError) as refused:
        sock.batch([qdisc.drop_all(IN + 7)])
    assert [error.errno for error in refused.value.errors] == [22]


def test_a_block_of_another_program(sock: NetlinkSocket, pairs: list[Pair]) -> None:
    """A clsact that is not shared has no blocks."""
    subprocess.run(["tc", "qdisc", "add", "dev", pairs[0].host, "clsact"], check=True)
    assert clsacts(sock) == {Clsact(pairs[0].index, 0, 0)}


@pytest.mark.parametrize("body", [b"", bytes(19), bytes(20) + b"\x05\0\x0d\0\0"])
def test_garbage(body: bytes) -> None:
    if len(body) < 20:
        with pytest.raises(ProtocolError):
            qdisc.parse_clsact(Message(qdisc.RTM_NEWQDISC, 0, 0, 0, body))
    else:
        assert qdisc.parse_clsact(Message(qdisc.RTM_NEWQDISC, 0, 0, 0, body)) is None
    with pytest.raises(ProtocolError):
        qdisc.parse_clsact(Message(1, 0, 0, 0, bytes(20)))
