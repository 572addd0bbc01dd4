# SPDX-License-Identifier: Apache-2.0
"""Deleting entries of a real kernel's table, in a fresh namespace."""

import contextlib
import errno
import socket
from collections import Counter
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from osbase.conntrack import delete as deleting
from osbase.conntrack import sources
from osbase.conntrack.ctnetlink import NETLINK_NETFILTER
from osbase.conntrack.delete import Filter, delete
from osbase.netlink import attrs
from osbase.netlink.errors import BatchError, ProtocolError, RequestError
from osbase.netlink.message import Message, Request
from osbase.netlink.transport import NetlinkSocket, SocketPool, open_raw
from osbase.nftables import Nftables

UDP, SCTP = socket.IPPROTO_UDP, socket.IPPROTO_SCTP
ADDRESSES = {4: ("127.0.0.1", "127.0.0.2"), 6: ("fd00::1", "fd00::2")}
PORTS = (81, 82, 83)

type Flow = tuple[int, str, int]
"""Protocol, destination and its port."""

pytestmark = pytest.mark.usefixtures("tracked")


def send(to: str, port: int) -> None:
    """Begin a UDP flow."""
    with socket.socket(socket.AF_INET6 if ":" in to else socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind((to, 0))
        sock.sendto(b"", (to, port))


def sctp(to: str, port: int) -> None:
    """Make the entry of an association, as if it were established."""
    packed = ip_address(to).packed
    kind = 1 if len(packed) == 4 else 3

    def ends(name: int, *ports: int) -> bytes:
        protocol = [attrs.attr(2 + n, one.to_bytes(2)) for n, one in enumerate(ports)]
        addresses = attrs.nested(1, attrs.attr(kind, packed), attrs.attr(kind + 1, packed))
        return attrs.nested(
            name, addresses, attrs.nested(2, attrs.attr(1, bytes([SCTP])), *protocol)
        )

    state = (attrs.attr(1, b"\4"), attrs.attr(2, bytes(4)), attrs.attr(3, bytes(4)))
    body = (
        bytes([socket.AF_INET if kind == 1 else socket.AF_INET6, 0, 0, 0])
        + ends(1, 4000, port)
        + ends(2, port, 4000)
        + attrs.attr(7, (600).to_bytes(4))
        + attrs.nested(4, attrs.nested(3, *state))
    )
    with NetlinkSocket(open_raw(NETLINK_NETFILTER)) as sock:
        sock.batch([Request(0x100, 0x600, body, "make a tracked flow")])


def flows() -> set[Flow]:
    """The table, read apart from what is tested: by its entries' places."""
    found: Counter[Flow] = Counter()
    with NetlinkSocket(open_raw(NETLINK_NETFILTER)) as sock:
        for message in sock.stream(sources.dump()):
            size, to, protocol, port, *_ = sources._PLACES[message.body[6:16]]
            address = ip_address(message.body[to : to + size])
            number = int.from_bytes(message.body[port : port + 2])
            found[message.body[protocol], str(address), number] += 1
    assert set(found.values()) <= {1}
    return set(found)


def begin_translated(version: int, chains: str, *to: tuple[str, int]) -> None:
    """Begin UDP flows to addresses and ports while a table has the chains."""
    family = "ip" if version == 4 else "ip6"
    with Nftables() as nft:
        nft.apply(f"table {family} nat {{\n{chains}\n}}")
        for address, port in to:
            send(address, port)
        nft.apply(f"delete table {family} nat")


_OUTPUT = "chain output {{ type nat hook output priority -100; {} }}"


@pytest.fixture
def table() -> set[Flow]:
    """Flows of both families and protocols, to both addresses and all ports."""
    for to in (*ADDRESSES[4], *ADDRESSES[6]):
        for port in PORTS:
            send(to, port)
            sctp(to, port)
    made = flows()
    assert len(made) == 2 * 4 * 3
    return made


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("protocol", [UDP, SCTP])
@pytest.mark.parametrize("port", [None, 82])
@pytest.mark.parametrize("addressed", [False, True])
@pytest.mark.parametrize("filtering", [True, False])
def test_what_matches_goes_and_neighbours_stay(
    table: set[Flow],
    version: int,
    protocol: int,
    port: int | None,
    addressed: bool,
    filtering: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The same in a kernel that has no filter for deletions."""
    if not filtering:
        monkeypatch.setattr(deleting, "_delete_matching", lambda *_: False)
    to = ADDRESSES[version][0]
    delete([Filter(protocol, version, port, ip_address(to) if addressed else None)])
    gone = {
        one
        for one in table
        if one[0] == protocol
        and one[1] in ([to] if addressed else ADDRESSES[version])
        and port in (None, one[2])
    }
    assert gone
    assert flows() == table - gone


def test_many_filters_and_what_matches_nothing(table: set[Flow]) -> None:
    delete([Filter(UDP, 4, 9), Filter(SCTP, 6, 9), Filter(socket.IPPROTO_TCP, 4)])
    delete([])
    assert flows() == table
    delete(Filter(protocol, 6, port) for protocol in (UDP, SCTP) for port in (81, 83, 81))
    gone = {one for one in table if one[1] in ADDRESSES[6] and one[2] != 82}
    assert flows() == table - gone


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("led", [True, False, None])
@pytest.mark.parametrize("filtering", [True, False])
def test_translated_flows(
    version: int, led: bool | None, filtering: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By their destination, by both, by their source alone, not at all."""
    here, there = ADDRESSES[version]
    chains = (
        _OUTPUT.format(f"udp dport {{ 81, 82 }} dnat to {there};")
        + f"""
        chain postrouting {{ type nat hook postrouting priority 100;
            udp dport {{ 82, 83 }} snat to {there}; }}"""
    )
    begin_translated(version, chains, *((here, port) for port in (81, 82, 83, 84)))
    if not filtering:
        monkeypatch.setattr(deleting, "_delete_matching", lambda *_: False)
    delete(Filter(UDP, version, port, None, led) for port in (81, 82, 83, 84))
    gone = {True: {81, 82}, False: {84}, None: {81, 82, 83, 84}}[led]
    assert {port for _, _, port in flows()} == {81, 82, 83, 84} - gone


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("filtering", [True, False])
@pytest.mark.parametrize("led", [True, None])
@pytest.mark.parametrize("port", [81, None])
def test_where_packets_go(
    version: int,
    filtering: bool,
    led: bool | None,
    port: int | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """After translation: to one of two addresses, by ports; a third flow goes
    there by itself.
    """
    here, there = ADDRESSES[version]
    family = "ip" if version == 4 else "ip6"
    rules = f"""{family} daddr {here} udp dport 81 dnat to {there};
        {family} daddr {there} udp dport 82 dnat to {here};"""
    to = ((here, 81), (there, 82), (there, 83), (here, 84))
    begin_translated(version, _OUTPUT.format(rules), *to)
    if not filtering:
        monkeypatch.setattr(deleting, "_delete_matching", lambda *_: False)
    made = flows()
    delete([Filter(UDP, version, port, None, led, ip_address(there))])
    gone = {(UDP, here, 81)}
    if led is None and port is None:
        gone.add((UDP, there, 83))
    assert flows() == made - gone


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("many", [True, False])
def test_a_choice(version: int, many: bool) -> None:
    """The caller sees each entry once, all of them before one is deleted, and
    where it goes.
    """
    here, there = ADDRESSES[version]
    place = f"{there}:90" if version == 4 else f"[{there}]:90"
    chains = _OUTPUT.format(f"udp dport {{ 81, 82 }} dnat to {place};")
    begin_translated(version, chains, *((here, port) for port in (81, 82, 83, 84)))
    seen: list[deleting.Flow] = []
    made = flows()

    def choose(one: deleting.Flow) -> bool:
        assert flows() == made
        seen.append(one)
        return one.port in (82, 83)

    ports = [81, 82, 83, *(range(1000, 1040) if many else ())]
    delete([Filter(UDP, version, port) for port in ports], choose=choose)
    to = (ip_address(there), 90)
    expected = {81: to, 82: to, 83: None}
    assert sorted(seen, key=lambda one: one.port) == [
        deleting.Flow(UDP, ip_address(here), port, led_to) for port, led_to in expected.items()
    ]
    assert {port for _, _, port in flows()} == {81, 84}


def test_more_filters_than_walks(table: set[Flow]) -> None:
    """They are compared with one listing."""
    there = ip_address(ADDRESSES[4][0])
    delete([Filter(UDP, 4, port, there) for port in range(82, 182)] + [Filter(UDP, 4, 81)])
    gone = {
        one
        for one in table
        if one[0] == UDP and one[1] in ADDRESSES[4] and (one[2] == 81 or one[1] == ADDRESSES[4][0])
    }
    assert flows() == table - gone


def test_more_than_one_batch() -> None:
    """The answers to deletions one by one have room in the socket."""
    for port in range(1, 701):
        sctp("fd00::1", port)
    delete([Filter(SCTP, 6, None, ip_address("fd00::1"))])
    assert flows() == set()


def test_a_kernel_without_conntrack(monkeypatch: pytest.MonkeyPatch) -> None:
    """ctnetlink is absent: the requests are invalid. So is its netlink: no
    socket. A caller without rights is another matter.
    """
    refused: list[int] = []

    def answer(number: int) -> BatchError:
        refused.append(number)
        return BatchError([RequestError(0, 0x102, "delete", number, "")])

    for number in (errno.EINVAL, errno.EPERM):

        def refuse(*_: object, number: int = number, **__: object) -> None:
            raise answer(number)

        monkeypatch.setattr(NetlinkSocket, "batch", refuse)
        monkeypatch.setattr(NetlinkSocket, "stream", refuse)
        with pytest.raises(BatchError) if number == errno.EPERM else contextlib.nullcontext():
            delete([Filter(UDP, 4, 81)])
    assert refused == [errno.EINVAL, errno.EINVAL, errno.EPERM]

    def no_socket(_: int) -> socket.socket:
        raise OSError(errno.EPROTONOSUPPORT, "no netfilter")

    monkeypatch.setattr(deleting, "open_raw", no_socket)
    delete([Filter(UDP, 4, 81)])


def test_sockets_of_a_pool_are_kept() -> None:
    """To close one takes long, when nftables elements were just removed."""
    opened: list[NetlinkSocket] = []

    def open_one() -> NetlinkSocket:
        opened.append(NetlinkSocket(open_raw(NETLINK_NETFILTER)))
        return opened[-1]

    pool = SocketPool(open_one=open_one)
    for _ in range(2):
        send("127.0.0.1", 81)
        send("fd00::1", 81)
        delete([Filter(UDP, 4, 81), Filter(UDP, 6, 81, ip_address("fd00::1"))], pool)
        assert flows() == set()
    assert len(opened) == 1
    pool.close()


@given(st.binary(max_size=120), st.sampled_from([0x100, 0x101]), st.integers(0, 80))
def test_garbage_is_a_protocol_error(data: bytes, kind: int, keep: int) -> None:
    start = deleting.request(0x100, Filter(UDP, 4, 81, ip_address("127.0.0.1"))).body[:keep]
    message = Message(kind, 2, 1, 1, start + data)
    with contextlib.suppress(ProtocolError):
        list(
            deleting.matching([message], [Filter(UDP, 4, 81, None, True, ip_address("127.0.0.1"))])
        )
    with contextlib.suppress(ProtocolError):
        deleting.flow(message)
    with contextlib.suppress(ProtocolError):
        deleting.deletion(message)
