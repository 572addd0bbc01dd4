# SPDX-License-Identifier: Apache-2.0
"""The contract of datapaths. Subclass DatapathContract, provide `bench`.

A bench makes and kills namespaces, and counts the service's links.
"""

import contextlib
import queue
import threading
from dataclasses import replace
from ipaddress import ip_address
from typing import Protocol

import pytest

from metropolis.node.core.network.workloads.datapath import names
from metropolis.node.core.network.workloads.datapath.interface import (
    Datapath,
    IndexTaken,
    Netns,
    Record,
    RouteTaken,
    Scan,
)
from metropolis.node.core.network.workloads.errors import (
    AlreadyExists,
    InvalidArgument,
    NotFound,
    WorkloadError,
)
from metropolis.node.core.network.workloads.model import AttachIntent, Finding

WAIT_S = 10.0
OTHER: dict[str, object] = {"workload_id": "other", "number": 7}


class Bench(Protocol):
    """The needs of the contract's tests besides a datapath.

    not_netns: a path of something else. home: a path of the host's namespace.
    """

    datapath: Datapath
    not_netns: str
    home: str
    removed: queue.SimpleQueue[int]

    def add_netns(self) -> str:
        """Return the path of a new namespace."""

    def kill_netns(self, path: str) -> None:
        """End a namespace that add_netns made."""

    def again(self) -> Datapath:
        """Return a new, open datapath on the old one's kernel: a restart."""

    def take_name(self, path: str, name: str) -> None:
        """Make a foreign interface in the namespace."""

    def set_mtu(self, record: Record, mtu: int) -> None:
        """Change the MTU of the host's end, as others would."""

    def take_host_route(self, record: Record) -> None:
        """Remove the host's route to the IPv4 address, as others would."""

    def take_route(self, path: str, record: Record) -> None:
        """Remove the IPv4 default route inside, as others would."""

    def forge(self, path: str, record: Record) -> None:
        """Make an attachment without its host routes, by own requests."""


def record_for(
    netns: Netns,
    workload_id: str = "w1",
    if_name: str = "eth0",
    *,
    number: int = 1,
    peer: int = 2,
    host_ifindex: int | None = None,
) -> Record:
    """Return a record whose index and addresses end in `number`."""
    intent = AttachIntent(workload_id, "/n", if_name)
    return Record(
        workload_id=workload_id,
        if_name=if_name,
        netns_cookie=netns.cookie,
        host_interface=names.host_interface(workload_id, if_name),
        host_ifindex=host_ifindex or 5000 + number,
        peer_ifindex=peer,
        mac=bytes([2, 0, 0, 0, 0, number]),
        mtu=1400,
        ips=(ip_address(f"10.9.0.{number}"), ip_address(f"fd00:9::{number:x}")),
        request=intent.digest(),
        owner="api",
    )


def always(_: str) -> bool:
    """Allow every repair."""
    return True


def idle(_: Record) -> contextlib.AbstractContextManager[bool]:
    """Lock nothing: no call is busy."""
    return contextlib.nullcontext(True)


def create(bench: Bench, path: str, **chosen: object) -> Record:
    """Create an attachment in the namespace at the path."""
    with bench.datapath.open_netns(path) as netns:
        record = record_for(netns, **chosen)  # type: ignore[arg-type]
        bench.datapath.create(netns, record, metric=0)
    return record


class DatapathContract:
    """The tests; `bench` is a fixture of the subclass, its datapath is open."""

    def test_two_may_have_one_mac(self, bench: Bench) -> None:
        """Each has its own link, so nothing of theirs collides."""
        made = []
        for number in (1, 2):
            with bench.datapath.open_netns(path := bench.add_netns()) as netns:
                record = record_for(netns, f"w{number}", number=number)
                record = replace(record, mac=b"\x02same\x02")
                bench.datapath.create(netns, record, metric=0)
                made.append((path, record))
        bench.datapath.remove([made.pop(0)[1]])
        ((path, record),) = made
        with bench.datapath.open_netns(path) as netns:
            assert bench.datapath.check(record, netns) == ()

    def test_what_was_made_is_found_after_a_restart(self, bench: Bench) -> None:
        made = [
            create(bench, bench.add_netns(), workload_id=f"w{n}", number=n) for n in range(1, 4)
        ]
        scan = bench.again().scan()
        assert sorted(scan.complete, key=lambda r: r.workload_id) == made
        assert scan == Scan(scan.complete)

    def test_of_two_that_claim_an_address_the_one_with_the_route_stays(self, bench: Bench) -> None:
        kept = create(bench, bench.add_netns())
        other = bench.add_netns()
        with bench.datapath.open_netns(other) as netns:
            forged = record_for(netns, "w2", number=2, host_ifindex=4000)
        # An index below the other's: the routes decide, not the order.
        bench.forge(other, replace(forged, ips=(kept.ips[0], forged.ips[1])))
        scan = bench.again().scan()
        assert scan == Scan((kept,), duplicates=(forged.host_interface,))
        assert bench.again().scan() == Scan((kept,))
        assert bench.datapath.present() == {kept.host_ifindex}

    def test_of_two_that_claim_an_interface_of_a_workload_one_stays(self, bench: Bench) -> None:
        kept = create(bench, bench.add_netns())
        other = bench.add_netns()
        with bench.datapath.open_netns(other) as netns:
            forged = record_for(netns, number=2, host_ifindex=4000)
        bench.forge(other, replace(forged, host_interface="renamed"))
        assert bench.again().scan() == Scan((kept,), duplicates=("renamed",))

    def test_a_scan_of_nothing_finds_nothing(self, bench: Bench) -> None:
        scan = bench.datapath.scan()
        assert scan == Scan(())
        assert bench.datapath.present() == frozenset()

    def test_awkward_names_survive(self, bench: Bench) -> None:
        awkward = [("x" * 255, "..."), (" a b ", "mw1k.1"), ("{}%", "ö\x01-"), ("1", "a" * 15)]
        made = [
            create(bench, bench.add_netns(), workload_id=w, if_name=i, number=n)
            for n, (w, i) in enumerate(awkward, 1)
        ]
        assert set(bench.again().scan().complete) == set(made)

    def test_a_whole_attachment_checks_without_findings(self, bench: Bench) -> None:
        path = bench.add_netns()
        record = create(bench, path)
        assert bench.datapath.check(record, None) == ()
        with bench.datapath.open_netns(path) as netns:
            assert bench.datapath.check(record, netns) == ()
            second = record_for(netns, if_name="net1", number=2, peer=3)
            bench.datapath.create(netns, second, metric=2050)
            assert bench.datapath.check(record, netns) == ()
            assert bench.datapath.check(second, netns) == ()

    def test_a_check_finds_what_differs_and_changes_nothing(self, bench: Bench) -> None:
        path = bench.add_netns()
        record = create(bench, path)
        bench.set_mtu(record, 1300)
        bench.take_route(path, record)
        name = record.host_interface
        for _ in range(2):
            (mtu,) = bench.datapath.check(record, None)
            assert mtu == Finding(f"MTU of {name}", "1400", "1300")
            with bench.datapath.open_netns(path) as netns:
                _, route = bench.datapath.check(record, netns)
            assert (route.what, route.found) == ("route to 0.0.0.0/0 inside", "nothing")

    def test_what_others_change_is_put_back(self, bench: Bench) -> None:
        path = bench.add_netns()
        record, other = create(bench, path), create(bench, bench.add_netns(), **OTHER)
        records = [record, other]
        assert not bench.datapath.repair(records, always, idle)
        bench.set_mtu(record, 1300)
        key = f"link {record.host_interface}: MTU"
        assert bench.datapath.check(record, None)
        (repair,) = bench.datapath.repair(records, always, idle)
        assert (repair.key, repair.error, repair.left) == (key, "", False)
        bench.take_host_route(record)
        (repair,) = bench.datapath.repair(records, always, idle)
        assert (repair.key, repair.error, repair.left) == ("route 10.9.0.1/32", "", False)
        with bench.datapath.open_netns(path) as netns:
            assert bench.datapath.check(record, netns) == ()
        assert not bench.datapath.repair(records, always, idle)

    def test_what_may_not_be_put_back_is_said(self, bench: Bench) -> None:
        record = create(bench, bench.add_netns())
        bench.set_mtu(record, 1300)
        for _ in range(2):
            (repair,) = bench.datapath.repair([record], lambda _: False, idle)
            assert (repair.left, repair.error) == (True, "")
        assert bench.datapath.check(record, None)

    def test_what_a_call_is_busy_with_is_left_alone(self, bench: Bench) -> None:
        record = create(bench, bench.add_netns())
        bench.set_mtu(record, 1300)
        asked: list[Record] = []

        def busy(one: Record) -> contextlib.AbstractContextManager[bool]:
            asked.append(one)
            return contextlib.nullcontext(False)

        assert not bench.datapath.repair([record], always, busy)
        assert asked == [record]
        assert bench.datapath.check(record, None)

    def test_what_is_gone_is_no_difference(self, bench: Bench) -> None:
        path = bench.add_netns()
        record = create(bench, path)
        bench.datapath.remove([record])
        assert not bench.datapath.repair([record], always, idle)
        # Another link has its index.
        create(bench, path, workload_id="another", number=2, host_ifindex=5001)
        assert not bench.datapath.repair([record], always, idle)
        assert not bench.datapath.repair([], always, idle)

    def test_a_removal_during_a_repair(self, bench: Bench) -> None:
        """It is gone when the repair reaches it."""
        record = create(bench, bench.add_netns())
        other = create(bench, bench.add_netns(), **OTHER)
        for one in (record, other):
            bench.set_mtu(one, 1300)

        def removing(one: Record) -> contextlib.AbstractContextManager[bool]:
            if one == record:
                bench.datapath.remove([record])
            return contextlib.nullcontext(one == other)

        (repair,) = bench.datapath.repair([record, other], always, removing)
        assert (repair.key, repair.error) == (f"link {other.host_interface}: MTU", "")

    def test_a_restart_puts_back_what_others_changed(self, bench: Bench) -> None:
        record = create(bench, bench.add_netns())
        bench.set_mtu(record, 1300)
        scan = bench.again().scan()
        assert scan.complete == (record,)
        assert [one.key for one in scan.repairs] == [f"link {record.host_interface}: MTU"]
        assert bench.datapath.check(record, None) == ()
        assert bench.again().scan() == Scan((record,))

    def test_a_check_of_what_is_gone(self, bench: Bench) -> None:
        path = bench.add_netns()
        record = create(bench, path)
        bench.kill_netns(path)
        assert bench.removed.get(timeout=WAIT_S) == record.host_ifindex
        (found,) = bench.datapath.check(record, None)
        assert found == Finding(f"link {record.host_interface}", "index 5001", "nothing")

    def test_removal_is_idempotent_and_told(self, bench: Bench) -> None:
        path = bench.add_netns()
        record = create(bench, path)
        assert bench.datapath.present() == {record.host_ifindex}
        for _ in range(2):
            bench.datapath.remove([record])
            assert bench.datapath.present() == frozenset()
        assert bench.removed.get(timeout=WAIT_S) == record.host_ifindex
        create(bench, path)  # and all of it can be made again

    def test_what_is_cut_off_is_leaving(self, bench: Bench) -> None:
        """A restart finds it so, and finishes the removal."""
        path = bench.add_netns()
        record, other = create(bench, path), create(bench, bench.add_netns(), **OTHER)
        bench.datapath.cut_off([record])
        assert bench.datapath.present() == {record.host_ifindex, other.host_ifindex}
        again = bench.again()
        scan = again.scan()
        assert (scan.complete, scan.leaving) == ((other,), (record,))
        assert again.present() == {record.host_ifindex, other.host_ifindex}
        again.remove(scan.leaving)
        assert bench.again().scan() == Scan((other,))
        create(bench, path)

    def test_many_are_cut_off_at_once(self, bench: Bench) -> None:
        made = [
            create(bench, bench.add_netns(), workload_id=f"w{n}", number=n) for n in range(1, 8)
        ]
        bench.datapath.cut_off(made[:1])
        bench.datapath.cut_off(made[1:5])
        assert set(bench.again().scan().leaving) == set(made[:5])
        assert 1 <= bench.datapath.at_once <= 256
        bench.datapath.remove(made[:6])
        assert bench.datapath.present() == {made[6].host_ifindex}

    def test_what_is_gone_cannot_be_cut_off_and_is_no_error(self, bench: Bench) -> None:
        record, other = (
            create(bench, bench.add_netns()),
            create(bench, bench.add_netns(), **OTHER),
        )
        bench.datapath.remove([record])
        bench.datapath.cut_off([record])
        bench.datapath.cut_off([record, other])
        assert bench.again().scan().leaving == (other,)

    def test_many_are_removed_at_once(self, bench: Bench) -> None:
        made = [
            create(bench, bench.add_netns(), workload_id=f"w{n}", number=n) for n in range(1, 8)
        ]
        bench.datapath.remove(made[:1])
        bench.datapath.remove(made[:6])  # one of them is gone
        assert bench.datapath.present() == {made[6].host_ifindex}

    def test_removals_of_many_threads(self, bench: Bench) -> None:
        made = [
            create(bench, bench.add_netns(), workload_id=f"w{n}", number=n) for n in range(1, 13)
        ]
        threads = [threading.Thread(target=bench.datapath.remove, args=([one],)) for one in made]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert bench.datapath.present() == frozenset()

    def test_a_removal_does_not_hit_what_has_the_index_now(self, bench: Bench) -> None:
        path = bench.add_netns()
        old = create(bench, path)
        bench.datapath.remove([old])
        new = create(bench, path, workload_id="another", number=2, host_ifindex=5001)
        bench.datapath.remove([old])
        assert bench.datapath.present() == {new.host_ifindex}

    def test_the_death_of_a_namespace_is_told(self, bench: Bench) -> None:
        path = bench.add_netns()
        record = create(bench, path)
        bench.kill_netns(path)
        assert bench.removed.get(timeout=WAIT_S) == record.host_ifindex
        assert bench.datapath.present() == frozenset()
        bench.datapath.remove([record])

    def test_a_name_that_is_taken_inside(self, bench: Bench) -> None:
        path = bench.add_netns()
        bench.take_name(path, "eth0")
        with pytest.raises(AlreadyExists, match="if_name 'eth0'"):
            create(bench, path, peer=77)
        assert bench.datapath.present() == frozenset()

    def test_an_index_that_is_taken(self, bench: Bench) -> None:
        one, other = bench.add_netns(), bench.add_netns()
        create(bench, one)
        with pytest.raises(IndexTaken):
            create(bench, other, workload_id="w2", number=2, host_ifindex=5001)
        with pytest.raises(IndexTaken):
            create(bench, one, workload_id="w2", if_name="eth1", number=2, peer=2)
        assert bench.datapath.present() == {5001}

    def test_a_route_inside_that_is_taken(self, bench: Bench) -> None:
        path = bench.add_netns()
        first = create(bench, path)
        with pytest.raises(RouteTaken):
            create(bench, path, if_name="eth1", number=2, peer=3)
        assert bench.datapath.present() == {5001}
        with bench.datapath.open_netns(path) as netns:
            assert bench.datapath.check(first, netns) == ()

    def test_an_address_that_is_taken(self, bench: Bench) -> None:
        one, other = bench.add_netns(), bench.add_netns()
        create(bench, one)
        with pytest.raises(WorkloadError, match=r"add route.*EEXIST"):
            create(bench, other, workload_id="w2", host_ifindex=6000)
        assert bench.datapath.present() == {5001}

    def test_namespaces_keep_their_identity(self, bench: Bench) -> None:
        one, other = bench.add_netns(), bench.add_netns()
        seen = []
        for path in (one, other, one, bench.home):
            with bench.datapath.open_netns(path) as netns:
                seen.append(netns.cookie)
                assert bench.datapath.is_host_netns(netns) is (path == bench.home)
        assert seen[0] == seen[2]
        assert len(set(seen)) == 3

    def test_what_is_no_namespace(self, bench: Bench) -> None:
        with pytest.raises(NotFound), bench.datapath.open_netns("/nowhere"):
            pass
        with pytest.raises(InvalidArgument), bench.datapath.open_netns(bench.not_netns):
            pass
