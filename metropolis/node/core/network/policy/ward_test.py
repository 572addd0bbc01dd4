# SPDX-License-Identifier: Apache-2.0
"""A difference between the kernel's elements and what they should be is put
back; and as long as it is not, Status and Check have it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest

from metropolis.node.core.network.policy import ward as wards
from metropolis.node.core.network.policy.manager import Manager
from metropolis.node.core.network.policy.model import Direction, Policy, Tier, Workloads
from metropolis.node.core.network.policy.sources import Source
from metropolis.node.core.network.policy.store import Store
from metropolis.node.core.network.policy.tables import Tables
from metropolis.node.core.network.policy.testing.fake import FakeKernel
from metropolis.node.core.network.policy.ward import Policies
from metropolis.node.core.network.reconcile.reconciler import Reconciler
from metropolis.node.core.network.workloads.conditions import Conditions
from metropolis.node.core.network.workloads.engine.engine import Engine
from metropolis.node.core.network.workloads.model import AttachIntent, Identity
from metropolis.node.core.network.workloads.testing import fake

DENY = Policy("shop/deny", Tier.NAMESPACE, Workloads(), isolates=frozenset(Direction))
WAIT_S = 10.0


class _Context:
    """As much of a supervisor's context as a guard needs."""

    logger = logging.getLogger(__name__)

    def signal_healthy(self) -> None:
        pass


class Node:
    """An engine with policies, over fakes, and an attachment w1."""

    def __init__(self, directory: Path) -> None:
        self.kernel = FakeKernel()
        self.conditions = Conditions()
        self.manager = Manager(self.kernel, Store(directory), self.conditions)
        links = fake.FakeKernel(namespaces={"/home": fake.HOME})
        links.add_netns("/a")
        self.engine = Engine(fake.FakeDatapath(links), self.conditions, policies=self.manager)
        self.engine.set_prefixes([ip_network("10.0.0.0/29")])
        self.engine.start()
        self.manager.set_policies(Source("api", 1, (DENY,)))
        identity = Identity("shop", {"app": "web"})
        self.engine.attach(AttachIntent("w1", "/a", "eth0", identity=identity))
        self.wanted = self.kernel.tables

    def findings(self) -> list[str]:
        (checked,) = self.engine.check("w1")
        return [str(one) for one in checked.findings]


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path / "policy")


def flush(node: Node) -> None:
    node.kernel.tables, node.kernel.is_policed = Tables(), False


def take_one(node: Node) -> None:
    node.kernel.tables = Tables({ip_address("10.0.0.9"): 7})


def switch_off(node: Node) -> None:
    node.kernel.is_policed = False


DAMAGES: dict[str, Callable[[Node], None]] = {
    "flush": flush,
    "one element": take_one,
    "switched off": switch_off,
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_difference_is_a_finding_while_it_lasts(
    node: Node, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel refuses the repair, and later does not."""
    monkeypatch.setattr(wards, "EVERY_S", 0.0)

    async def until(what: Callable[[], bool]) -> None:
        async with asyncio.timeout(WAIT_S):
            while not what():  # noqa: ASYNC110  # threads change it
                await asyncio.sleep(0.01)

    async def run() -> None:
        reconciler = Reconciler(node.conditions)
        guard = reconciler.guard(Policies(node.manager, lambda: 1), kinds=(), every_s=0.0)
        async with asyncio.TaskGroup() as tasks:
            looking = tasks.create_task(guard(_Context()))  # type: ignore[arg-type]
            assert node.findings() == []
            node.kernel.refuses = True
            DAMAGES[name](node)
            await until(lambda: bool(node.findings()))
            (finding,) = node.findings()
            assert "no memory" in finding
            node.kernel.refuses = False
            await until(lambda: not node.findings())
            looking.cancel()

    asyncio.run(run())
    # A repair may give identities other numbers.
    assert node.manager.differs() == ""
    assert node.kernel.tables.identities.keys() == node.wanted.identities.keys()
    assert node.kernel.is_policed


def test_rules_that_were_made_again(node: Node) -> None:
    """Flows that began without them are judged, once."""
    made = 1
    ward = Policies(node.manager, lambda: made)
    ward.look(lambda _: True)
    node.kernel.revoked.clear()
    assert not ward.look(lambda _: True)
    assert node.kernel.revoked == []
    made = 2
    (repair,) = ward.look(lambda _: True)
    assert "without rules" in repair.what
    ((_, every),) = node.kernel.revoked
    assert every
    assert not ward.look(lambda _: True)
    assert len(node.kernel.revoked) == 1
