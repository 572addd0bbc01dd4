# SPDX-License-Identifier: Apache-2.0
"""The gate of a node in a cluster, with the real kernel."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Callable
from ipaddress import ip_address, ip_network

import pytest

from metropolis.node.core.config import Network, PodPrefixes
from metropolis.node.core.network.gate import Cluster, Gate
from metropolis.node.core.network.overlay.mesh import Exchange, Mesh, Peer
from metropolis.node.core.network.rules.ruleset import RuleSet
from metropolis.node.core.network.rules.settings import Settings
from metropolis.node.core.network.uplink.uplink import UplinkStatus
from metropolis.node.core.network.workloads.conditions import Conditions
from osbase import event
from osbase.ip import IPNetwork
from osbase.supervisor import Context, Supervisor
from osbase.test.namespaces import LIMIT_S, sh

NETWORKS = tuple(map(ip_network, ("198.51.0.0/16", "fd00:200::/48")))
OWN = tuple(map(ip_network, ("198.51.7.0/24", "fd00:200:0:7::/64")))
FAR = tuple(map(ip_network, ("198.51.9.0/24", "fd00:200:0:9::/64")))


class Node:
    """A gate with the real kernel, between a curator and an overlay to be."""

    def __init__(self, endpoints: tuple[str, ...] = ()) -> None:
        self.pods = event.Value[PodPrefixes]("pods")
        self.status = event.Value[UplinkStatus]("status")
        self.outer = Exchange()
        self.conditions = Conditions()
        self.rules = RuleSet(Settings())
        cluster = Cluster(self.outer, endpoints)
        self.gate = Gate(Network(), self.pods, self.status, cluster, self.rules, self.conditions)
        assert self.gate.exchange is not None
        self.inner = self.gate.exchange

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        self.rules.update(networks=await asyncio.to_thread(self.gate.prepare))

        async def root(ctx: Context) -> None:
            ctx.run("gate", self.gate.run)
            ctx.signal_healthy()
            await asyncio.Event().wait()

        supervisor = Supervisor(root)
        task = asyncio.create_task(supervisor.run(10))
        try:
            async with asyncio.timeout(LIMIT_S):
                yield
        finally:
            supervisor.request_stop()
            assert await task == []

    def tell(self, networks: tuple[IPNetwork, ...], own: tuple[IPNetwork, ...]) -> None:
        """As the curator does."""
        self.pods.set(PodPrefixes(own))
        self.outer.mesh.set(Mesh(networks, own, absent=FAR[:1]))

    async def sees(self, where: Callable[[Mesh], bool]) -> Mesh:
        """What the overlay sees at last."""
        return await self.inner.mesh.watch().get(where)

    async def serves(self, *prefixes: IPNetwork) -> None:
        await self.gate.admitted.watch().get(lambda now: now.pods.prefixes == prefixes)


def peer(name: str, endpoint: str = "192.0.2.9", prefixes: tuple[IPNetwork, ...] = FAR) -> Peer:
    return Peer(name, name.encode().ljust(32), ip_address(endpoint), 51820, prefixes)


async def test_the_overlay_sees_no_network_that_is_refused(other_link: None) -> None:
    """Neither own prefixes in it nor peers' are used; all are afterwards."""
    sh("ip address add 198.51.100.10/24 dev x0")
    node = Node()
    node.outer.peers.set("b", peer("b"))
    node.outer.peers.set("c", peer("c", prefixes=FAR[:1]))
    async with node.running():
        node.tell(NETWORKS, OWN)
        mesh = await node.sees(lambda _: True)
        assert (mesh.networks, mesh.own, mesh.absent) == (NETWORKS[1:], OWN[1:], ())
        assert node.inner.peers.copy() == {"b": peer("b", prefixes=FAR[1:])}
        await node.serves(*OWN[1:])
        assert node.rules.settings.networks == NETWORKS[1:]
        assert node.rules.settings.withheld == NETWORKS[:1]
        assert ip_network("198.51.100.0/24") in node.rules.settings.in_use
        (problem,) = node.conditions.problems().values()
        assert problem == "pod prefix 198.51.0.0/16 overlaps 198.51.100.0/24 on x0"

        # Another peer, while it is so; then the address goes.
        node.outer.peers.set("d", peer("d"))
        while "d" not in node.inner.peers.copy():
            with node.inner.peers.watch() as watcher:
                await watcher.get()
                if "d" not in node.inner.peers.copy():
                    await watcher.get()
        await asyncio.to_thread(sh, "ip address del 198.51.100.10/24 dev x0")
        mesh = await node.sees(lambda mesh: mesh.networks == NETWORKS)
        assert (mesh.own, mesh.absent) == (OWN, FAR[:1])
        assert set(node.inner.peers.copy()) == {"b", "c", "d"}
        assert node.inner.peers.get("b") == peer("b")
        await node.serves(*OWN)
        assert node.rules.settings.networks == NETWORKS
        assert node.rules.settings.withheld == node.rules.settings.in_use == ()
        assert node.conditions.problems() == {}


async def test_a_corrected_network_is_taken_at_once(other_link: None) -> None:
    sh("ip address add 198.51.100.10/24 dev x0")
    node = Node()
    async with node.running():
        node.tell(NETWORKS[:1], OWN[:1])
        assert (await node.sees(lambda _: True)).networks == ()
        new, own = ip_network("10.200.0.0/16"), ip_network("10.200.7.0/24")
        node.tell((new,), (own,))
        assert (await node.sees(lambda mesh: bool(mesh.networks))).own == (own,)
        await node.serves(own)
        assert node.conditions.problems() == {}


@pytest.mark.parametrize(
    ("endpoint", "cause"),
    [
        ("198.51.100.1:2379", "etcd at 198.51.100.1"),
        ("etcd.example:2379", "etcd at etcd.example, 198.51.100.1"),
        ("[fd00:200::1]:2379", "etcd at fd00:200::1"),
    ],
)
async def test_etcd_is_never_cut_off(
    other_link: None, monkeypatch: pytest.MonkeyPatch, endpoint: str, cause: str
) -> None:
    """Even where no link or route says where it is."""

    def getaddrinfo(host: str, *_: object, **__: object) -> list[object]:
        assert host == "etcd.example"
        return [(2, 1, 6, "", ("198.51.100.1", 0))]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    node = Node((endpoint,))
    async with node.running():
        node.tell(NETWORKS, OWN)
        mesh = await node.sees(lambda mesh: len(mesh.networks) == 1)
        refused = NETWORKS["fd00" in endpoint]
        assert refused not in mesh.networks
        await node.gate.admitted.watch().get(lambda now: len(now.pods.prefixes) == 1)
        assert node.conditions.problems() == {"overlap": f"pod prefix {refused} overlaps {cause}"}
        assert refused not in node.rules.settings.networks


async def test_peers_and_resolvers_are_never_cut_off(other_link: None) -> None:
    node = Node()
    async with node.running():
        node.tell(NETWORKS, OWN)
        await node.sees(lambda mesh: mesh.networks == NETWORKS)
        node.outer.peers.set("b", peer("b", "198.51.100.9"))
        await node.sees(lambda mesh: mesh.networks == NETWORKS[1:])
        assert node.conditions.problems()["overlap"] == (
            'pod prefix 198.51.0.0/16 overlaps underlay address of node "b", 198.51.100.9'
        )
        node.status.set(UplinkStatus(dns=(ip_address("fd00:200::53"),)))
        await node.sees(lambda mesh: mesh.networks == ())
        node.outer.peers.set("b", peer("b"))
        await node.sees(lambda mesh: mesh.networks == NETWORKS[:1])
        node.status.set(UplinkStatus())
        await node.sees(lambda mesh: mesh.networks == NETWORKS)


@pytest.mark.parametrize("underlay", [None, "198.51.100.10/24"])
async def test_what_the_kernel_holds_from_before(other_link: None, underlay: str | None) -> None:
    """At a restart the rules know held networks from their beginning, but not
    those that overlap; routes of these go, and etcd is reached.
    """
    sh("ip link add overlay group 9 type bridge")
    try:
        sh("ip link set overlay up")
        sh("ip address add 198.51.7.0/32 dev overlay proto 78")
        sh("ip route add 198.51.0.0/16 dev overlay proto 78 src 198.51.7.0 metric 100")
        sh("ip route add unreachable 198.51.7.0/24 proto 78 metric 50")
        sh("ip -6 route add fd00:200::/48 dev overlay proto 78 metric 100")
        if underlay is not None:
            sh(f"ip address add {underlay} dev x0")
        node = Node()
        async with node.running():
            refused = underlay is not None
            assert node.rules.settings.networks == NETWORKS[refused:]
            routes = json.loads(sh("ip -json route show proto 78"))
            assert bool(routes) == (not refused)
            assert len(json.loads(sh("ip -json -6 route show proto 78"))) == 1
            addresses = sh("ip -4 address show dev overlay")
            assert ("198.51.7.0/32" in addresses) == (not refused)
            assert bool(node.conditions.problems()) == refused
            if not refused:
                # It comes while etcd is away.
                await asyncio.to_thread(sh, "ip address add 198.51.100.10/24 dev x0")
                node.pods.set(PodPrefixes(OWN))
                await node.serves(*OWN[1:])
                assert json.loads(sh("ip -json route show proto 78")) == []
                assert node.rules.settings.networks == NETWORKS[1:]
    finally:
        sh("ip link del overlay")
        sh("ip route flush proto 78")


async def test_peers_pass_as_they_come(world: None) -> None:
    """Complete before the first mesh; later only those that changed."""
    node = Node()
    for number in range(3):
        node.outer.peers.set(f"n{number}", peer(f"n{number}"))
    async with node.running():
        node.tell(NETWORKS, OWN)
        await node.sees(lambda _: True)
        with node.inner.peers.watch() as watcher:
            assert set(await watcher.get()) == {"n0", "n1", "n2"}
            node.outer.peers.update({"n1": peer("n1", "192.0.2.77")}, ["n2"])
            changed = await watcher.get()
            assert changed == {"n1": peer("n1", "192.0.2.77"), "n2": None}
