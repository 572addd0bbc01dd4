# SPDX-License-Identifier: Apache-2.0
"""What a restart makes of links, without a kernel."""

from dataclasses import replace
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metropolis.node import allocs
from metropolis.node.core.network.workloads import names, recovery
from metropolis.node.core.network.workloads.datapath import Record
from metropolis.node.core.network.workloads.model import IPAddress
from osbase.netlink.rtnl import IFF_UP, Link

MAC = allocs.FIRST_HOP_MAC


def record(number: int, workload_id: str = "", if_name: str = "eth0") -> Record:
    workload_id = workload_id or f"w{number}"
    return Record(
        workload_id=workload_id,
        if_name=if_name,
        netns_cookie=1000 + number,
        host_interface=names.host_interface(workload_id, if_name),
        host_ifindex=5000 + number,
        peer_ifindex=2,
        mac=bytes([2, 0, 0, 0, 0, number]),
        mtu=1400,
        ips=(ip_address(f"10.0.0.{number}"), ip_address(f"fd00::{number:x}")),
        request=bytes(8),
    )


def link_of(one: Record) -> Link:
    return Link(
        ifindex=one.host_ifindex,
        flags=IFF_UP,
        name=one.host_interface,
        mac=MAC,
        mtu=one.mtu,
        peer=one.peer_ifindex,
        alias=one.workload_id.encode(),
        group=allocs.LINK_GROUP_WORKLOAD,
        kind=b"veth",
        altnames=(
            names.key_altname(one.netns_cookie, one.if_name),
            names.record_altname(one.host_ifindex, one.mac, one.request, one.ips),
        ),
        peer_netns=0,
    )


def routes_of(*records: Record) -> set[tuple[IPAddress, int]]:
    return {(ip, one.host_ifindex) for one in records for ip in one.ips}


def test_a_whole_one_is_adopted_as_it_was() -> None:
    one = record(1)
    assert recovery.plan([link_of(one)], routes_of(one)) == recovery.Plan((one,), (), (), ())


WHOLE = link_of(record(1))


@pytest.mark.parametrize(
    "link",
    [
        replace(WHOLE, flags=0),
        replace(WHOLE, alias=b""),
        replace(WHOLE, group=recovery.DOOMED_GROUPS[1]),
        replace(WHOLE, peer=None),
        replace(WHOLE, altnames=()),
        replace(WHOLE, altnames=WHOLE.altnames[:1]),
        replace(WHOLE, altnames=(), alias=b"", flags=0),
    ],
)
def test_half_made_ones_are_removed(link: Link) -> None:
    assert recovery.plan([link], set()) == recovery.Plan((), (link,), (), ())


@pytest.mark.parametrize(
    "link",
    [
        replace(WHOLE, kind=b"dummy"),
        replace(WHOLE, ifindex=1),
        replace(WHOLE, altnames=(), mac=bytes(6)),
        replace(WHOLE, altnames=(), group=0),
        replace(WHOLE, altnames=(), name="wl0"),
        replace(WHOLE, altnames=tuple(name.replace("mw1", "mw2") for name in WHOLE.altnames)),
    ],
)
def test_links_that_only_look_like_ours_are_left_alone(link: Link) -> None:
    assert recovery.plan([link], set()) == recovery.Plan((), (), (), (link.name,))


def test_other_links_are_not_even_counted() -> None:
    uplink = replace(WHOLE, name="eth0", group=0, altnames=("enp0s1",), kind=b"", peer=None)
    assert recovery.plan([uplink], set()) == recovery.Plan((), (), (), ())


def test_the_one_that_has_the_routes_stays() -> None:
    one, other = record(1), replace(record(2), ips=record(1).ips)
    for having, lacking in ((one, other), (other, one)):
        assert recovery.resolve([one, other], routes_of(having)) == ((having,), (lacking,))
    half = {(one.ips[0], one.host_ifindex)}
    assert recovery.resolve([one, other], half) == ((one,), (other,))


def test_of_equals_the_one_with_its_own_name_stays() -> None:
    one, other = replace(record(1, "w"), host_interface="renamed"), record(2, "w")
    assert recovery.resolve([one, other], routes_of(one, other)) == ((other,), (one,))
    assert recovery.resolve([other, one], set()) == ((other,), (one,))


def test_one_that_overlaps_two_goes_when_it_has_less() -> None:
    one, two = record(1), record(2)
    between = replace(record(3), ips=(one.ips[0], two.ips[1]))
    routes = routes_of(one, two)
    assert recovery.resolve([between, one, two], routes) == ((one, two), (between,))


@given(
    st.lists(st.tuples(*[st.integers(1, 4)] * 4), max_size=8),
    st.sets(st.tuples(st.integers(1, 4), st.integers(0, 7))),
)
def test_no_two_that_stay_claim_the_same(
    drawn: list[tuple[int, int, int, int]], routed: set[tuple[int, int]]
) -> None:
    records = [
        replace(
            record(n, f"w{workload}"),
            netns_cookie=cookie,
            ips=(ip_address(f"10.0.0.{four}"), ip_address(f"fd00::{six}")),
        )
        for n, (workload, cookie, four, six) in enumerate(drawn)
    ]
    routes: set[tuple[IPAddress, int]] = {
        (ip_address(f"10.0.0.{ip}"), 5000 + n) for ip, n in routed
    }
    kept, removed = recovery.resolve(records, routes)
    assert {*kept, *removed} == set(records)
    assert len(kept) + len(removed) == len(records)
    assert len({ip for one in kept for ip in one.ips}) == 2 * len(kept)
    assert len({one.netns_cookie for one in kept}) == len(kept)
    # Whoever goes had a reason: one that stays has something it claims.
    for one in removed:
        assert any(
            set(one.ips) & set(other.ips)
            or one.netns_cookie == other.netns_cookie
            or one.workload_id == other.workload_id
            for other in kept
        )
