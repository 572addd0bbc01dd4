# SPDX-License-Identifier: Apache-2.0
"""The socket against the kernel, and against what a kernel never sends.

Runs in a fresh network namespace, as its root. pyroute2 reads the result
independently.
"""

import errno
import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from ipaddress import ip_address, ip_network

import pytest
from pyroute2 import IPRoute

from osbase.ip import AF_INET, AF_INET6
from osbase.netlink import message, netns
from osbase.netlink.address import IFA_F_NODAD, Address, add_address, dump_addresses, parse_address
from osbase.netlink.altnames import add_link_altnames
from osbase.netlink.errors import (
    BatchError,
    DumpInterrupted,
    ProtocolError,
    ReplyLost,
    ReplyTimeout,
)
from osbase.netlink.ifla import RTM_NEWLINK
from osbase.netlink.link import (
    del_link,
    dump_links,
    get_link,
    parse_link,
    set_link_alias,
    set_link_up,
)
from osbase.netlink.message import Request
from osbase.netlink.netns import open_current
from osbase.netlink.route import (
    RT_SCOPE_LINK,
    RTN_MULTICAST,
    RTN_UNICAST,
    RTN_UNREACHABLE,
    Route,
    add_multicast_route,
    add_route,
    del_route,
    dump_link_routes,
    dump_routes,
    get_route,
    parse_route,
    replace_route,
)
from osbase.netlink.template import FIRST_SEQUENCE, encoded
from osbase.netlink.transport import NetlinkSocket, SocketPool
from osbase.netlink.veth import VethEnd, load_veth, new_veth

MAC = bytes.fromhex("02aabbccddee")


@pytest.fixture
def here() -> Iterator[int]:
    fd = open_current()
    yield fd
    os.close(fd)


@pytest.fixture
def sock() -> Iterator[NetlinkSocket]:
    with NetlinkSocket() as opened:
        yield opened


def veth(here: int, index: int, name: str = "a") -> Request:
    host = VethEnd(f"{name}{index}", index, MAC)
    peer = VethEnd(f"p{name}{index}", index + 1, None)
    return new_veth(host, peer, netns_fd=here, mtu=1400, group=8)


@pytest.fixture
def pair(here: int, sock: NetlinkSocket) -> Iterator[int]:
    """Make a veth pair with the indexes 1000 and 1001."""
    sock.batch([veth(here, 1000)])
    yield 1000
    try:
        sock.batch([del_link(1000, "a1000")])
    except BatchError as error:
        if error.errors[0].errno != errno.ENODEV:  # a test deleted it
            raise


def test_pyroute2_sees_what_a_batch_made(sock: NetlinkSocket, pair: int) -> None:
    pod, hop = ip_address("10.1.2.3"), ip_address("fe80::1")
    sock.batch(
        [
            set_link_alias(pair, "a1000", "x" * 255, ipv6=True),
            add_link_altnames(pair, "a1000", "one", "t" * 127),
            set_link_up(pair, "a1000"),
            set_link_up(pair + 1, "pa1000"),
            add_address(pair, "a1000", hop, 64, no_dad=True),
            add_route(pod, pair, "a1000", family=AF_INET, protocol=77),
        ]
    )
    with IPRoute() as witness:
        (link,) = witness.get_links(pair)
        assert link.get("ifname") == "a1000"
        assert link.get("mtu") == 1400
        assert link.get("group") == 8
        assert link.get("address") == "02:aa:bb:cc:dd:ee"
        assert link.get("ifalias") == "x" * 255
        assert link.get("link") == pair + 1
        assert link.get("state") == "up"
        addresses = [(a.get("address"), a["prefixlen"]) for a in witness.get_addr(index=pair)]
        assert addresses == [("fe80::1", 64)]
        routes = [r for r in witness.get_routes(family=socket.AF_INET) if r["proto"] == 77]
        assert [(r.get("dst"), r["dst_len"], r.get("oif")) for r in routes] == [
            ("10.1.2.3", 32, pair)
        ]
    parsed = parse_link(sock.get(get_link(pair)))
    assert parsed.altnames == ("one", "t" * 127)
    assert (parsed.alias, parsed.group, parsed.peer) == (b"x" * 255, 8, pair + 1)
    assert (parsed.mac, parsed.mtu, parsed.kind, parsed.up) == (MAC, 1400, b"veth", True)
    route = Route(ip_network("10.1.2.3/32"), pair, 77)
    for request in (
        dump_routes(AF_INET, 77),
        dump_link_routes(AF_INET, pair),
    ):
        assert [parse_route(m) for m in sock.dump(request)] == [route]
    assert parse_route(sock.get(get_route(pod))) == route
    with pytest.raises(BatchError, match=r"route to 10\.1\.2\.4: ENETUNREACH"):
        sock.get(get_route(ip_address("10.1.2.4")))
    found = [parse_address(m) for m in sock.dump(dump_addresses(AF_INET6, pair))]
    assert found == [Address(pair, hop, 64, 0x80 | IFA_F_NODAD, RT_SCOPE_LINK)]
    assert found[0] is not None
    assert found[0].usable


def test_another_namespace_is_looked_into_from_here(sock: NetlinkSocket, here: int) -> None:
    os.unshare(netns.CLONE_NEWNET)
    there = netns.open_current()
    os.setns(here, netns.CLONE_NEWNET)
    try:
        sock.batch([veth(there, 1000)])
        link = parse_link(sock.get(get_link(1000)))
        assert link.peer_netns is not None
        peer = parse_link(sock.get(get_link(1001, netnsid=link.peer_netns)))
        assert (peer.name, peer.peer, peer.mtu) == ("pa1000", 1000, 1400)
        with netns.open_socket(there, here) as raw:
            inner = NetlinkSocket(raw)
            ip = ip_address("10.1.2.3")
            inner.batch([add_address(1001, "pa1000", ip, 32)])
        request = dump_addresses(AF_INET, 1001, netnsid=link.peer_netns)
        found = [parse_address(m) for m in sock.dump(request)]
        assert [one and (one.address, one.prefix_length) for one in found] == [(ip, 32)]
        sock.batch([del_link(1000, "a1000")])
    finally:
        os.close(there)


def test_links_listed_are_those_of_pyroute2(sock: NetlinkSocket, pair: int) -> None:
    ours = {link.ifindex: link.name for link in map(parse_link, sock.dump(dump_links()))}
    with IPRoute() as witness:
        assert ours == {link["index"]: link.get("ifname") for link in witness.get_links()}


def test_a_batch_goes_on_after_a_failure_and_tells_each(here: int, sock: NetlinkSocket) -> None:
    with pytest.raises(BatchError) as caught:
        sock.batch(
            [
                set_link_up(4711, "nothing"),
                veth(here, 2000, "b"),
                set_link_up(4712, "nothing2"),
                del_link(2000, "b2000"),
            ]
        )
    assert [(e.index, e.kind, e.errno) for e in caught.value.errors] == [
        (0, RTM_NEWLINK, errno.ENODEV),
        (2, RTM_NEWLINK, errno.ENODEV),
    ]
    assert "set nothing up: ENODEV" in str(caught.value)


def test_the_module_is_loaded_and_no_link_made(sock: NetlinkSocket) -> None:
    before = os.listdir("/sys/class/net")
    with pytest.raises(BatchError) as caught:
        sock.batch([load_veth()])
    assert [error.errno for error in caught.value.errors] == [errno.EBADF]
    assert os.listdir("/sys/class/net") == before


def test_errnos_that_are_as_good_as_success(sock: NetlinkSocket) -> None:
    """The rest of the batch is carried out, other errnos are reported."""
    gone = del_link(4711, "nothing")
    sock.batch([gone, set_link_up(1, "lo")], tolerate={errno.ENODEV})
    sock.batch([], tolerate={errno.ENODEV})
    assert parse_link(sock.get(get_link(1))).up
    address = add_address(1, "lo", ip_address("192.0.2.1"), 32)
    sock.batch([address])
    with pytest.raises(BatchError) as caught:
        sock.batch([gone, address], tolerate={errno.ENODEV})
    assert [(e.index, e.errno) for e in caught.value.errors] == [(1, errno.EEXIST)]


def test_the_last_request_may_fail_too(sock: NetlinkSocket) -> None:
    with pytest.raises(BatchError) as caught:
        sock.batch([set_link_up(1, "lo"), del_link(4711, "nothing")])
    assert [(e.index, e.errno) for e in caught.value.errors] == [(1, errno.ENODEV)]
    sock.batch([set_link_up(1, "lo")])  # and nothing is left in the socket


def test_the_kernels_own_words_are_reported(sock: NetlinkSocket, pair: int) -> None:
    sock.batch([set_link_up(pair, "a1000")])
    bad = add_route(
        ip_address("10.0.0.1"),
        pair,
        "a1000",
        family=AF_INET,
        protocol=77,
        source=ip_address("192.0.2.99"),
    )
    with pytest.raises(BatchError, match=r"add route 10.0.0.1/32 dev a1000: EINVAL \(.*prefsrc"):
        sock.batch([bad])


def test_an_empty_batch_is_nothing(sock: NetlinkSocket) -> None:
    sock.batch([])


def test_200_refusals_in_one_batch_are_all_reported(sock: NetlinkSocket) -> None:
    with pytest.raises(BatchError) as caught:
        sock.batch([del_link(5000 + index, f"x{index}") for index in range(200)])
    assert [e.index for e in caught.value.errors] == list(range(200))


def test_another_process_cannot_answer_for_the_kernel(sock: NetlinkSocket, pair: int) -> None:
    sock.batch([set_link_up(1, "lo")])
    raw = socket.fromfd(sock.fileno(), socket.AF_NETLINK, socket.SOCK_RAW)
    port = raw.getsockname()[0]
    raw.close()
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as stranger:
        for sequence in range(40):  # "all is well", for every number to come
            stranger.sendto(
                message.HEADER.pack(20, message.NLMSG_ERROR, 0, sequence, port) + bytes(4),
                (port, 0),
            )
        stranger.sendto(b"garbage", (port, 0))
    with pytest.raises(BatchError):
        sock.batch([del_link(4711, "nothing")])


class Script:
    """A socket with answers from the test."""

    def __init__(self, *answers: bytes | OSError) -> None:
        self.answers = list(answers)
        self.ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.sent: list[bytes] = []

    def send(self, data: bytes, /) -> int:
        self.sent.append(data)
        return len(data)

    def recvfrom(self, size: int, flags: int, /) -> tuple[bytes, tuple[int, int]]:
        if not self.answers:
            raise BlockingIOError
        answer = self.answers.pop(0)
        if isinstance(answer, OSError):
            raise answer
        return answer, (0, 0)

    def fileno(self) -> int:
        return self.ends[0].fileno()

    def close(self) -> None:
        for end in self.ends:
            end.close()


def scripted(*answers: bytes | OSError) -> NetlinkSocket:
    return NetlinkSocket(Script(*answers), timeout_s=0.05)


def reply(kind: int, sequence: int, body: bytes = bytes(4), flags: int = 0) -> bytes:
    return message.HEADER.pack(16 + len(body), kind, flags, sequence, 0) + body


UP = set_link_up(1, "lo")


type Send = Callable[[NetlinkSocket, list[Request]], None]


def send_encoded(sock: NetlinkSocket, requests: list[Request]) -> None:
    sock.batch_encoded(encoded(requests), lambda: requests)


# With the number of its first request.
SENDS: list[tuple[Send, int]] = [(NetlinkSocket.batch, 1), (send_encoded, FIRST_SEQUENCE)]
both = pytest.mark.parametrize(("send", "first"), SENDS, ids=["batch", "encoded"])


@both
@pytest.mark.parametrize("data", [b"x", b"\xff" * 30, reply(2, 1)[:-1], b"\xff" * 36], ids=repr)
def test_garbage_is_an_error_of_the_family(send: Send, first: int, data: bytes) -> None:
    with scripted(data) as sock, pytest.raises(ProtocolError):
        send(sock, [UP])


@both
def test_an_acknowledgement_without_errno_is_an_error(send: Send, first: int) -> None:
    with scripted(reply(2, first, b"")) as sock, pytest.raises(ProtocolError):
        send(sock, [UP])


@both
def test_silence_is_a_timeout(send: Send, first: int) -> None:
    with scripted() as sock, pytest.raises(ReplyTimeout, match=r"set lo up: no answer in 0.05 s"):
        send(sock, [UP])


@both
def test_lost_answers_are_reported(send: Send, first: int) -> None:
    with scripted(OSError(errno.ENOBUFS, "")) as sock, pytest.raises(ReplyLost, match="ENOBUFS"):
        send(sock, [UP])


@both
def test_answers_to_earlier_requests_are_passed_over(send: Send, first: int) -> None:
    for body in (struct.pack("=i", -errno.EPERM), bytes(20)):
        late = reply(message.NLMSG_ERROR, 77, body)
        with scripted(late, reply(message.NLMSG_ERROR, first)) as sock:
            send(sock, [UP])


@both
def test_refusals_come_in_any_datagram(send: Send, first: int) -> None:
    refusal = reply(message.NLMSG_ERROR, first, struct.pack("=i16x", -errno.EPERM))
    last = reply(message.NLMSG_ERROR, first + 1, bytes(20))
    for answers in ([refusal, last], [refusal + last]):
        with scripted(*answers) as sock, pytest.raises(BatchError, match="EPERM") as caught:
            send(sock, [UP, dump_links()])
        assert [error.index for error in caught.value.errors] == [0]


def test_an_encoded_batch_is_refused_by_the_kernel_in_words(sock: NetlinkSocket) -> None:
    requests = [UP, del_link(4711, "nothing"), UP]
    with pytest.raises(BatchError, match="delete link nothing: ENODEV") as caught:
        send_encoded(sock, requests)
    assert [error.index for error in caught.value.errors] == [1]
    send_encoded(sock, [UP])


def test_an_encoded_batch_has_no_answer_but_the_kernels(sock: NetlinkSocket) -> None:
    send_encoded(sock, [UP])
    raw = socket.fromfd(sock.fileno(), socket.AF_NETLINK, socket.SOCK_RAW)
    port = raw.getsockname()[0]
    raw.close()
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as stranger:
        well = message.HEADER.pack(36, message.NLMSG_ERROR, 0, FIRST_SEQUENCE, port) + bytes(20)
        stranger.sendto(well, (port, 0))
    with pytest.raises(BatchError):
        send_encoded(sock, [del_link(4711, "nothing")])


def test_an_interrupted_dump_is_repeated() -> None:
    done, half = message.NLMSG_DONE, message.NLM_F_DUMP_INTR
    with scripted(
        reply(16, 1, bytes(16), half) + reply(done, 1),
        reply(done, 2, struct.pack("=i", -errno.EINTR)),
        reply(16, 3, bytes(16)),
        reply(done, 3),
    ) as sock:
        assert [one.sequence for one in sock.dump(dump_links())] == [3]


def test_a_dump_that_never_comes_whole_is_reported() -> None:
    answers = [reply(message.NLMSG_DONE, 1 + n, flags=message.NLM_F_DUMP_INTR) for n in range(20)]
    with scripted(*answers) as sock, pytest.raises(DumpInterrupted, match="list links"):
        sock.dump(dump_links())


def test_a_refused_dump_is_reported() -> None:
    refusal = reply(message.NLMSG_ERROR, 1, struct.pack("=i", -errno.EPERM))
    with scripted(refusal) as sock, pytest.raises(BatchError, match="EPERM"):
        sock.dump(dump_links())


def test_a_pool_keeps_sockets_that_were_refused_and_drops_the_others() -> None:
    pool = SocketPool(keep=1)
    with pytest.raises(BatchError), pool.socket() as first:
        first.batch([del_link(4711, "nothing")])
    with pool.socket() as second, pool.socket() as third:
        assert second is first
    with pytest.raises(ZeroDivisionError), pool.socket() as again:
        raise ZeroDivisionError
    assert again.fileno() == -1
    assert third.fileno() == -1 or second.fileno() == -1
    pool.close()


def test_sockets_of_a_pool_serve_many_threads(here: int) -> None:
    pool, errors = SocketPool(), list[BaseException]()

    def work(base: int) -> None:
        try:
            for index in range(base, base + 20, 2):
                with pool.socket() as sock:
                    sock.batch([veth(here, index, "t"), set_link_up(index, f"t{index}")])
                    sock.batch([del_link(index, f"t{index}")])
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(20000 + 100 * n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    pool.close()
    assert not errors


@pytest.mark.parametrize("text", ["10.64.0.0/12", "fd00:64::/48"])
def test_routes_of_prefixes(sock: NetlinkSocket, pair: int, text: str) -> None:
    """Through a link with a source, replaced by another source; unreachable;
    both gone: as our parser, and pyroute2 for the kinds, read them.
    """
    prefix = ip_network(text)
    family = AF_INET if prefix.version == 4 else AF_INET6
    sources = [prefix.network_address + n for n in (1, 2)]
    sock.batch([set_link_up(pair, "a1000")])
    for source in sources:
        bits, no_dad = source.max_prefixlen, source.version == 6
        sock.batch([add_address(pair, "a1000", source, bits, no_dad=no_dad, protocol=78)])
    found = [parse_address(m) for m in sock.dump(dump_addresses(family, pair))]
    assert {one.address: one.protocol for one in found if one} == dict.fromkeys(sources, 78)

    def present() -> list[Route]:
        messages = sock.dump(dump_routes(family, 78))
        return [route for m in messages if (route := parse_route(m)) is not None]

    for source in sources:
        route = Route(prefix, pair, 78, source=source, metric=100)
        sock.batch([replace_route(route, "a1000")])
        assert present() == [route]
    held = Route(prefix, None, 78, kind=RTN_UNREACHABLE, metric=50)
    sock.batch([replace_route(held, "a1000")])
    with IPRoute() as witness:
        seen = {one.get("priority"): one["type"] for one in witness.get_routes(proto=78)}
    assert seen == {50: RTN_UNREACHABLE, 100: RTN_UNICAST}
    sock.batch([del_route(held, "a1000"), del_route(route, "a1000")])
    assert present() == []
    with pytest.raises(BatchError, match=rf"delete route {text} unreachable: ESRCH"):
        sock.batch([del_route(held, "a1000")])


def test_the_route_of_multicast_is_the_kernel_s(sock: NetlinkSocket, pair: int) -> None:
    """A link that is up has one, by us or by the kernel."""
    wanted = add_multicast_route(pair, "a1000")
    with pytest.raises(BatchError, match=r"add route ff00::/8 dev a1000: (ENETDOWN|ENODEV)"):
        sock.batch([wanted])
    sock.batch([set_link_up(pair, "a1000")])
    sock.batch([wanted], tolerate={errno.EEXIST})
    with pytest.raises(BatchError, match=r"add route ff00::/8 dev a1000: EEXIST"):
        sock.batch([wanted])
    sock.batch([add_address(pair, "a1000", ip_address("fe80::7"), 128)])  # the kernel's turn
    with IPRoute() as witness:
        found = witness.get_routes(family=AF_INET6, table=255)
    (one,) = [r for r in found if (r.get("oif"), r["type"]) == (pair, RTN_MULTICAST)]
    assert (one.get("dst"), one["dst_len"], one["proto"]) == ("ff00::", 8, 2)
    assert one.get("priority") == 256
