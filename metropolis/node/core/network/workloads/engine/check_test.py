# SPDX-License-Identifier: Apache-2.0
"""Check, and repairs for the reconciler, with an engine on the fake."""

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from metropolis.node.core.network.workloads.engine.engine import Engine
from metropolis.node.core.network.workloads.errors import (
    InvalidArgument,
    KernelRefused,
    NotAttached,
    NotFound,
)
from metropolis.node.core.network.workloads.model import (
    Checked,
)
from metropolis.node.core.network.workloads.testing.fake import FakeDatapath
from metropolis.node.core.network.workloads.testing.world import (
    WAIT_S,
    World,
    intent,
)


def test_check_of_all_interfaces_and_of_one(world: World) -> None:
    made = [world.engine.attach(intent(if_name=name)) for name in ("eth0", "net1")]
    for path in ("", "/a"):
        checked = world.engine.check("w1", netns_path=path)
        assert checked == [Checked(one, (), entered=bool(path)) for one in made]
    assert world.restart().check("w1", "net1") == [Checked(made[1], (), entered=False)]
    index = made[0].host_ifindex
    world.kernel.links[index] = replace(world.kernel.links[index], mtu=1300)
    (checked_one,) = world.engine.check("w1", "eth0")
    assert [str(finding) for finding in checked_one.findings] == [
        f"MTU of {made[0].host_interface}: expected 1500, found 1300"
    ]


def test_check_of_what_is_not_there(world: World) -> None:
    world.engine.attach(intent())
    for arguments in (("w2",), ("w1", "net1")):
        with pytest.raises(NotAttached, match=r"check 'w.': has no interface"):
            world.engine.check(*arguments)
    with pytest.raises(NotFound, match="netns_path '/gone'"):
        world.engine.check("w1", "", "/gone")
    with pytest.raises(InvalidArgument, match="workload_id"):
        world.engine.check("")


def test_check_with_another_namespace_tells_and_does_not_enter(world: World) -> None:
    world.engine.attach(intent())
    world.kernel.routes_lost.add(next(iter(world.kernel.links)))  # seen only inside
    (checked,) = world.engine.check("w1", "eth0", "/b")
    assert [finding.what for finding in checked.findings] == ["network namespace at '/b'"]
    assert not checked.entered
    (checked,) = world.engine.check("w1", "eth0", "/a")
    assert [finding.what for finding in checked.findings] == ["route to 0.0.0.0/0 inside"]


def damage(world: World) -> None:
    """The links whose MTU is wrong."""
    for index, record in world.kernel.links.items():
        world.kernel.changed[index] = replace(record, mtu=9000)


def always(_: str) -> bool:
    return True


def test_what_others_changed_is_put_back(world: World) -> None:
    for letter in "abc":
        world.engine.attach(intent(letter, f"/{letter}"))
    assert not world.engine.repair(always)
    damage(world)
    assert world.engine.check("a")[0].findings != ()
    repairs = world.engine.repair(always)
    assert {repair.key for repair in repairs} == {
        f"link {record.host_interface}: MTU" for record in world.kernel.links.values()
    }
    assert not world.kernel.changed
    assert world.engine.check("a")[0].findings == ()


def test_nothing_is_looked_at_before_the_start() -> None:
    assert not Engine(FakeDatapath()).repair(always)


def test_what_a_call_is_busy_with_is_not_touched(world: World) -> None:
    """Neither by an attach, a detach, nor another call for the workload."""
    world.engine.attach(intent("a", "/a"))
    world.engine.attach(intent("b", "/b"))
    busy, go_on = threading.Event(), threading.Event()

    def wait(_: object) -> None:
        busy.set()
        assert go_on.wait(WAIT_S)

    for call, hook in (
        (lambda: world.engine.attach(intent("a", "/c", "eth1")), "on_create"),
        (lambda: world.engine.detach("a"), "on_remove"),
    ):
        setattr(world.datapath, hook, wait)
        busy.clear()
        go_on.clear()
        thread = threading.Thread(target=call)
        thread.start()
        assert busy.wait(WAIT_S)
        damage(world)
        repairs = world.engine.repair(always)
        assert [repair.key for repair in repairs] == [
            f"link {world.engine.list('b')[0].host_interface}: MTU"
        ]
        go_on.set()
        thread.join()
        setattr(world.datapath, hook, lambda _: None)
    assert [one.workload_id for one in world.engine.list()] == ["b"]


def test_a_pod_that_goes_during_a_look_is_no_error(world: World) -> None:
    world.engine.attach(intent("a", "/a"))
    world.engine.attach(intent("b", "/b"))
    damage(world)
    gone: list[str] = []

    def allow(key: str) -> bool:
        """Asked for the first: the other goes."""
        if not gone:
            gone.append("b")
            world.engine.detach("b")
        return True

    assert len(world.engine.repair(allow)) == 1
    assert [one.workload_id for one in world.engine.list()] == ["a"]


def test_the_mutex_is_free_during_a_look(world: World) -> None:
    world.engine.attach(intent("a", "/a"))
    damage(world)

    def allow(_: str) -> bool:
        with ThreadPoolExecutor(1) as other:
            assert len(other.submit(world.engine.list).result(WAIT_S)) == 1
            other.submit(world.engine.attach, intent("b", "/b")).result(WAIT_S)
        return True

    assert len(world.engine.repair(allow)) == 1


def test_damage_is_left_or_put_back_as_allowed(world: World) -> None:
    world.engine.attach(intent("a", "/a"))
    assert not world.engine.repair(always)
    damage(world)
    (repair,) = world.engine.repair(lambda _: False)
    assert repair.left
    (repair,) = world.engine.repair(always)
    assert (repair.left, repair.error) == (False, "")


def test_a_look_that_fails_raises(world: World) -> None:
    world.datapath.repair_error = KernelRefused("look at attachments: EIO")
    with pytest.raises(KernelRefused, match="look at attachments: EIO"):
        world.engine.repair(always)
