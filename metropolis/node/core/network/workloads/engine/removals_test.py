# SPDX-License-Identifier: Apache-2.0
"""What waits for a link that is being deleted, and what does not.

The fake kernel deletes links when the test says so.
"""

import threading
from collections.abc import Iterator, Sequence
from ipaddress import ip_address, ip_network

import pytest

from metropolis.node.core.network.workloads.datapath.interface import Record
from metropolis.node.core.network.workloads.engine import removals
from metropolis.node.core.network.workloads.engine.engine import Engine
from metropolis.node.core.network.workloads.engine.watchers import Kind
from metropolis.node.core.network.workloads.errors import (
    Exhausted,
    GivenUp,
    KernelRefused,
    Unavailable,
)
from metropolis.node.core.network.workloads.model import AttachIntent
from metropolis.node.core.network.workloads.testing.world import (
    WAIT_S,
    Held,
    detached,
    ids,
    intent,
)

ONE = [ip_network("10.0.0.1/32")]


@pytest.fixture
def world() -> Iterator[Held]:
    made = Held()
    yield made
    made.end()


def test_a_detach_answers_before_the_link_is_gone(world: Held) -> None:
    with world.engine.watch() as watcher:
        detached(world)
        assert [next(watcher).kind for _ in range(3)] == [
            Kind.COMPLETE,
            Kind.ATTACHED,
            Kind.DETACHED,
        ]
        assert world.engine.list() == []
        assert world.kernel.cut_off == world.kernel.links.keys()
        assert world.kernel.links
        world.engine.detach("w1")  # there is nothing more to do
        world.go.set()
        world.engine.settle()
        assert not world.kernel.links
        world.engine.attach(intent("w2", "/b"))
        assert next(watcher).attachment.workload_id == "w2"  # type: ignore[union-attr]


def test_its_address_is_not_given_before_it_is_gone(world: Held) -> None:
    detached(world)
    (record,) = world.kernel.links.values()
    made = world.engine.attach(intent("w2", "/b"))
    assert not set(made.ips) & set(record.ips)
    assert world.engine.in_use(ip_network("10.0.0.0/29")) == 2


@pytest.mark.parametrize(
    "wanted",
    [
        pytest.param(intent("w1", "/a"), id="the same"),
        pytest.param(intent("w1", "/b"), id="id elsewhere"),
        pytest.param(intent("w1", "/b", "net1"), id="another interface"),
        pytest.param(intent("w2", "/a"), id="name in the namespace"),
        pytest.param(intent("w2", "/a", "net1"), id="the namespace"),
        pytest.param(AttachIntent("w2", "/b", "eth0", (ip_address("10.0.0.1"),)), id="address"),
    ],
)
def test_an_attach_that_needs_what_it_has_waits(world: Held, wanted: AttachIntent) -> None:
    detached(world)
    waiting = world.waits(lambda: world.engine.attach(wanted))
    world.engine.attach(intent("other", "/h"))  # others do not
    world.go.set()
    waiting.result(WAIT_S)
    assert ids(world.engine.list()) == {(wanted.workload_id, wanted.if_name), ("other", "eth0")}


def test_the_last_address_is_waited_for(world: Held) -> None:
    """Neither Attach nor Status says that there is none."""
    world.engine.set_prefixes(ONE)
    detached(world)
    world.engine.status()
    world.engine.check_room()
    waiting = world.waits(lambda: world.engine.attach(intent("w2", "/b")))
    world.go.set()
    waiting.result(WAIT_S)
    with pytest.raises(Exhausted):
        world.engine.attach(intent("w3", "/c"))
    with pytest.raises(Exhausted):
        world.engine.check_room()


def test_as_many_wait_as_there_will_be_addresses(world: Held) -> None:
    world.engine.set_prefixes([ip_network("10.0.0.0/30")])
    detached(world, "w2")
    calls = [
        world.waits(lambda n=name: world.engine.attach(intent(n, f"/{n}")))  # type: ignore[misc]
        for name in "cde"
    ]
    world.go.set()
    errors = [one.exception(WAIT_S) for one in calls]
    assert [type(one) for one in errors if one] == [Exhausted]


def test_a_detach_may_wait_for_the_end(world: Held) -> None:
    """Only for those in the namespace that it gives."""
    detached(world)
    world.engine.attach(intent("w3", "/c"))
    world.engine.detach("w1", "/c", until_gone=True)
    waiting = [
        world.waits(lambda p=path: world.engine.detach("w1", p, until_gone=True))  # type: ignore[misc]
        for path in ("", "/a", "/nowhere")
    ]
    assert world.kernel.links
    world.go.set()
    for one in waiting:
        one.result(WAIT_S)
    assert [one.workload_id for one in world.kernel.links.values()] == ["w3"]


def test_a_collection_may_wait_for_the_end(world: Held) -> None:
    for letter in "abc":
        world.engine.attach(intent(letter, f"/{letter}"))
    waiting = world.waits(
        lambda: world.engine.collect(lambda name, _: name == "b", until_gone=True)
    )
    assert ids(world.engine.list()) == {("b", "eth0")}
    world.go.set()
    waiting.result(WAIT_S)
    assert [one.workload_id for one in world.kernel.links.values()] == ["b"]


def test_many_are_deleted_together(world: Held) -> None:
    """As many as the datapath wants."""
    detached(world, *(f"w{number}" for number in range(2, 6)))
    world.engine.set_prefixes([ip_network("10.1.0.0/24")])
    for number in range(10, 20):
        world.kernel.add_netns(f"/{number}")
        world.engine.attach(intent(f"v{number}", f"/{number}"))
    world.engine.collect(lambda *_: False)
    world.go.set()
    world.engine.settle()
    assert sorted(name for group in world.groups for name in group) == sorted(
        [*(f"w{number}" for number in range(1, 6)), *(f"v{number}" for number in range(10, 20))]
    )
    assert max(map(len, world.groups)) <= world.datapath.at_once
    assert len(world.groups) <= 4


def test_what_is_refused_is_tried_again(world: Held, monkeypatch: pytest.MonkeyPatch) -> None:
    """By itself, and for a call that waits for it; others are not held up."""
    monkeypatch.setattr(removals, "_AGAIN_S", (0.05, 0.1))
    world.go.set()
    world.refusing = {"w1"}
    detached(world, "w2")
    with pytest.raises(KernelRefused, match=r"an earlier attachment is not gone: .*EPERM"):
        world.engine.attach(intent("w1", "/c"))
    with pytest.raises(KernelRefused, match=r"not gone: .*EPERM"):
        world.engine.detach("w1", until_gone=True)
    world.engine.detach("w1")
    world.engine.attach(intent("w2", "/b"))
    assert ids(world.engine.list()) == {("w2", "eth0")}
    world.refusing = set()
    world.engine.attach(intent("w1", "/c"))


def test_it_succeeds_without_a_caller(world: Held, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(removals, "_AGAIN_S", (0.01, 0.01))
    world.go.set()
    world.refusing = {"w1"}
    detached(world)
    with pytest.raises(KernelRefused):
        world.engine.settle()
    world.refusing = set()
    gone = threading.Event()
    world.datapath._on_removed = lambda _: gone.set()
    assert gone.wait(WAIT_S)


def test_what_cannot_be_cut_off_is_removed_by_the_call(world: Held) -> None:
    def refuse(_: Sequence[Record]) -> None:
        raise KernelRefused("detach: ENOENT")

    world.datapath.on_cut_off = refuse
    world.go.set()
    detached(world)
    assert not world.kernel.links
    world.engine.attach(intent("w1", "/a"))
    world.engine.collect(lambda *_: False)
    assert not world.kernel.links


def test_the_end_of_its_namespace_meanwhile(world: Held) -> None:
    detached(world)
    world.datapath.kill_netns("/a")
    assert not world.kernel.links
    world.go.set()
    world.engine.settle()
    assert world.engine.in_use(ip_network("10.0.0.0/29")) == 0


def test_it_dies_while_it_is_cut_off(world: Held) -> None:
    world.datapath.on_cut_off = lambda _: world.datapath.kill_netns("/a")
    world.go.set()
    detached(world)
    world.engine.settle()
    assert world.engine.in_use(ip_network("10.0.0.0/29")) == 0
    assert world.engine.list() == []


def test_a_restart_goes_on(world: Held) -> None:
    detached(world)
    (record,) = world.kernel.links.values()
    engine = world.restart()
    assert engine.list() == []
    engine.set_prefixes(ONE)
    waiting = world.waits(lambda: engine.attach(intent("w2", "/b")))
    world.go.set()
    assert getattr(waiting.result(WAIT_S), "ips") == record.ips[:1]  # noqa: B009
    assert [one.workload_id for one in world.kernel.links.values()] == ["w2"]


def test_a_start_without_a_thread(world: Held, monkeypatch: pytest.MonkeyPatch) -> None:
    """It fails, and may be tried again."""
    world.engine.attach(intent("w1", "/a"))
    engine = Engine(world.datapath)

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(KernelRefused, match="start removals: can't start new thread"):
            engine.start()
        with pytest.raises(Unavailable):
            engine.list()
    engine.start()
    assert ids(engine.list()) == {("w1", "eth0")}
    engine.close()


def test_a_stop_ends_them(world: Held) -> None:
    world.go.set()
    detached(world, "w2", "w3")
    world.engine.close()
    assert not world.kernel.links


def test_a_stop_does_not_wait_for_ever(world: Held, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(removals, "_CLOSE_S", 0.05)
    detached(world)
    world.engine.close()
    assert world.kernel.links


def test_a_wait_ends(world: Held, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the caller's time, or with the service's patience."""
    detached(world)
    with pytest.raises(GivenUp, match="'w1' is still being removed"):
        world.engine.attach(intent("w1", "/a"), time_remaining=lambda: 0.05)
    monkeypatch.setattr(removals, "PATIENCE_S", 0.05)
    for call in (
        lambda: world.engine.attach(intent("w1", "/a")),
        lambda: world.engine.detach("w1", until_gone=True),
    ):
        with pytest.raises(Unavailable, match=r"'w1' is still being removed after 0.05 s"):
            call()


def test_a_detach_waits_for_room(world: Held, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(removals, "MAX_WAITING", 2)
    detached(world, "w2")
    world.engine.attach(intent("w3", "/c"))
    waiting = world.waits(lambda: world.engine.detach("w3"))
    assert ids(world.engine.list()) == {("w3", "eth0")}
    world.go.set()
    waiting.result(WAIT_S)
    assert world.engine.list() == []


def test_many_threads(world: Held) -> None:
    """In turn, at few addresses: none is refused, none is lost."""
    world.go.set()
    world.engine.set_prefixes([ip_network("10.0.0.0/29")])  # six, for eight threads

    def use(letter: str) -> None:
        for _ in range(30):
            try:
                world.engine.attach(intent(letter, f"/{letter}"))
            except Exhausted:
                continue  # six others have them
            world.engine.detach(letter)

    list(world.pool.map(use, "abcdefgh"))
    world.engine.settle()
    assert not world.kernel.links
    assert world.engine.in_use(ip_network("10.0.0.0/29")) == 0
