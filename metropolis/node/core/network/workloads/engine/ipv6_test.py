# SPDX-License-Identifier: Apache-2.0
"""IPv6 is switched off: on the node, in a namespace. On the fake datapath."""

from ipaddress import IPv4Address, ip_address, ip_network

import pytest

from metropolis.node.core.network.workloads.conditions import Conditions
from metropolis.node.core.network.workloads.engine.engine import Engine
from metropolis.node.core.network.workloads.errors import (
    KernelRefused,
    Unavailable,
    WorkloadError,
)
from metropolis.node.core.network.workloads.model import AttachIntent
from metropolis.node.core.network.workloads.testing.fake import HOME, FakeDatapath, FakeKernel

FOUR, SIX = ip_network("10.0.0.0/29"), ip_network("fd00::/125")


class World:
    """`/a` has IPv6, `/b` does not."""

    def __init__(self) -> None:
        self.kernel = FakeKernel(namespaces={"/home": HOME})
        self.kernel.add_netns("/a")
        self.kernel.without_ipv6.add(self.kernel.add_netns("/b"))
        self.restart()

    def restart(self, *, optional: bool = False, ipv6: bool = True) -> Engine:
        self.datapath = FakeDatapath(self.kernel)
        self.datapath.ipv6 = ipv6
        self.engine = Engine(self.datapath, Conditions())
        self.engine.set_ipv6_optional(optional)
        self.engine.set_prefixes([FOUR, SIX])
        self.engine.start()
        return self.engine


@pytest.fixture
def world() -> World:
    return World()


def versions(engine: Engine, path: str, workload_id: str = "w") -> list[int]:
    made = engine.attach(AttachIntent(workload_id, path, "eth0"))
    assert [gateway.version for gateway in made.gateways] == [ip.version for ip in made.ips]
    return [ip.version for ip in made.ips]


def test_a_namespace_without_it_is_refused(world: World) -> None:
    for path in ("/b", "/b"):
        with pytest.raises(KernelRefused, match=r'IPv6.*set `ipv6: "optional"`'):
            versions(world.engine, path)
    assert not world.kernel.links
    assert world.engine.in_use(FOUR) == world.engine.in_use(SIX) == 0
    assert versions(world.engine, "/a") == [4, 6]


def test_or_has_ipv4_alone_where_that_is_wanted(world: World) -> None:
    engine = world.restart(optional=True)
    made = engine.attach(AttachIntent("w", "/b", "eth0"))
    assert [ip.version for ip in made.ips] == [4]
    assert engine.in_use(FOUR) == 1
    assert engine.in_use(SIX) == 0  # it went back
    assert engine.attach(AttachIntent("w", "/b", "eth0")) == made
    assert world.restart().attach(AttachIntent("w", "/b", "eth0")) == made
    (record,) = world.kernel.links.values()
    assert all(isinstance(ip, IPv4Address) for ip in record.ips)
    assert versions(world.engine, "/a", "other") == [4, 6]
    world.engine.detach("w", until_gone=True)
    assert world.engine.in_use(FOUR) == 1


def test_the_first_attempt_that_is_told_to_be_gone_is_not_the_second(world: World) -> None:
    """Its removal is an event, which may come late."""
    engine = world.restart(optional=True)
    late: list[int] = []
    real = world.datapath.take_link

    def taking(ifindex: int, *, reported: bool = True) -> None:
        late.append(ifindex)
        real(ifindex, reported=False)

    world.datapath.take_link = taking  # type: ignore[method-assign]
    made = engine.attach(AttachIntent("w", "/b", "eth0"))
    world.datapath.take_link = real  # type: ignore[method-assign]
    (first,) = late
    real(first)
    assert engine.list() == [made]


def test_what_asks_for_ipv6_does_not_do_without(world: World) -> None:
    engine = world.restart(optional=True)
    asked = AttachIntent("w", "/b", "eth0", requested_ips=(ip_address("fd00::3"),))
    with pytest.raises(KernelRefused, match="was asked for"):
        engine.attach(asked)
    engine.set_prefixes([SIX])
    with pytest.raises(KernelRefused, match="all there is"):
        versions(engine, "/b")
    assert not world.kernel.links
    assert engine.in_use(SIX) == 0
    assert versions(engine, "/a") == [6]


def test_a_node_without_it_has_no_use_for_an_ipv6_prefix(world: World) -> None:
    engine = world.restart(ipv6=False)
    for call in (engine.status, lambda: versions(engine, "/a")):
        with pytest.raises(Unavailable, match=r'no IPv6: .*set `ipv6: "optional"`'):
            call()
    engine.set_prefixes([FOUR])
    engine.status()
    assert versions(engine, "/a") == [4]


def test_unless_it_may_do_without(world: World) -> None:
    engine = world.restart(optional=True, ipv6=False)
    engine.status()
    assert versions(engine, "/a") == [4]
    assert engine.in_use(SIX) == 0
    asked = AttachIntent("w2", "/b", "eth0", requested_ips=(ip_address("fd00::3"),))
    with pytest.raises(WorkloadError, match="IPv6"):
        engine.attach(asked)
    engine.set_prefixes([SIX])
    with pytest.raises(Unavailable, match="give the node an IPv4 prefix"):
        engine.status()
    with pytest.raises(Unavailable):
        versions(engine, "/b", "w3")
