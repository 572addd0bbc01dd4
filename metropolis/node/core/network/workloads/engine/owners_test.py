# SPDX-License-Identifier: Apache-2.0
"""Owners of attachments, and links left alone, on the fake datapath."""

from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest

from metropolis.node.core.network.workloads.conditions import Conditions
from metropolis.node.core.network.workloads.datapath.interface import Held, Record
from metropolis.node.core.network.workloads.engine.engine import Engine
from metropolis.node.core.network.workloads.engine.watchers import Kind
from metropolis.node.core.network.workloads.errors import (
    AlreadyExists,
    Exhausted,
    NotAttached,
)
from metropolis.node.core.network.workloads.model import AttachIntent, Collected
from metropolis.node.core.network.workloads.testing.fake import HOME, FakeDatapath, FakeKernel

PREFIXES = [ip_network("10.0.0.0/30"), ip_network("fd00::/125")]
FIRST, SECOND = ip_address("10.0.0.1"), ip_address("10.0.0.2")
FIRST6 = ip_address("fd00::1")


class World:
    """As in engine_test, with conditions; the prefix has two addresses."""

    def __init__(self) -> None:
        self.kernel = FakeKernel(namespaces={"/home": HOME})
        for letter in "abc":
            self.kernel.add_netns(f"/{letter}")
        self.restart()

    def restart(self) -> Engine:
        self.conditions = Conditions()
        self.datapath = FakeDatapath(self.kernel)
        self.engine = Engine(self.datapath, self.conditions)
        self.engine.set_prefixes(PREFIXES)
        self.engine.start()
        return self.engine

    def lose_id(self, workload_id: str) -> Record:
        """Start the next service; an attachment lacks its workload id."""
        (record,) = [one for one in self.kernel.links.values() if one.workload_id == workload_id]
        record = replace(record, workload_id="", owner="")
        index = record.host_ifindex
        self.kernel.held[index] = Held(record.host_interface, index, record.ips, record=record)
        return record


@pytest.fixture
def world() -> World:
    return World()


def intent(workload_id: str, path: str, owner: str = "api") -> AttachIntent:
    return AttachIntent(workload_id, path, "eth0", owner=owner)


# ---- Owners -----------------------------------------------------------------


def test_the_first_owner_is_kept(world: World) -> None:
    made = world.engine.attach(intent("w1", "/a", "cni one"))
    assert made.owner == "cni one"
    assert world.engine.attach(intent("w1", "/a", "api")) == made
    assert world.engine.attach(AttachIntent("w2", "/b", "eth0")).owner == "api"
    assert {one.owner for one in world.restart().list()} == {"cni one", "api"}
    assert world.engine.attach(intent("w1", "/a", "cni two")) == made


def test_an_owner_is_no_part_of_the_request() -> None:
    one, other = intent("w1", "/a", "api"), intent("w1", "/a", "cni one")
    assert one.digest() == other.digest()


def test_a_collection_may_be_of_some_owners(world: World) -> None:
    world.engine.attach(intent("w1", "/a", "cni one"))
    world.engine.attach(intent("w2", "/b", "api"))
    collected = world.engine.collect(lambda *_: False, of_owner=lambda owner: owner == "api")
    assert [one.workload_id for one in collected.removed] == ["w2"]
    assert [one.workload_id for one in world.engine.list()] == ["w1"]
    for index, record in world.kernel.links.items():
        world.kernel.links[index] = replace(record, owner="", version=1)
    world.restart()
    assert world.engine.collect(lambda *_: False, of_owner=bool) == Collected((), ())
    assert [one.owner for one in world.engine.list()] == [""]
    assert len(world.engine.collect(lambda *_: False).removed) == 1


# ---- Links left alone -------------------------------------------------------


def test_addresses_that_are_held_are_not_handed_out(world: World) -> None:
    world.kernel.held[77] = Held("newer", 77, (FIRST, FIRST6), newer=True)
    world.restart()
    assert "1 ('newer') made by a newer version" in world.engine.notes()["workloads"]
    made = world.engine.attach(intent("w1", "/a"))
    assert made.ips == (SECOND, ip_address("fd00::2"))
    with pytest.raises(Exhausted):
        world.engine.attach(intent("w2", "/b"))
    asked = AttachIntent("w2", "/b", "eth0", requested_ips=(FIRST, FIRST6))
    with pytest.raises(AlreadyExists, match="in use by link 'newer', which is left alone"):
        world.engine.attach(asked)
    assert world.engine.list() == [made]
    # Only its own end ends it.
    assert world.engine.collect(lambda *_: False).removed == (made,)
    assert 77 in world.kernel.held
    world.datapath.take_link(77)
    assert world.engine.notes() == {}
    assert world.engine.attach(asked).ips == (FIRST, FIRST6)


def test_a_held_link_that_goes_unseen_is_noticed(world: World) -> None:
    world.kernel.held[77] = Held("newer", 77, (FIRST,), newer=True)
    world.restart()
    world.datapath.take_link(77, reported=False)
    world.datapath.overrun()
    assert world.engine.notes() == {}
    asked = AttachIntent("w1", "/a", "eth0", requested_ips=(FIRST,))
    assert world.engine.attach(asked).ips[0] == FIRST


def test_an_address_of_an_attachment_is_not_also_held(world: World) -> None:
    """A link that is left alone may claim it; its end does not free it."""
    made = world.engine.attach(intent("w1", "/a"))
    world.kernel.held[77] = Held("other", 77, (FIRST, SECOND))
    world.restart()
    world.datapath.take_link(77)
    with pytest.raises(AlreadyExists, match="in use by workload 'w1'"):
        world.engine.attach(AttachIntent("w2", "/b", "eth0", requested_ips=made.ips[:1]))
    assert world.engine.attach(intent("w2", "/b")).ips[0] == SECOND


def test_a_call_with_the_id_finds_what_lost_it(world: World) -> None:
    made = world.engine.attach(intent("w1", "/a"))
    kept = world.lose_id("w1")
    del world.kernel.links[kept.host_ifindex]
    world.restart()
    assert world.engine.list() == []
    assert "lost" in world.engine.notes()["workloads"]
    world.engine.detach("other")
    with pytest.raises(NotAttached):
        world.engine.check("other")
    world.kernel.links[kept.host_ifindex] = replace(kept, workload_id="w1")
    with world.engine.watch() as watcher:
        again = world.engine.attach(intent("w1", "/a"))
        assert again == replace(made, owner="")
        events = iter(watcher)
        assert [next(events).kind for _ in range(2)] == [Kind.COMPLETE, Kind.ATTACHED]
    assert world.engine.list() == [again]
    assert world.engine.notes() == {}
    world.engine.detach("w1", until_gone=True)
    assert not world.kernel.links
    assert world.engine.attach(intent("w2", "/b")).ips[0] == SECOND  # the first is free


@pytest.mark.parametrize("call", ["detach", "check"])
def test_so_does_any_call(world: World, call: str) -> None:
    world.engine.attach(intent("w1", "/a"))
    kept = world.lose_id("w1")
    del world.kernel.links[kept.host_ifindex]
    world.restart()
    world.kernel.links[kept.host_ifindex] = replace(kept, workload_id="w1")
    getattr(world.engine, call)("w1")
    world.engine.settle()
    assert bool(world.kernel.links) is (call == "check")
    assert len(world.engine.list()) == (call == "check")


# ---- Conditions -------------------------------------------------------------


def test_a_check_has_every_problem_of_the_node(world: World) -> None:
    world.engine.attach(intent("w1", "/a"))
    world.engine.attach(AttachIntent("w1", "/a", "eth1"))
    assert [one.findings for one in world.engine.check("w1")] == [(), ()]
    world.conditions.set("rules", "the rule set is gone")
    world.conditions.set("uplink", "the pod prefix is the uplink's")
    for checked in world.engine.check("w1"):
        assert [(one.what, one.found) for one in checked.findings] == [
            ("rules", "the rule set is gone"),
            ("uplink", "the pod prefix is the uplink's"),
        ]
    world.conditions.clear("rules")
    world.conditions.clear("uplink")
    assert [one.findings for one in world.engine.check("w1")] == [(), ()]
