# SPDX-License-Identifier: Apache-2.0
"""What waits for a link that is being deleted, and what does not.

The fake kernel deletes links when the test says so.
"""

import threading
from collections.abc import Sequence
from ipaddress import ip_address, ip_network

import pytest

from metropolis.node.core.network.workloads.datapath.interface import Record
from metropolis.node.core.network.workloads.engine import removals
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


def test_a_detach_answers_before_the_link_is_gone(held: Held) -> None:
    with held.engine.watch() as watcher:
        detached(held)
        assert [next(watcher).kind for _ in range(3)] == [
            Kind.COMPLETE,
            Kind.ATTACHED,
            Kind.DETACHED,
        ]
        assert held.engine.list() == []
        assert held.kernel.cut_off == held.kernel.links.keys()
        assert held.kernel.links
        held.engine.detach("w1")  # there is nothing more to do
        held.go.set()
        held.engine.settle()
        assert not held.kernel.links
        held.engine.attach(intent("w2", "/b"))
        assert next(watcher).attachment.workload_id == "w2"  # type: ignore[union-attr]


def test_its_address_is_not_given_before_it_is_gone(held: Held) -> None:
    detached(held)
    (record,) = held.kernel.links.values()
    made = held.engine.attach(intent("w2", "/b"))
    assert not set(made.ips) & set(record.ips)
    assert held.engine.in_use(ip_network("10.0.0.0/29")) == 2


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
def test_an_attach_that_needs_what_it_has_waits(held: Held, wanted: AttachIntent) -> None:
    detached(held)
    waiting = held.waits(lambda: held.engine.attach(wanted))
    held.engine.attach(intent("other", "/h"))  # others do not
    held.go.set()
    waiting.result(WAIT_S)
    assert ids(held.engine.list()) == {(wanted.workload_id, wanted.if_name), ("other", "eth0")}


def test_the_last_address_is_waited_for(held: Held) -> None:
    """Neither Attach nor Status says that there is none."""
    held.engine.set_prefixes(ONE)
    detached(held)
    held.engine.status()
    held.engine.check_room()
    waiting = held.waits(lambda: held.engine.attach(intent("w2", "/b")))
    held.go.set()
    waiting.result(WAIT_S)
    with pytest.raises(Exhausted):
        held.engine.attach(intent("w3", "/c"))
    with pytest.raises(Exhausted):
        held.engine.check_room()


def test_as_many_wait_as_there_will_be_addresses(held: Held) -> None:
    held.engine.set_prefixes([ip_network("10.0.0.0/30")])
    detached(held, "w2")
    calls = [
        held.waits(lambda n=name: held.engine.attach(intent(n, f"/{n}")))  # type: ignore[misc]
        for name in "cde"
    ]
    held.go.set()
    errors = [one.exception(WAIT_S) for one in calls]
    assert [type(one) for one in errors if one] == [Exhausted]


def test_a_detach_may_wait_for_the_end(held: Held) -> None:
    """Only for those in the namespace that it gives."""
    detached(held)
    held.engine.attach(intent("w3", "/c"))
    held.engine.detach("w1", "/c", until_gone=True)
    waiting = [
        held.waits(lambda p=path: held.engine.detach("w1", p, until_gone=True))  # type: ignore[misc]
        for path in ("", "/a", "/nowhere")
    ]
    assert held.kernel.links
    held.go.set()
    for one in waiting:
        one.result(WAIT_S)
    assert [one.workload_id for one in held.kernel.links.values()] == ["w3"]


def test_a_collection_may_wait_for_the_end(held: Held) -> None:
    for letter in "abc":
        held.engine.attach(intent(letter, f"/{letter}"))
    waiting = held.waits(lambda: held.engine.collect(lambda name, _: name == "b", until_gone=True))
    assert ids(held.engine.list()) == {("b", "eth0")}
    held.go.set()
    waiting.result(WAIT_S)
    assert [one.workload_id for one in held.kernel.links.values()] == ["b"]


def test_many_are_deleted_together(held: Held) -> None:
    """As many as the datapath wants."""
    detached(held, *(f"w{number}" for number in range(2, 6)))
    held.engine.set_prefixes([ip_network("10.1.0.0/24")])
    for number in range(10, 20):
        held.kernel.add_netns(f"/{number}")
        held.engine.attach(intent(f"v{number}", f"/{number}"))
    held.engine.collect(lambda *_: False)
    held.go.set()
    held.engine.settle()
    assert sorted(name for group in held.groups for name in group) == sorted(
        [*(f"w{number}" for number in range(1, 6)), *(f"v{number}" for number in range(10, 20))]
    )
    assert max(map(len, held.groups)) <= held.datapath.at_once
    assert len(held.groups) <= 4


def test_what_is_refused_is_tried_again(held: Held, monkeypatch: pytest.MonkeyPatch) -> None:
    """By itself, and for a call that waits for it; others are not held up."""
    monkeypatch.setattr(removals, "_AGAIN_S", (0.05, 0.1))
    held.go.set()
    held.refusing = {"w1"}
    detached(held, "w2")
    with pytest.raises(KernelRefused, match=r"an earlier attachment is not gone: .*EPERM"):
        held.engine.attach(intent("w1", "/c"))
    with pytest.raises(KernelRefused, match=r"not gone: .*EPERM"):
        held.engine.detach("w1", until_gone=True)
    held.engine.detach("w1")
    held.engine.attach(intent("w2", "/b"))
    assert ids(held.engine.list()) == {("w2", "eth0")}
    held.refusing = set()
    held.engine.attach(intent("w1", "/c"))


def test_it_succeeds_without_a_caller(held: Held, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(removals, "_AGAIN_S", (0.01, 0.01))
    held.go.set()
    held.refusing = {"w1"}
    detached(held)
    with pytest.raises(KernelRefused):
        held.engine.settle()
    held.refusing = set()
    gone = threading.Event()
    held.datapath._on_removed = lambda _: gone.set()
    assert gone.wait(WAIT_S)


def test_what_cannot_be_cut_off_is_removed_by_the_call(held: Held) -> None:
    def refuse(_: Sequence[Record]) -> None:
        raise KernelRefused("detach: ENOENT")

    held.datapath.on_cut_off = refuse
    held.go.set()
    detached(held)
    assert not held.kernel.links
    held.engine.attach(intent("w1", "/a"))
    held.engine.collect(lambda *_: False)
    assert not held.kernel.links


def test_the_end_of_its_namespace_meanwhile(held: Held) -> None:
    detached(held)
    held.datapath.kill_netns("/a")
    assert not held.kernel.links
    held.go.set()
    held.engine.settle()
    assert held.engine.in_use(ip_network("10.0.0.0/29")) == 0


def test_it_dies_while_it_is_cut_off(held: Held) -> None:
    held.datapath.on_cut_off = lambda _: held.datapath.kill_netns("/a")
    held.go.set()
    detached(held)
    held.engine.settle()
    assert held.engine.in_use(ip_network("10.0.0.0/29")) == 0
    assert held.engine.list() == []


def test_a_restart_goes_on(held: Held) -> None:
    detached(held)
    (record,) = held.kernel.links.values()
    engine = held.restart()
    assert engine.list() == []
    engine.set_prefixes(ONE)
    waiting = held.waits(lambda: engine.attach(intent("w2", "/b")))
    held.go.set()
    assert getattr(waiting.result(WAIT_S), "ips") == record.ips[:1]  # noqa: B009
    assert [one.workload_id for one in held.kernel.links.values()] == ["w2"]


def test_a_stop_ends_them(held: Held) -> None:
    held.go.set()
    detached(held, "w2", "w3")
    held.engine.close()
    assert not held.kernel.links


def test_a_stop_does_not_wait_for_ever(held: Held, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(removals, "_CLOSE_S", 0.05)
    detached(held)
    held.engine.close()
    assert held.kernel.links


def test_a_wait_ends(held: Held, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the caller's time, or with the service's patience."""
    detached(held)
    with pytest.raises(GivenUp, match="'w1' is still being removed"):
        held.engine.attach(intent("w1", "/a"), time_remaining=lambda: 0.05)
    monkeypatch.setattr(removals, "PATIENCE_S", 0.05)
    for call in (
        lambda: held.engine.attach(intent("w1", "/a")),
        lambda: held.engine.detach("w1", until_gone=True),
    ):
        with pytest.raises(Unavailable, match=r"'w1' is still being removed after 0.05 s"):
            call()


def test_a_detach_waits_for_room(held: Held, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(removals, "MAX_WAITING", 2)
    detached(held, "w2")
    held.engine.attach(intent("w3", "/c"))
    waiting = held.waits(lambda: held.engine.detach("w3"))
    assert ids(held.engine.list()) == {("w3", "eth0")}
    held.go.set()
    waiting.result(WAIT_S)
    assert held.engine.list() == []


def test_many_threads(held: Held) -> None:
    """In turn, at few addresses: none is refused, none is lost."""
    held.go.set()
    held.engine.set_prefixes([ip_network("10.0.0.0/29")])  # six, for eight threads

    def use(letter: str) -> None:
        for _ in range(30):
            try:
                held.engine.attach(intent(letter, f"/{letter}"))
            except Exhausted:
                continue  # six others have them
            held.engine.detach(letter)

    list(held.pool.map(use, "abcdefgh"))
    held.engine.settle()
    assert not held.kernel.links
    assert held.engine.in_use(ip_network("10.0.0.0/29")) == 0
