# SPDX-License-Identifier: Apache-2.0
"""SIGKILL at every step of a change, on the kernel: the next start finds it
whole or not at all, and nothing is open meanwhile that is closed before and
after it.
"""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest

from metropolis.node.core.network.policy.compiler import Compiler, Numbers
from metropolis.node.core.network.policy.evaluate import Evaluator
from metropolis.node.core.network.policy.live import LiveKernel
from metropolis.node.core.network.policy.lookup import Lookup
from metropolis.node.core.network.policy.manager import Kernel, Manager
from metropolis.node.core.network.policy.model import (
    Direction,
    Networks,
    Operator,
    Policy,
    Ports,
    Protocol,
    Requirement,
    Rule,
    Tier,
    Workloads,
)
from metropolis.node.core.network.policy.sources import Source
from metropolis.node.core.network.policy.store import Store
from metropolis.node.core.network.policy.tables import Tables
from metropolis.node.core.network.policy.testing.fake import FakeKernel
from metropolis.node.core.network.policy.testing.points import killed_at
from metropolis.node.core.network.rules import host_ports
from metropolis.node.core.network.workloads.conditions import Conditions
from metropolis.node.core.network.workloads.datapath.interface import Record
from metropolis.node.core.network.workloads.model import Identity, IPAddress
from osbase.nftables import Nftables

WEB = Identity("shop", {"app": "web"})
DB = Identity("shop", {"app": "db"}, {"sql": ("tcp", 5432)})
WORLD = (ip_address("192.0.2.1"), ip_address("2001:db8::1"))
PORTS = (80, 5432)


def labelled(value: str) -> Workloads:
    return Workloads(workloads=(Requirement("app", Operator.IN, (value,)),))


DENY_ALL = Policy("shop/deny", Tier.NAMESPACE, Workloads(), isolates=frozenset(Direction))
DB_FROM_WEB = Policy(
    "shop/db",
    Tier.NAMESPACE,
    labelled("db"),
    (Rule((labelled("web"),), (Ports(Protocol.TCP, 80, 80),)),),
    isolates=frozenset({Direction.INGRESS}),
)
WEB_FROM_WORLD = Policy(
    "shop/web",
    Tier.NAMESPACE,
    labelled("web"),
    (Rule((Networks((ip_network("192.0.2.0/24"),)),), None),),
    isolates=frozenset({Direction.INGRESS}),
)
BOTH = (DB_FROM_WEB, WEB_FROM_WORLD)


def record(number: int, *, ifindex: int = 0, ipv6: bool = True) -> Record:
    """Return the attachment of workload w<number>."""
    ips = (ip_address(f"10.0.0.{number}"), ip_address(f"fd00::{number:x}"))
    return Record(
        f"w{number}", "eth0", number, f"wl{number}", ifindex or number, 2, b"\2" + bytes(5), 1500,
        ips if ipv6 else ips[:1], b"",
    )  # fmt: skip


@dataclass(frozen=True)
class Change:
    """policies: before it. ended: what it forgets. made: what it admits, which
    is there only if it was not killed.
    """

    act: Callable[[Manager], object]
    policies: tuple[Policy, ...] = BOTH
    ended: tuple[int, ...] = ()
    made: tuple[int, ...] = ()


def sets(*policies: Policy, source: str = "api") -> Callable[[Manager], object]:
    return lambda manager: manager.set_policies(Source(source, 2, policies))


def admits(one: Record, identity: Identity | None) -> Callable[[Manager], object]:
    return lambda manager: manager.admit(one, identity)


def forgets(*numbers: int) -> Callable[[Manager], object]:
    return lambda manager: manager.forget([record(one) for one in numbers])


def labels(number: int, identity: Identity) -> Callable[[Manager], object]:
    return lambda manager: manager.set_labels(f"w{number}", identity)


BEFORE: Mapping[int, Identity | None] = {1: WEB, 2: DB, 3: None, 4: WEB, 5: Identity(known=False)}
CHANGES: dict[str, Change] = {
    "first policies": Change(sets(*BOTH), policies=()),
    "other policies": Change(sets(WEB_FROM_WORLD, DENY_ALL)),
    "no policies": Change(sets()),
    "another source": Change(sets(DENY_ALL, source="files")),
    "labels": Change(labels(1, DB)),
    "first labels": Change(labels(3, WEB)),
    "unknown labels": Change(labels(5, WEB)),
    "no more labels": Change(labels(2, Identity())),
    "admit": Change(admits(record(6), WEB), made=(6,)),
    "admit what a runtime does not know": Change(
        admits(record(6), Identity("shop", known=False)), made=(6,)
    ),
    "admit without labels": Change(admits(record(6), None), made=(6,)),
    "admit again": Change(admits(record(1), DB)),
    "forget": Change(forgets(2), ended=(2,)),
    "forget all": Change(forgets(1, 2, 3, 4, 5), ended=(1, 2, 3, 4, 5)),
    "forget without policies": Change(forgets(2), policies=(), ended=(2,)),
}

type Cell = tuple[IPAddress, IPAddress, int]
type Matrix = dict[Cell, bool]


def cells(numbers: list[int]) -> Iterator[Cell]:
    """Yield the connections of these workloads, and of the world."""
    for family in (0, 1):
        ends = [*(record(number).ips[family] for number in numbers), WORLD[family]]
        yield from ((*pair, port) for pair in itertools.permutations(ends, 2) for port in PORTS)


def judged(evaluator: Evaluator, numbers: list[int]) -> Matrix:
    """Return what policies say."""
    return {
        one: evaluator.verdict(one[0], one[1], Protocol.TCP, one[2]).allowed
        for one in cells(numbers)
    }


def loaded(numbers: list[int]) -> Matrix:
    """Return what the kernel does."""
    kernel = LiveKernel()
    tables = kernel.read()
    assert tables is not None
    lookup, policed = Lookup(tables), kernel.policed()
    return {
        one: not policed or lookup.allows(one[0], one[1], Protocol.TCP, one[2])
        for one in cells(numbers)
    }


@dataclass
class World:
    """The files, and the kernel's tables; managers come and go."""

    directory: Path
    nft: Nftables
    attached: dict[int, Record] = field(default_factory=dict)

    def start(self, kernel: Kernel | None = None, directory: Path | None = None) -> Manager:
        store = Store(directory or self.directory)
        manager = Manager(kernel or LiveKernel(), store, Conditions())
        manager.adopt(list(self.attached.values()))
        return manager

    def prepare(self, change: Change) -> None:
        """Everything as before the change."""
        shutil.rmtree(self.directory, ignore_errors=True)
        self.nft.apply("flush ruleset")
        self.nft.apply(host_ports.render_whole())
        self.attached = {}
        self._fill(self.start(), change)
        self.attached = {number: record(number) for number in BEFORE}

    def _fill(self, manager: Manager, change: Change) -> None:
        for number, identity in BEFORE.items():
            manager.admit(record(number), identity)
        if change.policies:
            manager.set_policies(Source("api", 1, change.policies))

    def models(self, change: Change) -> tuple[Evaluator, Evaluator]:
        """Return what judges before and after the change."""
        directory = self.directory.with_name("model")
        shutil.rmtree(directory, ignore_errors=True)
        self.attached = {}
        manager = self.start(FakeKernel(), directory)
        self._fill(manager, change)
        before = manager.evaluator()
        change.act(manager)
        return before, manager.evaluator()


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with Nftables() as nft:
        yield World(tmp_path / "policy", nft)
        nft.apply("flush ruleset")


def check(world: World, manager: Manager) -> None:
    """The tables are those of what is kept, and no file is of anything else."""
    tables = LiveKernel().read()
    assert tables is not None
    assert manager.differs() == ""
    state = manager.state()
    fresh = Tables()
    if state.policies:
        fresh = Compiler(Numbers({}, 0)).update(manager.world()).tables
    assert renumbered(fresh, tables) == tables
    live = {ip for one in world.attached.values() for ip in one.ips}
    assert set(tables.identities) == (live if state.policies else set())
    store = Store(world.directory)
    said = [one for one in world.attached.values() if store.has_workload(one.workload_id)]
    assert len(list((world.directory / "workloads").iterdir())) == len(said)
    kept = {path.name for path in (world.directory / "sources").iterdir()}
    assert kept == {one.name for one in state.sources}


def renumbered(fresh: Tables, tables: Tables) -> Tables:
    """Return tables with the identities that addresses have in others."""
    to = {0: 0} | {number: tables.identities[ip] for ip, number in fresh.identities.items()}
    assert len(set(to.values())) == len(to)

    return Tables(
        {ip: to[number] for ip, number in fresh.identities.items()},
        frozenset(to[one] for one in fresh.isolated_egress),
        frozenset(to[one] for one in fresh.isolated_ingress),
        frozenset((to[one], to[other]) for one, other in fresh.pairs),
        frozenset(
            replace(one, source=to[one.source], destination=to[one.destination])
            for one in fresh.pair_ports
        ),
        frozenset(replace(one, identity=to[one.identity]) for one in fresh.world_egress),
        frozenset(replace(one, identity=to[one.identity]) for one in fresh.world_ingress),
    )


@pytest.mark.parametrize("name", CHANGES)
def test_killed_at_every_point(world: World, name: str) -> None:
    change = CHANGES[name]
    before, after = world.models(change)
    stay = sorted(set(BEFORE) - set(change.ended))
    old, new = judged(before, stay), judged(after, stay)
    closed = {one for one in old if not old[one] and not new[one]}

    def changed(arm: Callable[[], None]) -> None:
        manager = world.start()
        arm()
        change.act(manager)

    def recovered(arm: Callable[[], None]) -> None:
        arm()
        world.start()

    left = set()
    for point in itertools.count(1):
        world.prepare(change)
        killed = killed_at(point, changed)
        for number in change.ended:
            del world.attached[number]
        if not killed:
            world.attached |= {number: record(number) for number in change.made}
        assert opened(closed, stay) == set()
        # One that recovers is killed, too: at every point at some, or at one.
        for again in itertools.count(1) if point % 8 == 3 else (1,):
            died = killed_at(again, recovered)
            assert opened(closed, stay) == set()
            if not died:
                break
        manager = world.start()
        check(world, manager)
        found = loaded(stay)
        assert found in ((old, new) if killed else (new,))
        assert found == judged(manager.evaluator(), stay)
        left.add(found == new)
        # What got no answer is asked for again.
        change.act(manager)
        world.attached |= {number: record(number) for number in change.made}
        check(world, manager)
        assert loaded(stay) == new
        if not killed:
            break
    # A send at least, unless nothing is policed; and then a file.
    assert point > 2
    assert True in left


def opened(closed: set[Cell], numbers: list[int]) -> set[Cell]:
    """Return those that pass by the kernel's tables."""
    found = loaded(numbers)
    return {one for one in closed if found[one]}
