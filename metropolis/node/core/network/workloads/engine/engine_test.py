# SPDX-License-Identifier: Apache-2.0
"""The engine over the fake: order, undoing, races. No kernel needed."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest

from metropolis.node.core.network.reconcile.ward import Ward
from metropolis.node.core.network.workloads.datapath.interface import Record
from metropolis.node.core.network.workloads.engine.engine import Engine
from metropolis.node.core.network.workloads.engine.ward import WorkloadsWard
from metropolis.node.core.network.workloads.engine.watchers import Event, Kind, Watcher
from metropolis.node.core.network.workloads.errors import (
    Aborted,
    AlreadyExists,
    Exhausted,
    GivenUp,
    InvalidArgument,
    KernelRefused,
    NotAttached,
    NotFound,
    Unavailable,
)
from metropolis.node.core.network.workloads.model import (
    AttachIntent,
    Attachment,
    Checked,
    Collected,
    IPAddress,
)
from metropolis.node.core.network.workloads.testing.fake import HOME, FakeDatapath, FakeKernel

PREFIXES = [ip_network("10.0.0.0/29"), ip_network("fd00::/125")]
WAIT_S = 10.0


class World:
    """An engine over a fake kernel in which `/a` to `/h` are namespaces."""

    def __init__(self) -> None:
        self.kernel = FakeKernel(namespaces={"/home": HOME})
        for letter in "abcdefgh":
            self.kernel.add_netns(f"/{letter}")
        self.restart()

    def restart(self) -> Engine:
        self.datapath = FakeDatapath(self.kernel)
        self.engine = Engine(self.datapath)
        self.engine.start()
        self.engine.set_prefixes(PREFIXES)
        return self.engine


@pytest.fixture
def world() -> World:
    return World()


def intent(workload_id: str = "w1", path: str = "/a", if_name: str = "eth0") -> AttachIntent:
    return AttachIntent(workload_id, path, if_name)


def test_attach_gives_an_address_of_each_family(world: World) -> None:
    made = world.engine.attach(intent())
    assert [str(ip) for ip in made.ips] == ["10.0.0.1", "fd00::1"]
    assert [str(ip) for ip in made.gateways] == ["169.254.77.1", "fe80::1"]
    assert [(str(r.destination), str(r.gateway)) for r in made.routes] == [
        ("169.254.77.1/32", "None"),
        ("0.0.0.0/0", "169.254.77.1"),
        ("fe80::1/128", "None"),
        ("::/0", "fe80::1"),
    ]
    assert made.mac[0] & 3 == 2  # locally administered, unicast
    assert made.mtu == 1500
    assert world.engine.list() == world.engine.list("w1") == [made]
    assert world.engine.list("other") == []


@pytest.mark.parametrize("prefix", PREFIXES)
def test_one_family_is_enough(world: World, prefix: object) -> None:
    world.engine.set_prefixes([prefix])  # type: ignore[list-item]
    (ip,) = world.engine.attach(intent()).ips
    assert ip in prefix  # type: ignore[operator]


def test_the_same_request_returns_the_same_attachment(world: World) -> None:
    made = world.engine.attach(intent())
    world.kernel.namespaces["/another/path"] = world.kernel.namespaces["/a"]
    assert world.engine.attach(intent(path="/another/path")) == made
    world.engine.set_mtu(1400)
    world.engine.set_prefixes([])
    assert world.engine.attach(intent()) == made
    assert world.restart().attach(intent()) == made


def test_a_different_request_is_refused(world: World) -> None:
    made = world.engine.attach(intent())
    for other in (
        intent(path="/b"),
        AttachIntent("w1", "/a", "eth0", requested_ips=made.ips),
        AttachIntent("w1", "/a", "eth0", requested_mac=made.mac),
        intent("w2"),
    ):
        for engine in (world.engine, world.restart()):
            with pytest.raises(AlreadyExists):
                engine.attach(other)
    assert world.engine.list() == [made]


def test_addresses_and_mac_may_be_requested(world: World) -> None:
    ips = (ip_address("10.0.0.5"), ip_address("fd00::5"))
    asked = AttachIntent("w1", "/a", "eth0", ips, bytes.fromhex("020000000005"))
    made = world.engine.attach(asked)
    assert (made.ips, made.mac) == (ips, asked.requested_mac)
    assert world.restart().attach(asked) == made
    with pytest.raises(AlreadyExists, match=r"requested_ip 10.0.0.5: in use by workload 'w1'"):
        world.engine.attach(AttachIntent("w2", "/b", "eth0", ips[:1]))
    with pytest.raises(InvalidArgument, match="not a usable address"):
        world.engine.attach(AttachIntent("w2", "/b", "eth0", (ip_address("10.9.9.9"),)))
    half = world.engine.attach(AttachIntent("w2", "/b", "eth0", (ip_address("fd00::6"),)))
    assert [ip.version for ip in half.ips] == [4, 6]


def test_a_family_that_is_exhausted_fails_the_whole_attach(world: World) -> None:
    world.engine.set_prefixes([ip_network("10.0.0.0/24"), ip_network("fd00::/127")])
    for letter in "ab":
        world.engine.attach(intent(letter, f"/{letter}"))
    with pytest.raises(Exhausted, match=r"fd00::/127 \(2 usable, 2 in use, 0 reserved\)"):
        world.engine.attach(intent("c", "/c"))
    world.engine.set_prefixes([ip_network("10.0.0.0/30")])
    with pytest.raises(Exhausted):  # the address of IPv4 that was taken went back
        world.engine.attach(intent("c", "/c"))
    world.engine.detach("a")
    assert str(world.engine.attach(intent("c", "/c")).ips[0]) == "10.0.0.1"


def test_several_interfaces_of_a_workload(world: World) -> None:
    made = [world.engine.attach(intent(if_name=name)) for name in ("eth0", "net1", "net2")]
    metrics = [world.kernel.metrics[one.host_ifindex] for one in made]
    assert metrics == [0, 2051, 2052]
    world.engine.detach("w1", if_name="net1")
    assert {one.if_name for one in world.engine.list("w1")} == {"eth0", "net2"}
    world.engine.detach("w1")
    assert world.engine.list() == []
    assert not world.kernel.links


def test_a_failure_gives_everything_back(world: World) -> None:
    def fail(_: Record) -> None:
        raise KernelRefused("add route: ENOMEM")

    world.datapath.on_create = fail
    for _ in range(20):  # more often than there are addresses
        with pytest.raises(KernelRefused, match="ENOMEM"):
            world.engine.attach(intent())
    assert world.engine.list() == []
    world.datapath.on_create = lambda _: None
    world.engine.attach(intent())


def test_what_cannot_be_undone_keeps_its_address_until_it_is_gone(world: World) -> None:
    def fail(_: Record) -> None:
        raise KernelRefused("add route: ENOMEM")

    world.engine.set_prefixes([ip_network("10.0.0.1/32")])
    world.datapath.on_create, world.datapath.undo_fails = fail, True
    with pytest.raises(KernelRefused, match="undo failed"):
        world.engine.attach(intent())
    assert world.engine.list() == []
    with pytest.raises(Exhausted):
        world.engine.attach(intent("w2", "/b"))
    world.datapath.on_create = lambda _: None
    world.engine.attach(intent())  # the retry removes the rest first
    world.engine.detach("w1")
    world.engine.attach(intent("w2", "/b"))


def test_a_removal_that_fails_can_be_repeated(world: World) -> None:
    world.engine.set_prefixes([ip_network("10.0.0.1/32")])
    world.engine.attach(intent())

    def fail(_: Sequence[Record]) -> None:
        raise KernelRefused("detach: EPERM")

    world.datapath.on_remove = fail
    with pytest.raises(KernelRefused):
        world.engine.detach("w1")
    with pytest.raises(Exhausted):
        world.engine.attach(intent("w2", "/b"))
    world.datapath.on_remove = lambda _: None
    world.engine.detach("w1")
    world.engine.attach(intent("w2", "/b"))


def test_the_address_is_not_reused_before_the_link_is_gone(world: World) -> None:
    world.engine.set_prefixes([ip_network("10.0.0.1/32")])
    world.engine.attach(intent())
    outcomes: list[type[BaseException]] = []

    def look(_: Sequence[Record]) -> None:
        with pytest.raises(Exhausted) as caught:
            world.engine.attach(intent("w2", "/b"))
        outcomes.append(caught.type)

    world.datapath.on_remove = look
    world.engine.detach("w1")
    assert outcomes == [Exhausted]
    world.engine.attach(intent("w2", "/b"))


def test_behind_another_plugins_default_route(world: World) -> None:
    """As for Multus, whose first network may be another's."""
    world.kernel.default_routes.add((world.kernel.namespaces["/a"], 0))
    made = [world.engine.attach(intent(if_name=f"net{n}")) for n in range(2)]
    metrics = [world.kernel.metrics[one.host_ifindex] for one in made]
    assert min(metrics) >= 2048
    assert len(set(metrics)) == 2
    world.kernel.default_routes.add((world.kernel.namespaces["/b"], 0))
    world.datapath.on_create = lambda _: world.engine.detach("w1")
    world.engine.attach(intent("w2", "/b"))
    assert [one.workload_id for one in world.engine.list()] == ["w2"]


def test_detach_is_idempotent_and_needs_no_readiness(world: World) -> None:
    world.engine.attach(intent())
    world.engine.set_prefixes([])
    for _ in range(2):
        world.engine.detach("w1", "/nowhere", "eth0")
    assert not world.kernel.links
    world.engine.detach("never heard of")


def test_detach_before_the_start_recovers_first(world: World) -> None:
    world.engine.attach(intent())
    late = Engine(FakeDatapath(world.kernel))
    late.detach("w1")
    assert not world.kernel.links


def test_detach_through_another_namespace_leaves_it_alone(world: World) -> None:
    made = world.engine.attach(intent())
    for path in ("/b", "/home"):
        world.engine.detach("w1", path)
        assert world.engine.list() == [made]
    world.engine.detach("w1", "/a")
    assert world.engine.list() == []


@pytest.mark.parametrize("path", ["/gone", "/file/where/a/namespace/was"])
def test_detach_with_a_path_that_is_gone(world: World, path: str) -> None:
    world.engine.attach(intent())
    world.engine.detach("w1", path)
    assert world.engine.list() == []


def test_not_ready_without_a_prefix(world: World) -> None:
    world.engine.status()
    world.engine.set_prefixes([])
    with pytest.raises(Unavailable, match="no address prefix"):
        world.engine.status()
    with pytest.raises(Unavailable, match="no address prefix"):
        world.engine.attach(intent())


def test_not_ready_before_the_start_and_after_the_end() -> None:
    engine = Engine(FakeDatapath())
    engine.set_prefixes(PREFIXES)
    for call in (engine.status, lambda: engine.attach(intent())):
        with pytest.raises(Unavailable, match="not running"):
            call()
    engine.start()
    engine.start()
    engine.status()
    engine.close()
    for call in (engine.status, engine.start, lambda: engine.detach("w1")):
        with pytest.raises(Unavailable):
            call()


def test_a_start_that_failed_can_be_repeated() -> None:
    datapath = FakeDatapath()
    datapath.scan_error = KernelRefused("list links: EPERM")
    engine = Engine(datapath)
    with pytest.raises(KernelRefused):
        engine.start()
    datapath.scan_error = None
    engine.start()


def test_the_hosts_own_namespace_is_refused(world: World) -> None:
    with pytest.raises(InvalidArgument, match="namespace of the host"):
        world.engine.attach(intent(path="/home"))


def test_a_restart_gives_other_addresses_to_new_workloads(world: World) -> None:
    old = world.engine.attach(intent())
    engine = world.restart()
    assert engine.list() == [old]
    new = engine.attach(intent("w2", "/b"))
    assert not set(old.ips) & set(new.ips)
    assert old.host_ifindex != new.host_ifindex


def test_a_namespace_that_dies_frees_its_address(world: World) -> None:
    world.engine.set_prefixes([ip_network("10.0.0.1/32")])
    world.engine.attach(intent())
    world.datapath.kill_netns("/a")
    assert world.engine.list() == []
    world.engine.attach(intent("w2", "/b"))


def test_lost_events_are_made_up_for(world: World) -> None:
    gone = world.engine.attach(intent())
    kept = world.engine.attach(intent("w2", "/b"))
    world.datapath.take_link(gone.host_ifindex, told=False)
    world.datapath.overrun()
    assert world.engine.list() == [kept]


def test_events_lost_during_an_attach_are_made_up_for(world: World) -> None:
    world.engine.set_prefixes([ip_network("10.0.0.1/32")])

    def die_unheard(record: Record) -> None:
        world.datapath.take_link(record.host_ifindex, told=False)
        world.datapath.overrun()

    world.datapath.on_create = die_unheard
    with pytest.raises(NotFound, match="removed meanwhile"):
        world.engine.attach(intent())
    world.datapath.on_create = lambda _: world.datapath.overrun()
    assert world.engine.list() == []
    world.engine.attach(intent("w2", "/b"))


def test_a_removal_that_is_seen_while_lost_ones_are_looked_for_counts(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes after the links were listed, so the list still has the link."""
    present = world.datapath.present
    made: list[int] = []

    def die(record: Record) -> None:
        world.datapath.overrun()
        made.append(record.host_ifindex)

    def list_then_die() -> frozenset[int]:
        found = present()
        for index in made:
            world.datapath.take_link(index)
        return found

    world.datapath.on_create = die
    monkeypatch.setattr(world.datapath, "present", list_then_die)
    with pytest.raises(NotFound, match="removed meanwhile"):
        world.engine.attach(intent())
    assert world.engine.list() == []


def test_a_namespace_that_dies_during_its_attach(world: World) -> None:
    world.engine.set_prefixes([ip_network("10.0.0.1/32")])
    world.datapath.on_create = lambda record: world.datapath.take_link(record.host_ifindex)
    with pytest.raises(NotFound, match="removed meanwhile"):
        world.engine.attach(intent())
    world.datapath.on_create = lambda _: None
    world.engine.attach(intent("w2", "/b"))


def test_a_namespace_that_dies_during_its_detach(world: World) -> None:
    world.engine.set_prefixes([ip_network("10.0.0.1/32")])
    made = world.engine.attach(intent())
    world.datapath.on_remove = lambda _: world.datapath.take_link(made.host_ifindex)
    world.engine.detach("w1")
    world.engine.attach(intent("w2", "/b"))


def test_indexes_that_others_have_are_passed_over(world: World) -> None:
    first = world.engine.attach(intent())
    world.kernel.indexes |= {first.host_ifindex + n for n in range(1, 4)} | {2}
    second = world.engine.attach(intent("w2", "/b"))
    assert second.host_ifindex == first.host_ifindex + 4
    assert world.kernel.links[second.host_ifindex].peer_ifindex != 2


def test_one_workload_at_a_time_and_others_meanwhile(world: World) -> None:
    inside, go_on = threading.Event(), threading.Event()

    def wait(record: Record) -> None:
        if record.workload_id == "slow":
            inside.set()
            assert go_on.wait(WAIT_S)

    world.datapath.on_create = wait
    with ThreadPoolExecutor() as pool:
        slow = pool.submit(world.engine.attach, intent("slow", "/a"))
        assert inside.wait(WAIT_S)
        retry = pool.submit(world.engine.attach, intent("slow", "/a"))
        detach = pool.submit(world.engine.detach, "other")
        assert pool.submit(world.engine.attach, intent("fast", "/b")).result(WAIT_S)
        world.engine.status()
        assert [one.workload_id for one in world.engine.list()] == ["fast"]
        detach.result(WAIT_S)
        assert not retry.done()
        go_on.set()
        assert slow.result(WAIT_S) == retry.result(WAIT_S)


def test_many_at_once(world: World) -> None:
    world.engine.set_prefixes([ip_network("10.0.0.0/16"), ip_network("fd00::/64")])
    for number in range(60):
        world.kernel.add_netns(f"/n{number}")

    def cycle(number: int) -> None:
        for _ in range(5):
            world.engine.attach(intent(f"w{number}", f"/n{number}"))
            world.engine.detach(f"w{number}")
        world.engine.attach(intent(f"w{number}", f"/n{number}"))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(cycle, range(60)))
    listed = world.engine.list()
    assert len(listed) == 60
    assert len({ip for one in listed for ip in one.ips}) == 120


def test_mtu(world: World) -> None:
    for mtu in (0, 1279, 65536):
        with pytest.raises(InvalidArgument, match=f"mtu {mtu}"):
            world.engine.set_mtu(mtu)
    world.engine.set_mtu(1420)
    assert world.engine.attach(intent()).mtu == 1420


def test_prefixes_that_overlap_are_refused_at_any_time() -> None:
    engine = Engine(FakeDatapath())
    with pytest.raises(InvalidArgument, match="overlap"):
        engine.set_prefixes([ip_network("10.0.0.0/8"), ip_network("10.1.0.0/16")])


def test_a_prefix_is_drained_and_taken_away_while_in_use(world: World) -> None:
    old, new = ip_network("10.0.0.0/29"), ip_network("10.1.0.0/29")
    world.engine.set_prefixes([old])
    made = world.engine.attach(intent())
    for engine in (world.engine, world.restart()):
        engine.set_prefixes([new], draining=[old])
        assert engine.attach(intent()) == made
        assert engine.in_use(old) == 1
    second = world.engine.attach(intent("w2", "/b"))
    assert second.ips[0] in new
    with pytest.raises(InvalidArgument, match=r"10.0.0.2: its prefix 10.0.0.0/29 is draining"):
        world.engine.attach(AttachIntent("w3", "/c", "eth0", (ip_address("10.0.0.2"),)))
    world.engine.set_prefixes([], draining=[old, new])
    with pytest.raises(Unavailable, match="no address prefix"):
        world.engine.status()
    world.engine.detach("w1")
    assert (world.engine.in_use(old), world.engine.in_use(new)) == (0, 1)


# ---- Check -------------------------------------------------------------------


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


# ---- Watch -------------------------------------------------------------------


def told(watcher: Watcher, count: int) -> list[tuple[str, str]]:
    """The next events: kind and workload."""
    events = [next(watcher) for _ in range(count)]
    return [(e.kind.name, e.attachment.workload_id if e.attachment else "") for e in events]


def test_watch_tells_the_set_and_every_change(world: World) -> None:
    kept = world.engine.attach(intent("kept", "/h"))
    world.restart()
    with world.engine.watch() as watcher:
        assert next(watcher) == Event(Kind.PRESENT, kept)
        assert next(watcher) == Event(Kind.COMPLETE)
        made = world.engine.attach(intent())
        assert world.engine.attach(intent()) == made  # nothing changes
        assert next(watcher) == Event(Kind.ATTACHED, made)
        world.engine.detach("w1")
        world.engine.detach("w1")
        assert next(watcher) == Event(Kind.DETACHED, made)
        lost = world.engine.attach(intent("w2", "/b"))
        world.datapath.kill_netns("/b")
        assert [next(watcher), next(watcher)] == [
            Event(Kind.ATTACHED, lost),
            Event(Kind.LOST, lost),
        ]
        world.engine.collect(lambda *_: False)
        assert next(watcher) == Event(Kind.DETACHED, kept)


def test_watch_is_told_what_was_lost_in_a_flood(world: World) -> None:
    for letter in "abc":
        world.engine.attach(intent(letter, f"/{letter}"))
    with world.engine.watch() as watcher:
        told(watcher, 4)
        for letter in "ac":
            world.datapath.kill_netns(f"/{letter}", told=False)
        world.datapath.overrun()
        assert sorted(told(watcher, 2)) == [("LOST", "a"), ("LOST", "c")]


def test_an_attach_that_fails_is_not_told(world: World) -> None:
    def fail(_: Record) -> None:
        raise KernelRefused("add route: ENOMEM")

    with world.engine.watch() as watcher:
        world.datapath.on_create = fail
        with pytest.raises(KernelRefused):
            world.engine.attach(intent())
        world.datapath.on_create = lambda record: world.datapath.take_link(record.host_ifindex)
        with pytest.raises(NotFound):
            world.engine.attach(intent())
        world.datapath.on_create = lambda _: None
        world.engine.attach(intent("w2", "/b"))
        assert told(watcher, 2) == [("COMPLETE", ""), ("ATTACHED", "w2")]


def test_what_cannot_be_removed_stays_in_the_set_until_it_is_gone(world: World) -> None:
    def fail(_: Sequence[Record]) -> None:
        raise KernelRefused("detach: EPERM")

    made = world.engine.attach(intent())
    world.datapath.on_remove = fail
    with pytest.raises(KernelRefused):
        world.engine.detach("w1")
    with world.engine.watch() as watcher:
        assert told(watcher, 2) == [("PRESENT", "w1"), ("COMPLETE", "")]
        world.datapath.take_link(made.host_ifindex)
        assert told(watcher, 1) == [("LOST", "w1")]


def test_a_watcher_that_does_not_read_is_dropped_and_holds_nobody_up(world: World) -> None:
    slow, fast = world.engine.watch(backlog=3), world.engine.watch(backlog=100)
    with slow, fast:
        for _ in range(2):
            world.engine.attach(intent())
            world.engine.detach("w1")
        with pytest.raises(Aborted, match="3 changes were not read"):
            next(slow)
        assert told(fast, 5) == [
            ("COMPLETE", ""),
            *[("ATTACHED", "w1"), ("DETACHED", "w1")] * 2,
        ]
    with world.engine.watch() as again:
        assert told(again, 1) == [("COMPLETE", "")]


def test_a_watch_sees_no_gap_however_much_happens(world: World) -> None:
    """Sets built by watchers that begin at any time are those of `list`."""
    world.engine.set_prefixes([ip_network("10.0.0.0/16")])
    for number in range(8):
        world.kernel.add_netns(f"/n{number}")
    done = threading.Event()

    def churn(number: int) -> None:
        while not done.is_set():
            world.engine.attach(intent(f"w{number}", f"/n{number}"))
            world.engine.detach(f"w{number}")

    def follow(watcher: Watcher) -> set[tuple[str, IPAddress]]:
        there: set[tuple[str, IPAddress]] = set()
        for event in watcher:
            if event.attachment is not None:
                one = (event.attachment.workload_id, event.attachment.ips[0])
                if event.kind in (Kind.PRESENT, Kind.ATTACHED):
                    assert one not in there
                    there.add(one)
                else:
                    there.remove(one)
        return there

    with ThreadPoolExecutor() as pool:
        churning = [pool.submit(churn, number) for number in range(4)]
        with ThreadPoolExecutor() as followers:
            watchers = [world.engine.watch(backlog=1 << 20) for _ in range(4)]
            following = [followers.submit(follow, watcher) for watcher in watchers]
            world.engine.attach(intent("last", "/n7"))
            done.set()
            for churned in churning:
                churned.result()
            final = world.engine.attach(intent("w6", "/n6"))
            expected = {(one.workload_id, one.ips[0]) for one in world.engine.list()}
            for watcher in watchers:
                while not _drained(watcher):
                    pass
                watcher.close()
            for future in following:
                assert future.result() == expected
    assert ("w6", final.ips[0]) in expected


def _drained(watcher: Watcher) -> bool:
    return not watcher._first and not watcher._changes


def test_watches_end_with_the_service(world: World) -> None:
    with world.engine.watch() as watcher, ThreadPoolExecutor() as pool:
        told(watcher, 1)
        waiting = pool.submit(next, watcher)
        world.engine.close()
        with pytest.raises(Unavailable, match="has stopped"):
            waiting.result(WAIT_S)
    with pytest.raises(Unavailable):
        world.engine.watch()


# ---- Collect -----------------------------------------------------------------


def ids(attachments: Sequence[Attachment]) -> set[tuple[str, str]]:
    return {(one.workload_id, one.if_name) for one in attachments}


def test_collect_removes_what_is_not_live(world: World) -> None:
    for letter in "abcd":
        world.engine.attach(intent(letter, f"/{letter}"))
    world.engine.attach(intent("a", "/a", "net1"))
    live = {("a", "eth0"), ("c", "eth0"), ("x", "eth0")}
    collected = world.engine.collect(lambda *key: key in live)
    assert ids(collected.removed) == {("a", "net1"), ("b", "eth0"), ("d", "eth0")}
    assert collected.remaining == ()
    assert ids(world.engine.list()) == {("a", "eth0"), ("c", "eth0")}
    assert world.engine.collect(lambda *key: key in live) == Collected((), ())
    world.engine.set_prefixes([])
    late = Engine(FakeDatapath(world.kernel))  # before its start, and not ready
    assert ids(late.collect(lambda *_: False).removed) == {("a", "eth0"), ("c", "eth0")}
    assert not world.kernel.links


def test_collect_takes_many_in_one_removal(world: World) -> None:
    world.engine.set_prefixes([ip_network("10.0.0.0/16")])
    for number in range(300):
        world.kernel.add_netns(f"/n{number}")
        world.engine.attach(intent(f"w{number}", f"/n{number}"))
    removals: list[int] = []
    world.datapath.on_remove = lambda records: removals.append(len(records))
    assert len(world.engine.collect(lambda *_: False).removed) == 300
    assert removals == [256, 44]


def test_collect_tells_what_remains_and_can_be_repeated(world: World) -> None:
    for letter in "abc":
        world.engine.attach(intent(letter, f"/{letter}"))

    def fail(records: Sequence[Record]) -> None:
        if any(record.workload_id == "b" for record in records):
            raise KernelRefused("detach: EPERM")

    world.datapath.on_remove = fail
    collected = world.engine.collect(lambda *_: False)
    assert ids(collected.removed) == {("a", "eth0"), ("c", "eth0")}
    assert [(one.workload_id, why) for one, why in collected.remaining] == [("b", "detach: EPERM")]
    world.datapath.on_remove = lambda _: None
    assert ids(world.engine.collect(lambda *_: False).removed) == {("b", "eth0")}
    assert not world.kernel.links


def test_collect_never_touches_an_attach_in_flight(world: World) -> None:
    """Neither one that makes an attachment nor one that finds it, whether it
    began before the collection or begins while that runs.
    """
    world.engine.set_prefixes([ip_network("10.0.0.0/24")])
    for letter in "abcd":
        world.engine.attach(intent(letter, f"/{letter}"))
    inside, go_on = threading.Event(), threading.Event()

    def wait(record: Record) -> None:
        inside.set()
        assert go_on.wait(WAIT_S)

    world.datapath.on_create = wait
    asked: list[str] = []

    def is_live(workload_id: str, if_name: str) -> bool:
        asked.append(workload_id)
        if asked == ["a"]:  # while it looks through what it saw
            world.engine.attach(intent("c", "/c"))
        return False

    with ThreadPoolExecutor() as pool:
        second = pool.submit(world.engine.attach, intent("b", "/b", "net1"))
        new = pool.submit(world.engine.attach, intent("e", "/e"))
        assert inside.wait(WAIT_S)
        collected = pool.submit(world.engine.collect, is_live).result(WAIT_S)
        go_on.set()
        second.result(WAIT_S)
        new.result(WAIT_S)
    assert ids(collected.removed) == {("a", "eth0"), ("d", "eth0")}
    expected = {("b", "eth0"), ("b", "net1"), ("c", "eth0"), ("e", "eth0")}
    assert ids(world.engine.list()) == expected
    assert ids(world.engine.collect(lambda *_: False).removed) == expected


def test_collect_leaves_what_is_not_what_it_saw(world: World) -> None:
    world.engine.attach(intent())
    again: list[Attachment] = []

    def is_live(*_: str) -> bool:
        if not again:
            world.engine.detach("w1")
            # As another process would: no attach of this engine is seen.
            world.engine.attach(intent())
            with world.engine._ledger._mutex:
                world.engine._ledger._protected.begin_collection()
            again.extend(world.engine.list())
        return False

    assert world.engine.collect(is_live) == Collected((), ())
    assert world.engine.list() == again


def test_collect_waits_for_what_is_being_detached(world: World) -> None:
    for letter in "ab":
        world.engine.attach(intent(letter, f"/{letter}"))
    inside, go_on = threading.Event(), threading.Event()

    def wait(records: Sequence[Record]) -> None:
        if records[0].workload_id == "a":
            inside.set()
            assert go_on.wait(WAIT_S)

    with ThreadPoolExecutor() as pool:
        world.datapath.on_remove = wait
        slow = pool.submit(world.engine.detach, "a")
        assert inside.wait(WAIT_S)
        collect = pool.submit(world.engine.collect, lambda *_: False)
        while ids(world.engine.list()):
            pass
        go_on.set()
        assert ids(collect.result(WAIT_S).removed) == {("b", "eth0")}
        slow.result(WAIT_S)


def test_one_collection_at_a_time(world: World) -> None:
    world.engine.attach(intent())

    def is_live(*_: str) -> bool:
        with pytest.raises(GivenUp, match="garbage collection was under way"):
            world.engine.collect(lambda *_: False, time_remaining=lambda: 0.01)
        return True

    assert world.engine.collect(is_live) == Collected((), ())
    assert world.engine.collect(lambda *_: False).removed


# ---- Callers that stop to wait -----------------------------------------------


def test_nothing_is_begun_for_a_caller_that_has_gone(world: World) -> None:
    made = world.engine.attach(intent())

    def gone() -> float:
        return 0.0

    for call in (
        lambda: world.engine.attach(intent("w2", "/b"), time_remaining=gone),
        lambda: world.engine.detach("w1", time_remaining=gone),
        lambda: world.engine.check("w1", time_remaining=gone),
        lambda: world.engine.collect(lambda *_: False, time_remaining=gone),
    ):
        with pytest.raises(GivenUp):
            call()
    assert world.engine.list() == [made]


def test_a_caller_that_leaves_in_the_queue_gets_nothing(world: World) -> None:
    """One for the same workload, and one for the same namespace."""
    inside, go_on = threading.Event(), threading.Event()

    def wait(_: Record) -> None:
        inside.set()
        assert go_on.wait(WAIT_S)

    world.datapath.on_create = wait
    times = {"same": 0, "other": 0}

    def leaves(name: str, at: int) -> Callable[[], float]:
        def time_remaining() -> float:
            times[name] += 1
            return WAIT_S if times[name] < at else 0.0

        return time_remaining

    with ThreadPoolExecutor() as pool:
        first = pool.submit(world.engine.attach, intent())
        assert inside.wait(WAIT_S)
        same = pool.submit(
            world.engine.attach, intent(if_name="net1"), time_remaining=leaves("same", 2)
        )
        other = pool.submit(
            world.engine.attach, intent("w2", "/a", "net2"), time_remaining=leaves("other", 3)
        )
        while times != {"same": 1, "other": 2}:
            pass
        go_on.set()
        first.result(WAIT_S)
        for call in (same, other):
            with pytest.raises(GivenUp, match="nothing was begun"):
                call.result(WAIT_S)
    assert ids(world.engine.list()) == {("w1", "eth0")}
    assert len(world.kernel.links) == 1


def test_a_call_whose_time_ends_while_it_is_served_is_finished(world: World) -> None:
    over = False

    def time_remaining() -> float:
        return 0.0 if over else WAIT_S

    def end(_: Record) -> None:
        nonlocal over
        over = True

    world.datapath.on_create = end
    made = world.engine.attach(intent(), time_remaining=time_remaining)
    assert world.engine.attach(intent()) == made


# ---- Repair -----------------------------------------------------------------


def damage(world: World) -> None:
    """Of every link, the MTU."""
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
    """Neither by an attach, a detach, nor any other of the workload."""
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


def test_a_look_that_fails_is_a_repair_with_an_error(world: World) -> None:
    ward: Ward = WorkloadsWard(world.engine)
    assert ward.name == "workloads"
    world.engine.attach(intent("a", "/a"))
    assert not ward.look(always)
    damage(world)
    (repair,) = ward.look(lambda _: False)
    assert repair.left
    (repair,) = ward.look(always)
    assert (repair.left, repair.error) == (False, "")
    world.datapath.repair_error = KernelRefused("look at attachments: EIO")
    (repair,) = ward.look(always)
    assert (repair.key, repair.error) == ("workloads", "look at attachments: EIO")
