# SPDX-License-Identifier: Apache-2.0
"""The service as a process: traffic flows, kills lose nothing, nothing forks.

Runs in a network namespace of its own, as its root, which is the host here.
"""

import errno
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest
from pyroute2 import IPRoute

from metropolis.node.core.network.workloads.testing.lab import (
    Pod,
    await_objects,
    objects,
    pods,
    settled,
    udp_round_trip,
)
from metropolis.node.core.network.workloads.testing.served import Served, texts

INET, INET6, UDP, TCP = socket.AF_INET, socket.AF_INET6, socket.SOCK_DGRAM, socket.SOCK_STREAM


@pytest.fixture(autouse=True)
def forwarding() -> None:
    """Prepare what the network service does on a node."""
    Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
    Path("/proc/sys/net/ipv6/conf/all/forwarding").write_text("1")


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Served]]:
    """Start services on one socket; end the rest, and remove their links."""
    started: list[Served] = []

    def one(**chosen: object) -> Served:
        started.append(Served(tmp_path / "run" / "s", **chosen))  # type: ignore[arg-type]
        return started[-1]

    yield one
    last = started[-1]
    if last.process.poll() is None:
        for workload_id in last.client.list():
            last.client.detach(workload_id)
        assert last.end() == 0


def test_traffic_flows_at_once_in_both_families(start: Callable[..., Served]) -> None:
    served = start()
    with pods(2) as (one, two):
        first, second = (
            texts(served.client.attach(f"w{n}", p).ip) for n, p in enumerate((one, two))
        )
        for family, (a, b) in zip((INET, INET6), zip(first, second, strict=True), strict=True):
            for server, client, to, by in [
                (one, two, a, b),
                (two, one, b, a),
            ]:
                with server.socket(family, UDP) as s, client.socket(family, UDP) as c:
                    assert udp_round_trip(s, c, to) == (by, to)
            # The host to the pod, with the source that it chooses.
            with one.socket(family, UDP) as s, socket.socket(family, UDP) as c:
                c.settimeout(10)
                own, answered = udp_round_trip(s, c, a)
                assert answered == a
                assert own == ("169.254.77.1" if family == INET else "fe80::1")


def test_the_first_hop_answers_in_both_families(start: Callable[..., Served]) -> None:
    served = start()
    with pods(1) as (pod,):
        four, six = texts(served.client.attach("w1", pod).ip)
        index = pod.inside(lambda: socket.if_nametoindex("eth0"))
        with (
            socket.socket(INET, UDP) as s4,
            socket.socket(INET6, UDP) as s6,
            pod.socket(INET, UDP) as c4,
            pod.socket(INET6, UDP) as c6,
        ):
            for s in (s4, s6):
                s.settimeout(10)
            assert udp_round_trip(s4, c4, "169.254.77.1")[0] == four
            s6.bind(("::", 0))
            c6.bind((six, 0))
            # As one: the answer must come back from fe80::1 itself.
            c6.connect(("fe80::1", s6.getsockname()[1], 0, index))
            settled("fe80::1")  # a datagram before that may be lost, and is sent once
            c6.send(b"ping")
            _, peer = s6.recvfrom(100)
            assert peer[0] == six
            s6.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, bytes(20))
            hop = socket.inet_pton(INET6, "fe80::1")
            link = served.client.host_ifindexes()["w1"]
            info = hop + link.to_bytes(4, "little")
            s6.sendmsg([b"pong"], [(socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, info)], 0, peer)
            assert c6.recv(100) == b"pong"


@pytest.mark.parametrize("prefix", ["10.192.0.0/24", "fd00:10:192::/112"])
def test_one_family_alone(start: Callable[..., Served], prefix: str) -> None:
    served = start(prefixes=[prefix])
    with pods(2) as (one, two):
        (a,) = texts(served.client.attach("w1", one).ip)
        served.client.attach("w2", two)
        family = INET if "." in a else INET6
        with one.socket(family, UDP) as s, two.socket(family, UDP) as c:
            udp_round_trip(s, c, a)


def test_a_second_interface_carries_what_is_bound_to_it(start: Callable[..., Served]) -> None:
    served = start()
    with pods(2) as (one, two):
        first = texts(served.client.attach("w1", one).ip)
        second = texts(served.client.attach("w1", one, "net1").ip)
        other = texts(served.client.attach("w2", two).ip)
        for family, n in ((INET, 0), (INET6, 1)):
            for device, own in (("eth0", first), ("net1", second)):
                with two.socket(family, UDP) as s, one.socket(family, UDP) as c:
                    c.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device.encode())
                    assert udp_round_trip(s, c, other[n]) == (own[n], other[n])


def test_a_killed_service_loses_and_leaks_nothing(start: Callable[..., Served]) -> None:
    served = start()
    with pods(3) as (one, two, three):
        a, _ = texts(served.client.attach("w1", one).ip)
        made = served.client.attach("w2", two)
        b = texts(made.ip)
        before = objects()
        with one.socket(INET, TCP) as listener, two.socket(INET, TCP) as c:
            listener.bind((a, 0))
            listener.listen()
            c.connect(listener.getsockname())
            s, _ = listener.accept()
            served.kill()
            c.sendall(b"while nobody serves")
            assert s.recv(100) == b"while nobody serves"
            served = start()
            assert objects() == before
            s.sendall(b"and after")
            assert c.recv(100) == b"and after"
            s.close()
        assert served.client.list()["w2"] == b
        assert served.client.attach("w2", two) == made
        new = texts(served.client.attach("w3", three).ip)
        assert not set(new) & {a, *b}
        served.client.detach("w1")
        assert set(served.client.list()) == {"w2", "w3"}


def test_a_service_killed_at_any_time_leaves_whole_attachments_or_none(
    start: Callable[..., Served],
) -> None:
    """Killed while it attaches twelve pods, a bit later each time. Then partial
    attachments are gone, and the others have all their routes.
    """
    served = start()
    for done in range(5):
        with pods(12) as made:
            calls = [served.client.attach_later(f"w{n}", pod) for n, pod in enumerate(made)]
            calls[done].result()
            served.kill()
            served = start()
            listed = served.client.list()
            assert f"w{done}" in listed
            with IPRoute() as host:
                links = [link for link in host.get_links() if link.get("group") == 8]
                routes = {r.get("dst") for r in host.get_routes() if r["proto"] == 77}
            link_local = {route for route in routes if route.startswith("fe80:")}
            assert len(links) == len(listed) == len(link_local)
            assert routes - link_local == {ip for ips in listed.values() for ip in ips}
            for n, pod in enumerate(made):  # the caller tries again
                assert len(served.client.attach(f"w{n}", pod).ip) == 2
            assert len(served.client.list()) == 12
            for n in range(12):
                served.client.detach(f"w{n}")


def test_a_namespace_that_dies_frees_its_address(start: Callable[..., Served]) -> None:
    served = start(prefixes=["10.192.0.1/32"])
    with pods(2) as (one, two):
        served.client.attach("w1", one)
        with pytest.raises(grpc.RpcError):
            served.client.attach("w2", two)
        with IPRoute() as host:
            host.bind()
            one.close()
            while not any(m["event"] == "RTM_DELLINK" for m in host.get()):
                pass
        # The service hears of it when we do; its list says when it has acted.
        deadline = time.monotonic() + 10
        while served.client.list() and time.monotonic() < deadline:
            pass
        assert texts(served.client.attach("w2", two).ip) == ("10.192.0.1",)


def test_nothing_forks_and_no_descriptor_is_lost(start: Callable[..., Served]) -> None:
    served = start()
    proc = Path(f"/proc/{served.process.pid}")

    def cycle() -> None:
        with pods(1) as (pod,):
            served.client.attach("w1", pod)
            # Every thread is in the host's namespace.
            assert _namespaces(proc) == {os.stat("/proc/self/ns/net").st_ino}
            served.client.detach("w1")

    for _ in range(20):
        cycle()  # all workers have started
    before = len(os.listdir(proc / "fd"))
    for _ in range(20):
        cycle()
    assert len(os.listdir(proc / "fd")) == before
    assert len(os.listdir(proc / "task")) < 40
    # It has no child, and never had one: the page faults of children that
    # were waited for are field 11 of stat (proc_pid_stat(5)).
    assert "".join(path.read_text() for path in proc.glob("task/*/children")) == ""
    assert (proc / "stat").read_text().rpartition(")")[2].split()[8] == "0"


def _namespaces(proc: Path) -> set[int]:
    return {path.stat().st_ino for path in proc.glob("task/*/ns/net")}


def test_a_socket_in_use_is_an_error_and_exit_status_1(
    start: Callable[..., Served], tmp_path: Path
) -> None:
    start()
    with pytest.raises(RuntimeError, match="ended with 1"):
        Served(tmp_path / "run" / "s")


def test_pods_do_not_see_the_host_by_loopback_of_others(start: Callable[..., Served]) -> None:
    """A pod's lo is up, and is its own."""
    served = start()
    with pods(1) as (pod,):
        served.client.attach("w1", pod)
        with pod.socket(INET, TCP) as c:
            assert c.connect_ex(("127.0.0.1", 9)) == errno.ECONNREFUSED


def test_a_namespace_that_a_user_namespace_owns(start: Callable[..., Served]) -> None:
    """As for pods with user namespaces: root of the outer one may enter."""
    program = (
        "import os\n"
        "os.unshare(os.CLONE_NEWUSER | os.CLONE_NEWNET)\n"
        "print('ready', flush=True)\n"
        "input()\n"
    )
    served = start()
    before = objects()
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        pod = Pod(open_as=f"/proc/{process.pid}/ns/net")
        made = texts(served.client.attach("w1", pod).ip)
        with pod.socket(INET6, UDP) as s, socket.socket(INET6, UDP) as c:
            c.settimeout(10)
            assert udp_round_trip(s, c, made[1])[1] == made[1]
        served.client.detach("w1", pod.path)
        pod.close()
        process.communicate("\n")
    assert await_objects(before) == before
