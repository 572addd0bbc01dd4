# SPDX-License-Identifier: Apache-2.0
"""Sockets that listen are found; connections and others are not."""

import os
import socket
from contextlib import ExitStack
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from osbase.netlink import sock_diag
from osbase.netlink.errors import ProtocolError
from osbase.netlink.message import Message
from osbase.netlink.sock_diag import Listener, listeners, process_of
from osbase.test.namespaces import sh

KIND = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}


@pytest.fixture(autouse=True, scope="module")
def loopback() -> None:
    sh("ip link set lo up")


def bound(
    stack: ExitStack, protocol: str, address: str, port: int, *, v6only: bool = True
) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    sock = stack.enter_context(socket.socket(family, KIND[protocol]))
    if family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(v6only))
    # Connections of an earlier test end a minute later.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind((address, port))
    if protocol == "tcp":
        sock.listen()
    return sock


def found(protocol: str, version: int, *ports: int) -> set[tuple[int, str]]:
    return {
        (one.port, str(one.address))
        for one in listeners(protocol, ports)
        if version in one.versions
    }


@pytest.mark.parametrize("protocol", KIND)
@pytest.mark.parametrize("version", [4, 6])
def test_addresses(protocol: str, version: int) -> None:
    every, own = {4: ("0.0.0.0", "127.0.0.1"), 6: ("::", "::1")}[version]
    other = "udp" if protocol == "tcp" else "tcp"
    with ExitStack() as stack:
        bound(stack, protocol, every, 7001)
        bound(stack, protocol, own, 7002)
        bound(stack, other, own, 7003)
        assert found(protocol, version, 7001, 7002, 7003) == {(7001, "None"), (7002, own)}
        assert found(protocol, version, 7002) == {(7002, own)}
        assert found(protocol, version, 7001, 7003) == {(7001, "None")}
        assert found(protocol, version, 7004, 1, 65535) == set()
        assert found(protocol, version) == set()
        assert found(protocol, 10 - version, 7001, 7002, 7003) == set()
    assert found(protocol, version, 7001, 7002) == set()


@pytest.mark.parametrize("ports", [{7001}, set(range(7001, 7101))], ids=["bound", "listed"])
@pytest.mark.parametrize("reused", [socket.SO_REUSEADDR, socket.SO_REUSEPORT, 0])
@pytest.mark.parametrize("protocol", KIND)
@pytest.mark.parametrize("address", ["127.0.0.1", "::1", "0.0.0.0", "::", "::ffff:127.0.0.1"])
def test_a_socket_is_found_however_it_was_bound(
    address: str, protocol: str, reused: int, ports: set[int]
) -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, KIND[protocol]) as sock:
        if reused:
            sock.setsockopt(socket.SOL_SOCKET, reused, 1)
        sock.bind((address, 7001))
        if protocol == "tcp":
            assert listeners(protocol, ports) == []
            sock.listen()
        assert [one.port for one in listeners(protocol, ports)] == [7001]
    assert listeners(protocol, ports) == []


def test_a_port_of_connections_is_free() -> None:
    """The socket that accepted them is closed."""
    with bound(stack := ExitStack(), "tcp", "127.0.0.1", 7001) as server:
        client = stack.enter_context(socket.create_connection(("127.0.0.1", 7001)))
        accepted = stack.enter_context(server.accept()[0])
    with stack:
        assert accepted.getsockname() == client.getpeername() == ("127.0.0.1", 7001)
        assert listeners("tcp", {7001}) == []
        assert listeners("tcp", {client.getsockname()[1]}) == []


@pytest.mark.parametrize("protocol", KIND)
def test_the_check_leaves_no_socket(protocol: str) -> None:
    before = os.listdir("/proc/self/fd")
    with ExitStack() as stack:
        bound(stack, protocol, "::", 7001)
        listeners(protocol, {7001})
        listeners(protocol, {7002})
    assert os.listdir("/proc/self/fd") == before


@pytest.mark.parametrize("protocol", KIND)
def test_a_socket_of_both_families(protocol: str) -> None:
    with ExitStack() as stack:
        bound(stack, protocol, "::", 7001, v6only=False)
        bound(stack, protocol, "::1", 7002, v6only=False)
        assert found(protocol, 4, 7001, 7002) == {(7001, "None")}
        assert found(protocol, 6, 7001, 7002) == {(7001, "None"), (7002, "::1")}


@pytest.mark.parametrize("protocol", KIND)
@pytest.mark.parametrize(("to", "address"), [("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "None")])
def test_an_ipv4_address_of_a_socket_of_ipv6(protocol: str, to: str, address: str) -> None:
    with ExitStack() as stack:
        bound(stack, protocol, f"::ffff:{to}", 7006, v6only=False)
        assert found(protocol, 4, 7006) == {(7006, address)}
        assert found(protocol, 6, 7006) == set()


def test_sockets_that_wait_for_one_peer() -> None:
    """A connection at the port, and a connected UDP socket."""
    with ExitStack() as stack:
        server = bound(stack, "tcp", "127.0.0.1", 7001)
        client = stack.enter_context(socket.create_connection(("127.0.0.1", 7001)))
        stack.enter_context(server.accept()[0])
        port = client.getsockname()[1]
        peer = bound(stack, "udp", "127.0.0.1", 7002)
        peer.connect(("127.0.0.1", 7003))
        assert found("tcp", 4, 7001, port) == {(7001, "127.0.0.1")}
        assert found("udp", 4, 7002) == set()
        # Bound, and not listening.
        idle = stack.enter_context(socket.socket())
        idle.bind(("127.0.0.1", 7005))
        assert found("tcp", 4, 7005) == set()


def test_sctp() -> None:
    """Nothing listens, whether the kernel has SCTP or not."""
    assert found("sctp", 4, 7001) == found("sctp", 6, 7001) == set()


def test_processes() -> None:
    with ExitStack() as stack:
        sock = bound(stack, "tcp", "127.0.0.1", 7001)
        (one,) = listeners("tcp", {7001})
        assert one.inode == os.fstat(sock.fileno()).st_ino
        assert process_of(one).endswith(f" (pid {os.getpid()})")
    assert "may not see" in process_of(one)
    assert process_of(Listener(4, 1, None, 0)) == "the kernel"


def test_many_ports_are_one_question() -> None:
    """And a full range, with the ends."""
    with ExitStack() as stack:
        for port in (1024, 7001, 65535):
            bound(stack, "tcp", "0.0.0.0", port)
        assert {port for port, _ in found("tcp", 4, *range(1, 65536))} == {1024, 7001, 65535}


@given(st.binary(max_size=120), st.sampled_from([20, 16]))
def test_any_answer_is_parsed_or_refused(body: bytes, kind: int) -> None:
    try:
        one = sock_diag.parse(Message(kind, 0, 0, 0, body))
    except ProtocolError:
        return
    assert 0 <= one.port <= 65535
    assert one.address is None or one.address != ip_address(0)
