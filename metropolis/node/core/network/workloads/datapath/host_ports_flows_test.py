# SPDX-License-Identifier: Apache-2.0
"""A client that never stops sending, to a port that begins to lead to a
workload, and then to another one.
"""

import contextlib
import errno
import itertools
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from typing import Any

import pytest

from metropolis.node import allocs
from metropolis.node.core.network.rules import host_ports as table
from metropolis.node.core.network.workloads.datapath.host_ports import PART
from metropolis.node.core.network.workloads.datapath.veth import KernelDatapath
from metropolis.node.core.network.workloads.engine.engine import Engine
from metropolis.node.core.network.workloads.host_ports import Mapping, part_of
from metropolis.node.core.network.workloads.model import AttachIntent
from metropolis.node.core.network.workloads.testing.lab import Pod, await_equal, pods
from osbase import conntrack
from osbase.conntrack import delete
from osbase.nftables import Nftables
from osbase.test.namespaces import sh

NODE = {4: "192.0.2.1", 6: "2001:db8::1"}
CLIENT = {4: "192.0.2.2", 6: "2001:db8::2"}
FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}
HOST_PORT, POD_PORT, CLIENT_PORT = 5000, 6000, 7000
PAUSE_S = 0.001
# The workload's end of the link sends nothing until the kernel has looked at
# its carrier, a moment after the attach; a lost answer of ARP costs a second.
# A stale entry would last as long as the client sends.
NEIGHBOUR_S = 2.5


@pytest.fixture
def outside() -> Iterator[Pod]:
    """A neighbour of the node, which is the test's own namespace."""
    with Nftables() as nft, pods(1) as (pod,):
        nft.apply(table.render())
        sh("sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1")
        sh("ip link add uplink type veth peer name eth0")
        sh(f"ip link set eth0 netns {pod.path}")
        for address in (f"{NODE[4]}/24", f"{NODE[6]}/64 nodad"):
            sh(f"ip address add {address} dev uplink")
        sh("ip link set lo up")
        sh("ip link set uplink up")

        def configure() -> None:
            for address in (f"{CLIENT[4]}/24", f"{CLIENT[6]}/64 nodad"):
                sh(f"ip address add {address} dev eth0")
            sh("ip link set eth0 up")

        pod.inside(configure)
        yield pod
        sh("ip link del uplink")
        nft.apply("flush ruleset")
    conntrack.flush()  # a workload's late answer has made an entry of its own


@contextlib.contextmanager
def started() -> Iterator[Engine]:
    made = Engine(KernelDatapath((PART,)))
    made.start()
    made.set_prefixes([ip_network("10.9.0.0/24"), ip_network("fd00:9::/120")])
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def engine() -> Iterator[Engine]:
    with started() as made:
        yield made
        made.collect(lambda *_: False)


@dataclass
class Client:
    """Sends numbered datagrams from one port to the node's, all the time."""

    pod: Pod
    version: int
    sent: int = 0
    socket: socket.socket = field(init=False)

    def __enter__(self) -> Client:
        self.socket = self.pod.socket(FAMILIES[self.version], socket.SOCK_DGRAM)
        self.socket.bind((CLIENT[self.version], CLIENT_PORT))
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._send)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self.socket.close()

    def _send(self) -> None:
        for number in itertools.count(1):
            if self._ended.wait(PAUSE_S):
                return
            self.sent = number
            self.socket.sendto(str(number).encode(), (NODE[self.version], HOST_PORT))


def server(pod: Pod, version: int) -> socket.socket:
    made = pod.socket(FAMILIES[version], socket.SOCK_DGRAM)
    made.bind(("", POD_PORT))
    return made


def attach(engine: Engine, pod: Pod, workload_id: str, host_ip: str | None = None) -> None:
    at = None if host_ip is None else ip_address(host_ip)
    ports = part_of([Mapping("udp", HOST_PORT, POD_PORT, at)])
    engine.attach(AttachIntent(workload_id, pod.path, "eth0", parts=ports))


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("answering", [True, False])
def test_datagrams_reach_the_new_workload_at_once(
    outside: Pod, engine: Engine, version: int, answering: bool
) -> None:
    """They do from a flow that began before the port led anywhere, and from one
    to a workload that was replaced.
    """
    with pods(2) as made, Client(outside, version) as client:
        time.sleep(50 * PAUSE_S)
        for pod, name in zip(made, ("w1", "w2"), strict=True):
            with server(pod, version) as serving:
                attach(engine, pod, name)
                sent = client.sent
                first, peer = serving.recvfrom(100)
                assert int(first) <= sent + NEIGHBOUR_S / PAUSE_S
                assert peer[:2] == (CLIENT[version], CLIENT_PORT)
                for _ in range(20):
                    if answering:
                        serving.sendto(name.encode(), peer)
                        answer, origin = client.socket.recvfrom(100)
                        assert (answer, origin[:2]) == (
                            name.encode(),
                            (NODE[version], HOST_PORT),
                        )
                    serving.recvfrom(100)
                engine.detach(name)


@dataclass
class Talk:
    """A client outside and a workload's server, which take turns."""

    client: socket.socket
    serving: socket.socket
    version: int
    peer: Any = None

    def ask(self, word: bytes) -> None:
        """The server gets the word from the client's address and port."""
        self.client.sendto(word, (NODE[self.version], HOST_PORT))
        got, self.peer = self.serving.recvfrom(100)
        assert (got, self.peer[:2]) == (word, (CLIENT[self.version], CLIENT_PORT))

    def answer(self, word: bytes) -> None:
        """The client gets the word from where it asked."""
        self.serving.sendto(word, self.peer)
        got, origin = self.client.recvfrom(100)
        assert (got, origin[:2]) == (word, (NODE[self.version], HOST_PORT))


@contextlib.contextmanager
def client_of(outside: Pod, version: int) -> Iterator[socket.socket]:
    with outside.socket(FAMILIES[version], socket.SOCK_DGRAM) as client:
        client.bind((CLIENT[version], CLIENT_PORT))
        client.settimeout(10)
        yield client


@pytest.mark.parametrize("version", [4, 6])
def test_a_flow_that_begins_with_the_port_stays(
    outside: Pod, engine: Engine, version: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its first packet comes between the commit and the look for stale flows,
    and its answer after.
    """
    with pods(1) as (pod,), client_of(outside, version) as client, server(pod, version) as serving:
        serving.settimeout(10)
        talk = Talk(client, serving, version)
        looked: list[None] = []
        real = delete.delete

        def begin(*arguments: Any) -> None:
            talk.ask(b"first")
            looked.append(real(*arguments))

        monkeypatch.setattr(delete, "delete", begin)
        attach(engine, pod, "w1")
        monkeypatch.undo()
        talk.answer(b"answer to the first")
        talk.ask(b"second")
        talk.answer(b"answer to the second")
        assert looked == [None]


@pytest.mark.parametrize("version", [4, 6])
def test_another_workload_has_the_rest_of_the_port(
    outside: Pod, engine: Engine, version: int
) -> None:
    """One has the port of an address; what comes and goes for all the others
    harms no flow of it: its answer under way arrives.
    """
    with pods(2) as made, client_of(outside, version) as client:
        with server(made[0], version) as serving:
            serving.settimeout(10)
            talk = Talk(client, serving, version)
            attach(engine, made[0], "w1", NODE[version])
            talk.ask(b"first")
            attach(engine, made[1], "w2")
            talk.answer(b"after the attach")
            engine.detach("w2", until_gone=True)
            talk.answer(b"after the detach")
            talk.ask(b"second")


@pytest.mark.parametrize("version", [4, 6])
def test_one_address_is_taken_from_the_port_of_all(
    outside: Pod, engine: Engine, version: int
) -> None:
    """The next packet of a flow goes to the workload with the port of its
    address, and back when that ends.
    """
    with (
        pods(2) as made,
        client_of(outside, version) as client,
        server(made[0], version) as all_others,
        server(made[1], version) as one,
    ):
        for each in (all_others, one):
            each.settimeout(10)
        attach(engine, made[0], "w1")
        Talk(client, all_others, version).ask(b"to w1")
        attach(engine, made[1], "w2", NODE[version])
        Talk(client, one, version).ask(b"to w2")
        engine.detach("w2", until_gone=True)
        Talk(client, all_others, version).ask(b"to w1 again")


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("host_ip", [False, True])
def test_a_workload_that_ended_while_the_service_was_away(
    outside: Pod, version: int, host_ip: bool
) -> None:
    """Its port's flow goes to the next workload."""
    at = NODE[version] if host_ip else None
    with client_of(outside, version) as client, pods(2) as made:
        with started() as engine, server(made[0], version) as serving:
            serving.settimeout(10)
            attach(engine, made[0], "w1", at)
            Talk(client, serving, version).ask(b"to w1")
        made[0].close()
        assert await_equal(lambda: "wl" in sh("ip -br link"), False) is False
        with started() as engine, server(made[1], version) as serving:
            serving.settimeout(10)
            client.sendto(b"to nobody", (NODE[version], HOST_PORT))
            attach(engine, made[1], "w2", at)
            Talk(client, serving, version).ask(b"to w2")
            engine.collect(lambda *_: False, until_gone=True)


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("host_ip", [False, True])
def test_a_workload_ends_while_the_service_is_away(
    outside: Pod, version: int, host_ip: bool
) -> None:
    """Another gets its address, not its flows: the port is the node's."""
    with pods(2) as made, client_of(outside, version) as client:
        with started() as first, server(made[0], version) as serving:
            serving.settimeout(10)
            attach(first, made[0], "w1", NODE[version] if host_ip else None)
            Talk(client, serving, version).ask(b"first")
            address = first.list()[0].ips
        made[0].close()
        await_equal(lambda: sh("ip -br link show group 8"), "")
        with started() as second, socket.socket(FAMILIES[version], socket.SOCK_DGRAM) as node:
            node.bind((NODE[version], HOST_PORT))
            node.settimeout(3)
            given = second.attach(AttachIntent("w2", made[1].path, "eth0"))
            assert given.ips == address
            client.sendto(b"second", (NODE[version], HOST_PORT))
            assert node.recv(100) == b"second"
            second.detach("w2", until_gone=True)


@pytest.mark.parametrize("version", [4, 6])
def test_a_port_that_is_put_back_has_its_flows(outside: Pod, engine: Engine, version: int) -> None:
    """One began while others had taken the port's element away."""
    with pods(1) as (pod,), client_of(outside, version) as client, server(pod, version) as serving:
        serving.settimeout(5)
        attach(engine, pod, "w1")
        sh(f"nft flush map inet {allocs.NFTABLES_WORKLOADS} any{version}")
        with socket.socket(FAMILIES[version], socket.SOCK_DGRAM) as node:
            node.bind((NODE[version], HOST_PORT))
            node.settimeout(5)
            client.sendto(b"first", (NODE[version], HOST_PORT))
            assert node.recv(100) == b"first"
        assert [one.error for one in engine.repair(lambda _: True)] == [""]
        Talk(client, serving, version).ask(b"second")


@contextlib.contextmanager
def conversation(
    outside: Pod, engine: Engine, version: int, rules: str, to: str
) -> Iterator[tuple[Callable[[bytes], object], socket.socket, Pod]]:
    """A workload has asked a server outside, by this address, at the number of
    the host port; others' rules masquerade it. Yields what sends an answer, the
    socket that gets it, and another pod.
    """
    with Nftables() as nft, pods(2) as (asking, other):
        nft.apply(rules)
        engine.attach(AttachIntent("asks", asking.path, "eth0"))
        with (
            outside.socket(FAMILIES[version], socket.SOCK_DGRAM) as serving,
            asking.socket(FAMILIES[version], socket.SOCK_DGRAM) as client,
        ):
            serving.bind((CLIENT[version], HOST_PORT))
            for one in (serving, client):
                one.settimeout(10)
            client.sendto(b"question", (to, HOST_PORT))
            _, peer = serving.recvfrom(100)
            assert peer[0] == NODE[version]
            yield lambda answer: serving.sendto(answer, peer), client, other


@pytest.mark.parametrize("version", [4, 6])
def test_flows_that_others_lead_stay(outside: Pod, engine: Engine, version: int) -> None:
    """A workload asks an address of a service at the port that another one's
    host port has; other rules lead it to a server outside.
    """
    service = {4: "10.96.0.10", 6: "fd00:96::a"}[version]
    to = {4: f"ip daddr {service} dnat ip to", 6: f"ip6 daddr {service} dnat ip6 to"}[version]
    rules = f"""table inet t {{
        chain a {{ type nat hook prerouting priority -100; {to} {CLIENT[version]}; }}
        chain b {{ type nat hook postrouting priority 100; masquerade; }}
    }}"""
    with conversation(outside, engine, version, rules, service) as (asked, client, other):
        attach(engine, other, "w1")
        asked(b"first")
        assert client.recvfrom(100)[1][:2] == (service, HOST_PORT)
        engine.detach("w1", until_gone=True)
        asked(b"second")
        assert client.recvfrom(100)[1][:2] == (service, HOST_PORT)


@pytest.mark.parametrize("version", [4, 6])
def test_answers_to_others_are_not_lost(outside: Pod, engine: Engine, version: int) -> None:
    """A workload asks a server outside at the port that another one's host port
    has: as of DNS. Its masqueraded flow stays when that comes and goes.
    """
    masquerade = "table inet t { chain c { type nat hook postrouting priority 100; masquerade; }; }"
    with conversation(outside, engine, version, masquerade, CLIENT[version]) as (
        asked,
        client,
        other,
    ):
        attach(engine, other, "w1")
        asked(b"first")
        assert client.recv(100) == b"first"
        engine.detach("w1", until_gone=True)
        asked(b"second")
        assert client.recv(100) == b"second"


def test_an_error_is_logged(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Attach and Detach succeed."""

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOBUFS, "no room")

    monkeypatch.setattr(delete, "delete", refuse)
    with Nftables() as nft, pods(1) as (pod,), caplog.at_level(logging.WARNING):
        nft.apply(table.render())
        attach(engine, pod, "w1")
        assert "workload 'w1': flows to its ports stay" in caplog.text
        caplog.clear()
        engine.detach("w1", until_gone=True)
        assert "workload 'w1': flows to its ports stay" in caplog.text
        nft.apply("flush ruleset")


def test_without_such_ports_nothing_is_asked(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An attach without ports, or by TCP only, opens no socket."""
    monkeypatch.setattr(delete, "delete", None)
    with Nftables() as nft, pods(2) as made:
        nft.apply(table.render())
        engine.attach(AttachIntent("w1", made[0].path, "eth0"))
        tcp = part_of([Mapping("tcp", HOST_PORT, POD_PORT)])
        engine.attach(AttachIntent("w2", made[1].path, "eth0", parts=tcp))
        for name in ("w1", "w2"):
            engine.detach(name, until_gone=True)
        nft.apply("flush ruleset")
