# SPDX-License-Identifier: Apache-2.0
"""What every datapath must do with parts of attachments; see contract.

Subclass PartsContract, provide `parts_bench`, whose datapath knows the part of
toy_part, and whose kernel has that part's table.
"""

import contextlib
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Protocol

import pytest

from metropolis.node.core.network.workloads.datapath.interface import Record, Scan
from metropolis.node.core.network.workloads.errors import AlreadyExists, FailedPrecondition
from metropolis.node.core.network.workloads.model import Finding, PartText
from metropolis.node.core.network.workloads.testing.contract import (
    WAIT_S,
    Bench,
    always,
    idle,
    record_for,
)
from metropolis.node.core.network.workloads.testing.toy_part import element

BLUE_RED = (("c", "blue,red"),)
GREEN = (("c", "green"),)


class PartsBench(Bench, Protocol):
    """What the tests need besides."""

    def keys(self) -> set[str]:
        """The keys in the part's map."""

    def take_key(self, key: str) -> None:
        """Remove an element of the map behind everybody's back."""

    def add_key(self, key: str) -> None:
        """Add an element with this key, which is of no attachment."""

    def listen(self, address: str) -> AbstractContextManager[object]:
        """Listen at an address of the host and the toy part's port."""


def create(bench: Bench, path: str, parts: tuple[PartText, ...], number: int = 1) -> Record:
    """Create an attachment with parts in the namespace at the path."""
    with bench.datapath.open_netns(path) as netns:
        record = replace(record_for(netns, f"w{number}", number=number), parts=parts)
        bench.datapath.create(netns, record, metric=0)
    return record


class PartsContract:
    """The tests; `parts_bench` is a fixture of the subclass."""

    def test_parts_are_made_found_and_removed(self, parts_bench: PartsBench) -> None:
        bench = parts_bench
        both = create(bench, bench.add_netns(), BLUE_RED)
        green = create(bench, bench.add_netns(), GREEN, 2)
        none = create(bench, bench.add_netns(), (), 3)
        records = (both, green, none)
        assert bench.keys() == {"1", "2", "3"}
        for record in records:
            assert bench.datapath.check(record, None) == ()
        assert not bench.datapath.repair(records, always, idle)
        assert set(bench.again().scan().complete) == set(records)
        bench.datapath.remove([both, none])
        assert bench.keys() == {"2"}
        assert bench.again().scan() == Scan((green,))
        for _ in range(2):
            bench.datapath.remove([green, both])
            assert bench.keys() == set()

    @pytest.mark.parametrize(
        ("address", "told"),
        [("0.0.0.0", "None"), ("127.0.0.1", "127.0.0.1"), ("::", "None"), ("::1", "::1")],
    )
    def test_a_part_that_refuses(self, parts_bench: PartsBench, address: str, told: str) -> None:
        """Nothing is made; an attachment that exists stays."""
        bench = parts_bench
        before = create(bench, bench.add_netns(), GREEN, 2)
        path = bench.add_netns()
        with bench.listen(address):
            with pytest.raises(
                FailedPrecondition, match=rf"^colours: .* \(pid \d+\) listens at {told}$"
            ):
                create(bench, path, BLUE_RED)
            assert bench.datapath.present() == {before.host_ifindex}
            assert bench.keys() == {"2"}
            assert bench.datapath.check(before, None) == ()
            assert bench.again().scan() == Scan((before,))
        create(bench, path, BLUE_RED)

    def test_elements_go_when_the_link_is_cut_off(self, parts_bench: PartsBench) -> None:
        """Nothing new begins to go to a link that drops it."""
        bench = parts_bench
        both = create(bench, bench.add_netns(), BLUE_RED)
        green = create(bench, bench.add_netns(), GREEN, 2)
        bench.datapath.cut_off([both])
        assert bench.keys() == {"2"}
        bench.datapath.remove([both])
        assert bench.again().scan() == Scan((green,))
        assert bench.keys() == {"2"}

    def test_a_key_that_is_taken(self, parts_bench: PartsBench) -> None:
        """Nothing is made, and the other's stays."""
        bench = parts_bench
        bench.add_key("3")
        with pytest.raises(AlreadyExists, match="element 3 of inet toy colours: exists"):
            create(bench, bench.add_netns(), BLUE_RED)
        assert bench.datapath.present() == frozenset()
        assert bench.keys() == {"3"}
        bench.take_key("3")
        create(bench, bench.add_netns(), BLUE_RED)
        assert bench.keys() == {"1", "3"}

    def test_an_attach_that_fails_later_leaves_no_element(self, parts_bench: PartsBench) -> None:
        bench = parts_bench
        kept = create(bench, bench.add_netns(), GREEN)
        with bench.datapath.open_netns(bench.add_netns()) as netns:
            record = replace(record_for(netns, "w2", number=2), parts=BLUE_RED, ips=kept.ips)
            with pytest.raises(Exception, match="EEXIST"):
                bench.datapath.create(netns, record, metric=0)
        assert bench.keys() == {"2"}
        assert bench.datapath.present() == {kept.host_ifindex}

    def test_a_check_finds_what_is_missing(self, parts_bench: PartsBench) -> None:
        bench = parts_bench
        record = create(bench, bench.add_netns(), BLUE_RED)
        bench.take_key("3")
        for _ in range(2):
            (found,) = bench.datapath.check(record, None)
            what = str(element("3"))
            assert found == Finding(what, "10.9.0.1", "nothing")
        assert bench.keys() == {"1"}

    def test_what_others_take_away_is_put_back(self, parts_bench: PartsBench) -> None:
        bench = parts_bench
        record = create(bench, bench.add_netns(), BLUE_RED)
        bench.take_key("3")
        (left,) = bench.datapath.repair([record], lambda _: False, idle)
        assert (left.key, left.error, left.left) == ("element 3 of inet toy colours", "", True)
        assert not bench.datapath.repair([record], always, lambda _: contextlib.nullcontext(False))
        assert bench.keys() == {"1"}
        (repair,) = bench.datapath.repair([record], always, idle)
        assert (repair.key, repair.error, repair.left) == (left.key, "", False)
        assert bench.keys() == {"1", "3"}
        assert not bench.datapath.repair([record], always, idle)

    def test_a_start_puts_back_what_is_missing(self, parts_bench: PartsBench) -> None:
        bench = parts_bench
        record = create(bench, bench.add_netns(), BLUE_RED)
        for key in ("1", "3"):
            bench.take_key(key)
        scan = bench.again().scan()
        assert scan.complete == (record,)
        assert len(scan.repairs) == 2
        assert bench.keys() == {"1", "3"}
        assert bench.again().scan() == Scan((record,))

    def test_what_has_lost_its_link_is_cleaned_up(self, parts_bench: PartsBench) -> None:
        """By the engine, when it learns of it, or by a start."""
        bench = parts_bench
        kept = create(bench, bench.add_netns(), GREEN)
        for clean_up in (True, False):
            record = create(bench, path := bench.add_netns(), BLUE_RED, 2)
            bench.kill_netns(path)
            assert bench.removed.get(timeout=WAIT_S) == record.host_ifindex
            assert bench.keys() == {"1", "2", "3"}
            assert not bench.datapath.repair([record], always, idle)
            if clean_up:
                for _ in range(2):
                    bench.datapath.clean_up(record)
            else:
                scan = bench.again().scan()
                assert scan.complete == (kept,)
                keys = {"element 1 of inet toy colours", "element 3 of inet toy colours"}
                assert {repair.key for repair in scan.repairs} == keys
            assert bench.keys() == {"2"}

    def test_a_removal_of_what_others_have_taken(self, parts_bench: PartsBench) -> None:
        bench = parts_bench
        record = create(bench, bench.add_netns(), BLUE_RED)
        bench.take_key("1")
        bench.datapath.remove([record])
        assert bench.keys() == set()
        assert bench.datapath.present() == frozenset()

    def test_of_two_with_one_resource_one_stays(self, parts_bench: PartsBench) -> None:
        bench = parts_bench
        kept = create(bench, bench.add_netns(), BLUE_RED)
        with bench.datapath.open_netns(other := bench.add_netns()) as netns:
            forged = record_for(netns, "w2", number=2)
        bench.forge(other, replace(forged, parts=(("c", "green,red"),)))
        scan = bench.again().scan()
        assert scan == Scan((kept,), duplicates=(forged.host_interface,))
        assert bench.keys() == {"1", "3"}
