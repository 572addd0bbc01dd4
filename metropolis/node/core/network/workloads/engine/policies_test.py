# SPDX-License-Identifier: Apache-2.0
"""When the engine admits attachments to network policies, and forgets them."""

from collections.abc import Callable, Sequence
from ipaddress import ip_network

import pytest

from metropolis.node.core.network.workloads.datapath.interface import IndexTaken, Record
from metropolis.node.core.network.workloads.engine.engine import Engine
from metropolis.node.core.network.workloads.errors import (
    AlreadyExists,
    Exhausted,
    KernelRefused,
    NotFound,
    WorkloadError,
)
from metropolis.node.core.network.workloads.model import AttachIntent, Identity
from metropolis.node.core.network.workloads.testing.fake import HOME, FakeDatapath, FakeKernel

PREFIXES = [ip_network("10.0.0.0/29"), ip_network("fd00::/125")]
WEB = Identity("shop", {"app": "web"})
DB = Identity("shop", {"app": "db"})


class Recording:
    """Remembers what the engine asks for. refuses: what `admit` raises.
    admitted: by workload and interface, those that were not forgotten.
    """

    def __init__(self, kernel: FakeKernel) -> None:
        self._kernel = kernel
        self.refuses: WorkloadError | None = None
        self.admitted: dict[tuple[str, str], Record] = {}
        self.admissions: list[tuple[Record, Identity | None, bool]] = []
        self.adopted: list[Record] = []

    def adopt(self, records: Sequence[Record]) -> None:
        self.adopted = list(records)
        self.admitted = {(one.workload_id, one.if_name): one for one in records}

    def admit(self, record: Record, identity: Identity | None) -> None:
        """Also remember whether its link is there, which may be up."""
        if self.refuses is not None:
            raise self.refuses
        is_there = record.host_ifindex in self._kernel.links
        self.admissions.append((record, identity, is_there))
        self.admitted[record.workload_id, record.if_name] = record

    def forget(self, records: Sequence[Record]) -> None:
        """As a manager: not of an attachment that was admitted again."""
        for one in records:
            passes = self._kernel.links.keys() - self._kernel.cut_off
            assert one.host_ifindex not in passes, f"{one} is alive"
            key = one.workload_id, one.if_name
            if key in self.admitted and self.admitted[key].host_ifindex == one.host_ifindex:
                del self.admitted[key]


class World:
    """`/a` to `/c` are namespaces; `/b` has no IPv6."""

    def __init__(self) -> None:
        self.kernel = FakeKernel(namespaces={"/home": HOME})
        for path in ("/a", "/b", "/c"):
            self.kernel.add_netns(path)
        self.kernel.without_ipv6.add(self.kernel.namespaces["/b"])
        self.restart()

    def restart(self) -> None:
        self.policies = Recording(self.kernel)
        self.datapath = FakeDatapath(self.kernel)
        self.engine = Engine(self.datapath, policies=self.policies)
        self.engine.set_ipv6_optional(True)
        self.engine.set_prefixes(PREFIXES)
        self.engine.start()

    def attach(
        self, workload_id: str = "w1", path: str = "/a", identity: Identity | None = WEB
    ) -> None:
        self.engine.attach(AttachIntent(workload_id, path, "eth0", identity=identity))

    def agree(self) -> None:
        """The policies know what is attached, as it is, and nothing else."""
        self.engine.settle()
        attached = {
            (one.workload_id, one.if_name): (one.host_ifindex, one.ips)
            for one in self.engine.list()
        }
        assert attached == {
            key: (one.host_ifindex, one.ips) for key, one in self.policies.admitted.items()
        }


@pytest.fixture
def world() -> World:
    return World()


@pytest.mark.parametrize("identity", [WEB, Identity(known=False), None])
def test_admitted_before_the_link_is_there(world: World, identity: Identity | None) -> None:
    world.attach(identity=identity)
    ((record, said, was_there),) = world.policies.admissions
    assert (said, was_there) == (identity, False)
    (made,) = world.engine.list()
    assert (record.ips, record.host_ifindex) == (made.ips, made.host_ifindex)
    world.agree()


def test_admitted_with_the_addresses_that_it_gets(world: World) -> None:
    """IPv6 turns out to be off when the link is made."""
    world.attach(path="/b")
    assert [len(record.ips) for record, _, _ in world.policies.admissions] == [2, 1]
    assert not any(was_there for _, _, was_there in world.policies.admissions)
    world.agree()


def test_admitted_with_the_index_that_it_gets(world: World) -> None:
    def refuse(record: Record) -> None:
        if taken.pop():
            raise IndexTaken

    taken = [0, 1]
    world.datapath.on_create = refuse
    world.attach()
    assert len(world.policies.admissions) == 2
    world.agree()


def test_a_repeated_attach_is_admitted_again(world: World) -> None:
    """With an identity; without one nothing new was said."""
    world.attach()
    world.attach(identity=None)
    assert len(world.policies.admissions) == 1
    world.attach(identity=DB)
    assert [said for _, said, _ in world.policies.admissions] == [WEB, DB]
    world.agree()
    world.policies.refuses = KernelRefused("no memory")
    with pytest.raises(KernelRefused, match="no memory"):
        world.attach(identity=WEB)
    world.agree()
    # Another request is no repetition.
    world.policies.refuses = None
    with pytest.raises(AlreadyExists):
        world.attach(path="/c", identity=WEB)
    assert len(world.policies.admissions) == 2


@pytest.mark.parametrize("error", [KernelRefused("no memory"), Exhausted("full")])
def test_a_refusal_leaves_nothing(world: World, error: WorkloadError) -> None:
    world.policies.refuses = error
    with pytest.raises(type(error)):
        world.attach()
    assert not world.kernel.links
    assert [world.engine.in_use(prefix) for prefix in PREFIXES] == [0, 0]
    world.agree()
    world.policies.refuses = None
    world.attach()
    world.agree()


def refused_cut(world: World) -> None:
    """Its link is deleted within the call."""

    def refuse(_: Sequence[Record]) -> None:
        raise KernelRefused("no clsact")

    world.datapath.on_cut_off = refuse
    world.engine.detach("w1")


def broken(world: World) -> None:
    """It cannot be removed; later it can."""

    def refuse(_: Sequence[Record]) -> None:
        raise KernelRefused("EPERM")

    world.datapath.on_cut_off = world.datapath.on_remove = refuse
    with pytest.raises(KernelRefused):
        world.engine.detach("w1")
    world.datapath.on_cut_off = world.datapath.on_remove = lambda _: None
    world.engine.detach("w1")


def link_taken_unnoticed(world: World) -> None:
    (made,) = world.engine.list("w1")
    world.datapath.take_link(made.host_ifindex, reported=False)
    world.datapath.overrun()


ENDS: dict[str, Callable[[World], object]] = {
    "detach": lambda world: world.engine.detach("w1"),
    "detach until gone": lambda world: world.engine.detach("w1", until_gone=True),
    "collect": lambda world: world.engine.collect(lambda one, _: one != "w1"),
    "its namespace ends": lambda world: world.datapath.kill_netns("/a"),
    "its link is taken": link_taken_unnoticed,
    "it cannot be cut off": refused_cut,
    "it is broken, and removed": broken,
}


@pytest.mark.parametrize("name", ENDS)
def test_forgotten_when_it_ends(world: World, name: str) -> None:
    world.attach()
    world.attach("w2", "/c")
    ENDS[name](world)
    world.agree()
    assert set(world.policies.admitted) == {("w2", "eth0")}


@pytest.mark.parametrize("name", ENDS)
def test_a_successor_is_not_forgotten(world: World, name: str) -> None:
    world.attach()
    ENDS[name](world)
    if "/a" not in world.kernel.namespaces:
        world.kernel.add_netns("/a")
    world.datapath.on_cut_off = lambda _: None
    world.attach(identity=DB)
    world.agree()
    assert set(world.policies.admitted) == {("w1", "eth0")}


def fails(world: World) -> None:
    def refuse(_: Record) -> None:
        raise KernelRefused("ENOMEM")

    world.datapath.on_create = refuse


def fails_and_stays(world: World) -> None:
    fails(world)
    world.datapath.undo_fails = True


def dies(world: World) -> None:
    """The namespace, and so the link, while it is being made."""

    def die(_: Record) -> None:
        world.datapath.on_create = lambda _: None
        world.datapath.kill_netns("/a")

    world.datapath.on_create = die


FAILURES: dict[str, Callable[[World], None]] = {
    "refused": fails,
    "lost": dies,
}


@pytest.mark.parametrize("name", FAILURES)
def test_a_failed_attach_is_forgotten(world: World, name: str) -> None:
    FAILURES[name](world)
    with pytest.raises((KernelRefused, NotFound)):
        world.attach()
    world.agree()
    assert not world.policies.admitted


def test_what_may_still_exist_is_forgotten_when_it_does_not(world: World) -> None:
    """Its undo failed: the link may have its addresses."""
    fails_and_stays(world)
    with pytest.raises(KernelRefused):
        world.attach()
    assert set(world.policies.admitted) == {("w1", "eth0")}
    world.datapath.undo_fails = False
    world.datapath.on_create = lambda _: None
    world.engine.detach("w1", until_gone=True)
    world.agree()
    world.attach()
    world.agree()


def test_a_start_adopts_what_is_there(world: World) -> None:
    world.attach()
    world.attach("w2", "/b")
    before = dict(world.policies.admitted)
    world.restart()
    assert world.policies.adopted == list(before.values())
    world.agree()
    world.engine.detach("w2")
    world.agree()
