# SPDX-License-Identifier: Apache-2.0
"""Flows whose marks are of another time: of workloads that have ended, of
policies that were switched off, of a service that was killed.

The manager is the real one; `pod` is `app: web`, `pod-b` is `app: db`.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Final

import pytest

from metropolis.node.core.network.policy.live import LiveKernel
from metropolis.node.core.network.policy.manager import Manager
from metropolis.node.core.network.policy.model import (
    Direction,
    Operator,
    Policy,
    Requirement,
    Rule,
    Tier,
    Workloads,
)
from metropolis.node.core.network.policy.sources import Source
from metropolis.node.core.network.policy.store import Store
from metropolis.node.core.network.rules import host_ports
from metropolis.node.core.network.rules.settings import Settings
from metropolis.node.core.network.rules.testing.ends import (
    ADDRESSES,
    address,
    at,
    connect,
    server,
    try_tcp,
)
from metropolis.node.core.network.rules.testing.lab import ALL, FAMILY, NETWORKS, apply
from metropolis.node.core.network.workloads.conditions import Conditions
from metropolis.node.core.network.workloads.datapath.interface import Record
from metropolis.node.core.network.workloads.model import Identity
from osbase import conntrack
from osbase.nftables import Nftables
from osbase.test.namespaces import sh

pytestmark = pytest.mark.usefixtures("links")

FAMILIES: Final = pytest.mark.parametrize("version", [4, 6])
WEB: Final = Identity("shop", {"app": "web"})
DB: Final = Identity("shop", {"app": "db"})
NOTHING_S: Final = 0.5
"""Within which a packet that passes has arrived."""


@pytest.fixture(scope="module", autouse=True)
def addressed(links: None) -> None:
    address()


@pytest.fixture(autouse=True)
def table(addressed: None) -> Iterator[None]:
    apply(Settings(NETWORKS, node_access=ALL, overlay=True))
    with Nftables() as nft:
        nft.apply(host_ports.render_whole())
    conntrack.flush()
    yield
    sh("nft flush ruleset")


def labelled(value: str) -> Workloads:
    return Workloads(workloads=(Requirement("app", Operator.IN, (value,)),))


def isolated(subject: str, *sources: str) -> Policy:
    """Return a policy for ingress from these alone."""
    rules = tuple(Rule((labelled(one),), None) for one in sources)
    which = frozenset({Direction.INGRESS})
    return Policy(f"shop/{subject}", Tier.NAMESPACE, labelled(subject), rules, isolates=which)


def record(place: str, ifindex: int, workload_id: str = "") -> Record:
    ips = tuple(ip_address(ADDRESSES[place][version]) for version in (4, 6))
    name = f"wl{ifindex}"
    mac = b"\2" + bytes(5)
    return Record(workload_id or place, "eth0", ifindex, name, ifindex, 2, mac, 1500, ips, b"")


class Node:
    """A manager, and its files, which outlive it."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._generation = 0
        self.kernel = LiveKernel()
        self.manager = Manager(self.kernel, Store(directory), Conditions())

    def start(self, *records: Record) -> Node:
        """Start, with the attachments that there are."""
        self.manager.adopt(records)
        return self

    def again(self, *records: Record) -> None:
        """Start again."""
        self.kernel = LiveKernel()
        self.manager = Manager(self.kernel, Store(self._directory), Conditions())
        self.start(*records)

    def set(self, *policies: Policy) -> None:
        self._generation += 1
        self.manager.set_policies(Source("api", self._generation, policies))


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path / "policy").start()


@contextlib.contextmanager
def udp(version: int) -> Iterator[tuple[socket.socket, socket.socket]]:
    """Yield a client in pod and a server in pod-b, between which a packet has
    passed.
    """
    with server(version, "pod-b", 53, "udp") as peer:
        with at("pod"):
            client = socket.socket(FAMILY[version], socket.SOCK_DGRAM)
        with client:
            client.connect((ADDRESSES["pod-b"][version], 53))
            client.send(b"first")
            assert peer.recv(10) == b"first"
            yield client, peer


def passes(one: socket.socket, other: socket.socket) -> bool:
    other.settimeout(NOTHING_S)
    try:
        one.send(b"more")
        return other.recv(10) == b"more"
    except OSError:
        return False


@FAMILIES
@pytest.mark.parametrize("policed", [True, False])
@pytest.mark.parametrize("restarted", [True, False])
def test_the_next_workload_with_an_address(
    node: Node, version: int, policed: bool, restarted: bool
) -> None:
    """The peer of the one before keeps its flow alive, and gets no further. If
    nothing knows that an address was a workload's, nothing can be said: without
    policies flows have no mark.
    """
    if restarted and not policed:
        pytest.skip("an unmarked flow with an address that was nobody's at the start")
    web, other = record("pod", 5), record("pod-b", 7)
    node.manager.admit(web, WEB)
    node.manager.admit(other, Identity("shop", {"app": "open"}))
    if policed:
        node.set(isolated("db"))
    with udp(version) as (client, peer):
        node.manager.forget([other])
        if restarted:
            node.again(web)
        if not policed:
            node.set(isolated("db"))
        node.manager.admit(record("pod-b", 8, "next"), DB)
        assert not passes(client, peer)


@FAMILIES
def test_the_next_workload_goes_on_with_no_connection(node: Node, version: int) -> None:
    """Another web pod keeps what the policy allows in force."""
    node.manager.admit(record("pod", 5), WEB)
    node.manager.admit(record("overlay", 6), WEB)
    node.manager.admit(record("pod-b", 7), DB)
    node.set(isolated("db", "web"))
    with server(version, "pod-b", 80) as listener:
        client = connect("pod", ADDRESSES["pod-b"][version], 80)
        with client, listener.accept()[0] as peer:
            assert passes(client, peer)
            node.manager.forget([record("pod", 5)])
            node.manager.admit(record("pod", 8, "next"), Identity("shop", {"app": "other"}))
            assert not passes(client, peer)


@FAMILIES
def test_flows_of_others_go_on(node: Node, version: int) -> None:
    """Beside an address that goes to another; and the present owner's."""
    node.manager.admit(record("pod", 5), WEB)
    node.manager.forget([record("pod", 5)])
    node.manager.admit(record("pod", 8, "next"), WEB)
    node.manager.admit(record("pod-b", 7), DB)
    with udp(version) as (client, peer):
        node.set(isolated("db", "web"))
        assert passes(client, peer)
        node.manager.admit(record("overlay", 6), WEB)
        node.manager.forget([record("overlay", 6)])
        node.manager.admit(record("overlay", 9, "far"), WEB)
        assert passes(client, peer)


@FAMILIES
def test_policies_that_were_switched_off(node: Node, version: int) -> None:
    """The flow has the mark of former identities, which none has now."""
    others = tuple(isolated(f"x{number}") for number in range(2))
    ended = [record(place, 20 + number) for number, place in enumerate(("overlay", "up0"))]
    for number, one in enumerate(ended):
        node.manager.admit(one, Identity("shop", {"app": f"x{number}"}))
    node.set(*others)
    node.manager.admit(record("pod", 5), WEB)
    node.manager.admit(record("pod-b", 7), DB)
    node.set(isolated("db", "web"), *others)
    node.manager.forget(ended)
    with udp(version) as (client, peer):
        node.set()
        assert passes(client, peer)
        node.set(isolated("db"))
        assert not passes(client, peer)


@FAMILIES
def test_a_service_that_is_killed_before_it_cuts(
    node: Node, version: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tables are as they should be; the flow is not."""
    web, db = record("pod", 5), record("pod-b", 7)
    node.manager.admit(web, WEB)
    node.manager.admit(db, DB)
    node.set(isolated("db", "web"))
    with udp(version) as (client, peer):
        monkeypatch.setattr(node.kernel, "revoke", lambda *_, **__: 0)
        node.manager.set_labels("pod", DB)
        assert passes(client, peer)
        assert try_tcp("pod", ADDRESSES["pod-b"][version], 80) == "reset"
        node.again(web, db)
        assert not passes(client, peer)
