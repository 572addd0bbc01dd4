# SPDX-License-Identifier: Apache-2.0
"""Attach, Detach and life of the engine on the fake: order, undo, races."""

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_address, ip_network

import pytest

from metropolis.node.core.network.workloads.datapath.interface import Record
from metropolis.node.core.network.workloads.engine.engine import Engine
from metropolis.node.core.network.workloads.errors import (
    AlreadyExists,
    Exhausted,
    InvalidArgument,
    KernelRefused,
    NotFound,
    Unavailable,
)
from metropolis.node.core.network.workloads.model import (
    AttachIntent,
)
from metropolis.node.core.network.workloads.testing.fake import FakeDatapath
from metropolis.node.core.network.workloads.testing.world import (
    PREFIXES,
    WAIT_S,
    World,
    intent,
)


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
    with pytest.raises(Exhausted):  # the IPv4 address was returned
        world.engine.attach(intent("c", "/c"))
    world.engine.detach("a")
    assert str(world.engine.attach(intent("c", "/c")).ips[0]) == "10.0.0.1"


def test_several_interfaces_of_a_workload(world: World) -> None:
    made = [world.engine.attach(intent(if_name=name)) for name in ("eth0", "net1", "net2")]
    metrics = [world.kernel.metrics[one.host_ifindex] for one in made]
    assert metrics == [0, 2051, 2052]
    world.engine.detach("w1", if_name="net1")
    assert {one.if_name for one in world.engine.list("w1")} == {"eth0", "net2"}
    world.engine.detach("w1", until_gone=True)
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

    world.datapath.on_cut_off = world.datapath.on_remove = fail
    with pytest.raises(KernelRefused):
        world.engine.detach("w1")
    with pytest.raises(Exhausted):
        world.engine.attach(intent("w2", "/b"))
    world.datapath.on_cut_off = world.datapath.on_remove = lambda _: None
    world.engine.detach("w1")
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
        world.engine.settle()
    assert not world.kernel.links
    world.engine.detach("never heard of")


def test_detach_before_the_start_recovers_first(world: World) -> None:
    world.engine.attach(intent())
    late = Engine(FakeDatapath(world.kernel))
    late.detach("w1", until_gone=True)
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
    world.datapath.take_link(gone.host_ifindex, reported=False)
    world.datapath.overrun()
    assert world.engine.list() == [kept]


def test_events_lost_during_an_attach_are_made_up_for(world: World) -> None:
    world.engine.set_prefixes([ip_network("10.0.0.1/32")])

    def die_unheard(record: Record) -> None:
        world.datapath.take_link(record.host_ifindex, reported=False)
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


def test_an_attach_that_cannot_list_links_keeps_its_addresses(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its links are there: nobody else may have what they have."""
    world.engine.set_prefixes([ip_network("10.0.0.1/32")])

    present = world.datapath.present
    asked: list[str] = []

    def refuse_second() -> frozenset[int]:
        asked.append("")
        if len(asked) == 2:
            raise KernelRefused("list links: ENOBUFS")
        return present()

    # The overrun itself asks first, and the attach after it.
    world.datapath.on_create = lambda _: world.datapath.overrun()
    with monkeypatch.context() as patched:
        patched.setattr(world.datapath, "present", refuse_second)
        with pytest.raises(KernelRefused, match="ENOBUFS"):
            world.engine.attach(intent())
    world.datapath.on_create = lambda _: None
    with pytest.raises(Exhausted):
        world.engine.attach(intent("w2", "/b"))
    world.engine.detach("w1", until_gone=True)
    assert not world.datapath.present()
    world.engine.attach(intent("w2", "/b"))


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
    world.engine.detach("w1", until_gone=True)
    assert (world.engine.in_use(old), world.engine.in_use(new)) == (0, 1)
