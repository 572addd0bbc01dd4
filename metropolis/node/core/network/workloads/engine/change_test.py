# SPDX-License-Identifier: Apache-2.0
"""Changing a part's text while its attachment lives, on the fake datapath."""

from dataclasses import replace

import pytest

from metropolis.node.core.network.workloads import bandwidth
from metropolis.node.core.network.workloads.bandwidth import Bandwidth, Limit
from metropolis.node.core.network.workloads.datapath.bandwidth import PART
from metropolis.node.core.network.workloads.datapath.interface import Record
from metropolis.node.core.network.workloads.engine.engine import Engine
from metropolis.node.core.network.workloads.engine.watchers import Event, Kind
from metropolis.node.core.network.workloads.errors import (
    AlreadyExists,
    InvalidArgument,
    KernelRefused,
    NotAttached,
)
from metropolis.node.core.network.workloads.model import PartText
from metropolis.node.core.network.workloads.testing.fake import FakeDatapath
from metropolis.node.core.network.workloads.testing.world import PREFIXES, World, intent

MBIT = 10**6
LIMITS = {
    "none": Bandwidth(),
    "in": Bandwidth(ingress=Limit(MBIT)),
    "out": Bandwidth(egress=Limit(MBIT)),
    "both": Bandwidth(Limit(2 * MBIT), Limit(MBIT, 3000)),
}


def to(limits: Bandwidth) -> PartText:
    return bandwidth.LETTER, bandwidth.changed(limits)


class Limited(World):
    """A world whose attachments may have limits."""

    def restart(self) -> Engine:
        self.datapath = FakeDatapath(self.kernel, parts=(PART,))
        self.engine = Engine(self.datapath)
        self.engine.start()
        self.engine.set_prefixes(PREFIXES)
        return self.engine


@pytest.fixture
def limited() -> Limited:
    return Limited()


@pytest.mark.parametrize("before", LIMITS)
@pytest.mark.parametrize("now", LIMITS)
def test_limits_are_changed_listed_and_kept(limited: Limited, before: str, now: str) -> None:
    """By a watch, too; a restart, and the repeated attach, change nothing."""
    asked = replace(intent(), parts=bandwidth.part_of(LIMITS[before]))
    made = limited.engine.attach(asked)
    with limited.engine.watch() as watcher:
        assert [next(watcher).kind, next(watcher).kind] == [Kind.PRESENT, Kind.COMPLETE]
        for _ in range(2):
            limited.engine.change("w1", "eth0", to(LIMITS[now]))
        changed = replace(made, parts=(to(LIMITS[now]),))
        assert next(watcher) == Event(Kind.CHANGED, changed)
        limited.engine.detach("w1")
        assert next(watcher) == Event(Kind.DETACHED, changed)
    limited.engine.settle()
    limited.engine.attach(asked)
    limited.engine.change("w1", "eth0", to(LIMITS[now]))
    for _ in range(2):
        (found,) = limited.engine.list()
        assert bandwidth.of_parts(found.parts) == LIMITS[now]
        assert limited.engine.attach(asked) == found
        other = replace(asked, requested_mac=b"\2\0\0\0\0\1")
        with pytest.raises(AlreadyExists):
            limited.engine.attach(other)
        assert limited.engine.repair(lambda _: True) == ()
        limited.restart()


@pytest.mark.parametrize(
    ("workload_id", "if_name", "part", "error"),
    [
        ("w2", "eth0", to(LIMITS["in"]), NotAttached),
        ("w1", "eth1", to(LIMITS["in"]), NotAttached),
        ("w1", "", to(LIMITS["in"]), InvalidArgument),
        ("", "eth0", to(LIMITS["in"]), InvalidArgument),
        ("w1", "eth0", ("b", "=i1"), InvalidArgument),
        ("w1", "eth0", ("x", "=i1000000"), InvalidArgument),
    ],
)
def test_what_is_refused(
    limited: Limited, workload_id: str, if_name: str, part: PartText, error: type[Exception]
) -> None:
    made = limited.engine.attach(intent())
    with pytest.raises(error):
        limited.engine.change(workload_id, if_name, part)
    assert limited.engine.list() == [made]


def test_a_refusal_of_the_kernel_changes_nothing(limited: Limited) -> None:
    made = limited.engine.attach(intent())

    def fail(_: Record) -> None:
        raise KernelRefused("limit: ENOMEM")

    limited.datapath.on_change = fail
    with limited.engine.watch() as watcher:
        assert [next(watcher).kind, next(watcher).kind] == [Kind.PRESENT, Kind.COMPLETE]
        with pytest.raises(KernelRefused):
            limited.engine.change("w1", "eth0", to(LIMITS["in"]))
        limited.engine.detach("w1")
        assert next(watcher) == Event(Kind.DETACHED, made)


def test_its_namespace_ends_meanwhile(limited: Limited) -> None:
    limited.engine.attach(intent())
    limited.datapath.on_change = lambda record: limited.datapath.take_link(record.host_ifindex)
    with pytest.raises(NotAttached):
        limited.engine.change("w1", "eth0", to(LIMITS["in"]))
    assert limited.engine.list() == []
    with pytest.raises(NotAttached):
        limited.engine.change("w1", "eth0", to(LIMITS["in"]))
