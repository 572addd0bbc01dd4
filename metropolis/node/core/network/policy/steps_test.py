# SPDX-License-Identifier: Apache-2.0
"""An attachment that comes or goes is a step of identities alone, if its class
stays. Whatever the order, the kernel's tables are those of a fresh compilation.
"""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network
from pathlib import Path
from random import Random

import pytest

from metropolis.node.core.network.policy.compiler import Compiler
from metropolis.node.core.network.policy.lookup import Lookup
from metropolis.node.core.network.policy.manager import Manager
from metropolis.node.core.network.policy.model import (
    Direction,
    Networks,
    Operator,
    Policy,
    Requirement,
    Rule,
    Tier,
    Workloads,
)
from metropolis.node.core.network.policy.sources import Source
from metropolis.node.core.network.policy.store import Store
from metropolis.node.core.network.policy.testing.fake import FakeKernel
from metropolis.node.core.network.workloads.conditions import Conditions
from metropolis.node.core.network.workloads.datapath.interface import Record
from metropolis.node.core.network.workloads.errors import KernelRefused
from metropolis.node.core.network.workloads.model import Identity
from osbase.ip import IPNetwork

APPS = ("web", "db", "cache")
NETWORKS: list[IPNetwork] = [
    ip_network("10.0.0.0/28"),
    ip_network("fd00::/124"),
    ip_network("10.0.0.4/30"),
]


def policy(rng: Random, number: int) -> Policy:
    def labelled() -> Workloads:
        return Workloads(workloads=(Requirement("app", Operator.IN, (rng.choice(APPS),)),))

    network: IPNetwork = rng.choice(NETWORKS)
    peers = rng.choice([None, (labelled(),), (Networks((network,)),), (labelled(), labelled())])
    return Policy(
        f"shop/p{number}",
        Tier.NAMESPACE,
        rng.choice([Workloads(), labelled()]),
        (Rule(peers, None),),
        isolates=frozenset({Direction.INGRESS}),
    )


def record(number: int, ifindex: int) -> Record:
    ips = (ip_address(f"10.0.0.{number}"), ip_address(f"fd00::{number:x}"))
    return Record(f"w{number}", "eth0", 1, "wl0", ifindex, 2, bytes(6), 1500, ips, b"")


class Walk:
    """A random sequence of changes, some of which the kernel refuses."""

    def __init__(self, seed: int, directory: Path) -> None:
        self.rng = Random(seed)
        self.kernel = FakeKernel()
        self.manager = Manager(self.kernel, Store(directory), Conditions())
        self.manager.adopt(())
        self.there: dict[int, Record] = {}
        self.generation = 0

    def step(self) -> None:
        self.kernel.refuses = self.rng.random() < 0.1
        try:
            self.rng.choices([self.policies, self.come, self.go, self.label], (1, 6, 4, 2))[0]()
        except KernelRefused:
            assert self.kernel.refuses
        self.kernel.refuses = False

    def policies(self) -> None:
        self.generation += 1
        found = tuple(policy(self.rng, number) for number in range(self.rng.randint(0, 4)))
        self.manager.set_policies(Source("api", self.generation, found))

    def identity(self) -> Identity | None:
        app = Identity("shop", {"app": self.rng.choice(APPS)})
        return self.rng.choice([None, app, app, app, replace(app, known=False)])

    def come(self) -> None:
        number = self.rng.randint(1, 20)
        one = record(number, self.rng.randint(1, 1 << 30))
        self.manager.admit(one, self.identity())
        self.there[number] = one

    def go(self) -> None:
        if self.there:
            self.manager.forget([self.there.pop(self.rng.choice(list(self.there)))])

    def label(self) -> None:
        if self.there:
            number = self.rng.choice(list(self.there))
            self.manager.set_labels(f"w{number}", self.identity() or Identity())

    def check(self) -> None:
        """What is loaded judges all as a fresh compilation does."""
        policies = self.manager.state().policies
        if not policies:
            return
        fresh = Lookup(Compiler().update(self.manager.world()).tables)
        loaded = Lookup(self.kernel.tables)
        ips = [ip for one in self.there.values() for ip in one.ips]
        # Those of workloads that the kernel refused to forget are left out.
        ips += map(ip_address, ("192.0.2.1", "2001:db8::1", "10.0.0.99", "fd00::ff"))
        for source in ips:
            for destination in ips:
                if source.version == destination.version:
                    asked = (source, destination, None, 0)
                    assert loaded.allows(*asked) is fresh.allows(*asked), asked


@pytest.mark.parametrize("seed", range(40))
def test_any_order(seed: int, tmp_path: Path) -> None:
    walk = Walk(seed, tmp_path / "policy")
    for _ in range(60):
        walk.step()
        if not walk.manager.differs():
            walk.check()
    walk.manager.repair()
    assert walk.manager.differs() == ""
    walk.check()


def test_a_known_class_is_not_compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    walk = Walk(1, tmp_path / "policy")
    walk.manager.set_policies(Source("api", 1, (policy(walk.rng, 1),)))
    web = Identity("shop", {"app": "web"})
    for number in (100, 101):
        walk.manager.admit(record(number, number), web)

    def compiled(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr(Compiler, "update", compiled)
    walk.manager.admit(record(102, 102), web)
    walk.manager.forget([record(101, 101)])
    identities = walk.kernel.tables.identities
    assert set(identities) == {*record(100, 1).ips, *record(102, 1).ips}
    assert walk.manager.differs() == ""
    with pytest.raises(AssertionError):
        walk.manager.admit(record(103, 103), replace(web, known=False))
