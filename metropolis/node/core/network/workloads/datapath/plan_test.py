# SPDX-License-Identifier: Apache-2.0
"""What a restart does with links, without a kernel."""

from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metropolis.node import allocs
from metropolis.node.core.network.workloads.datapath import names, plan
from metropolis.node.core.network.workloads.datapath.interface import Held, Record
from metropolis.node.core.network.workloads.model import IPAddress
from metropolis.node.core.network.workloads.testing import version1
from osbase.netlink.ifla import IFF_NOARP, IFF_UP
from osbase.netlink.link import Link

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
        owner="api",
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
        altnames=names.altnames_of(one),
        peer_netns=0,
    )


def routes_of(*records: Record) -> set[tuple[IPAddress, int]]:
    return {(ip, one.host_ifindex) for one in records for ip in one.ips}


def test_a_whole_one_is_adopted_as_it_was() -> None:
    one = record(1)
    assert plan.plan([link_of(one)], routes_of(one)) == plan.Plan((one,))


WHOLE = link_of(record(1))
OLD = link_of(replace(record(1), version=1, owner=""))


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"flags": 0},
        {"flags": IFF_UP | IFF_NOARP},
        {"alias": b""},
        {"alias": b"w2"},
        {"alias": b"\xff"},
        {"group": 0},
        {"group": 99},
        {"group": allocs.LINK_GROUP_OVERLAY},
        {"name": "renamed"},
        {"name": "wl0123456789abc"},
        {"mac": bytes(6)},
        {"mtu": 9000},
        {"master": 7},
        {"altnames": (*WHOLE.altnames, "enp0s1")},
        {"altnames": WHOLE.altnames[::-1]},
        {"flags": 0, "alias": b"", "group": 0, "name": "renamed", "mac": bytes(6), "master": 7},
    ],
)
def test_what_bears_its_records_is_a_running_pod(change: dict[str, Any]) -> None:
    """However others changed the link, the result is as in the record."""
    link = replace(WHOLE, **change)
    assert plan.plan([link], set()) == plan.Plan((record(1),))


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"flags": 0},
        {"group": 0},
        {"name": "renamed"},
        {"mac": bytes(6)},
        {"master": 7},
    ],
)
def test_so_is_one_of_version_1(change: dict[str, Any]) -> None:
    link = replace(OLD, **change)
    expected = replace(record(1), version=1, owner="")
    assert plan.plan([link], set()) == plan.Plan((expected,))
    # It does not know its MTU.
    other = plan.plan([replace(link, mtu=9000)], set())
    assert other == plan.Plan((replace(expected, mtu=9000),))


@pytest.mark.parametrize("alias", [b"", b"w2", b"\xff"])
def test_one_that_lost_its_id_is_held_until_it_is_named(alias: bytes) -> None:
    without_id = tuple(name for name in WHOLE.altnames if ".i11." not in name)
    for whole, version, owner in ((OLD, 1, ""), (replace(WHOLE, altnames=without_id), 3, "api")):
        link = replace(whole, alias=alias)
        one = replace(record(1), workload_id="", version=version, owner=owner)
        held = Held(link.name, link.ifindex, one.ips, record=one)
        assert plan.plan([link], set()) == plan.Plan((), held=(held,), foreign=(link.name,))


def test_an_id_that_is_only_in_the_alias_is_taken_when_the_name_says_so() -> None:
    link = replace(WHOLE, altnames=tuple(n for n in WHOLE.altnames if ".i11." not in n))
    assert plan.plan([link], set()) == plan.Plan((record(1),))


@pytest.mark.parametrize(
    "link",
    [
        replace(WHOLE, peer=None),
        replace(WHOLE, peer=0),
        replace(WHOLE, altnames=()),
        replace(WHOLE, altnames=(), alias=b"", flags=0),
        replace(WHOLE, altnames=("enp0s1",)),
    ],
)
def test_what_never_got_its_records_is_removed(link: Link) -> None:
    assert plan.plan([link], set()) == plan.Plan((), (link,))


@pytest.mark.parametrize("flags", [IFF_UP, 0])
@pytest.mark.parametrize("altnames", [(), ("enp0s1",)])
def test_what_others_took_the_records_of_is_a_running_pod(
    flags: int, altnames: tuple[str, ...]
) -> None:
    """It has routes, which come last. Its address is not handed out."""
    link = replace(WHOLE, altnames=altnames, flags=flags)
    ip = record(1).ips[0]
    held = Held(link.name, link.ifindex, (ip,))
    planned = plan.plan([link], {(ip, link.ifindex)})
    assert planned == plan.Plan((), held=(held,), foreign=(link.name,))


@pytest.mark.parametrize(
    "link",
    [
        replace(WHOLE, altnames=(), mac=bytes(6)),
        replace(WHOLE, altnames=(), group=0),
        replace(WHOLE, altnames=(), name="wl0"),
        replace(WHOLE, altnames=WHOLE.altnames[:1]),
        replace(OLD, altnames=OLD.altnames[:1]),
    ],
)
def test_links_that_only_look_like_ours_are_left_alone(link: Link) -> None:
    assert plan.plan([link], set()) == plan.Plan((), foreign=(link.name,))
    # If they have a route of ours, the address is not handed out.
    routes = {(record(9).ips[0], link.ifindex), (record(8).ips[0], 1)}
    held = Held(link.name, link.ifindex, (record(9).ips[0],))
    assert plan.plan([link], routes) == plan.Plan((), held=(held,), foreign=(link.name,))


@pytest.mark.parametrize(
    "link",
    [
        replace(WHOLE, kind=b"dummy"),
        replace(WHOLE, ifindex=1),
        replace(WHOLE, altnames=WHOLE.altnames[1:]),
        replace(WHOLE, altnames=OLD.altnames[:1] + WHOLE.altnames[-1:]),
    ],
)
def test_addresses_of_records_that_are_not_ours_are_held(link: Link) -> None:
    held = Held(link.name, link.ifindex, record(1).ips)
    assert plan.plan([link], set()) == plan.Plan((), held=(held,), foreign=(link.name,))


@pytest.mark.parametrize(
    "altnames",
    [
        tuple(name.replace("mw3", "mw4") for name in WHOLE.altnames),
        (*WHOLE.altnames, "mw2p.1389.h11.tcp80"),
        (*OLD.altnames, "mw3r.1389"),
    ],
)
@pytest.mark.parametrize("change", [{}, {"flags": 0}, {"group": allocs.LINK_GROUP_REMOVAL}])
def test_what_a_newer_version_made_is_left_alone(
    altnames: tuple[str, ...], change: dict[str, Any]
) -> None:
    link = replace(WHOLE, altnames=altnames, **change)
    ips = record(1).ips
    routed = record(2).ips[0]
    held = Held(link.name, link.ifindex, (*ips, routed), newer=True)
    planned = plan.plan([link], {(routed, link.ifindex), (ips[0], link.ifindex)})
    assert planned == plan.Plan((), held=(held,), foreign=(link.name,))


def test_version_1_leaves_version_2_alone() -> None:
    assert version1.is_ours(OLD)
    for change in ({}, {"flags": 0}, {"alias": b""}, {"group": allocs.LINK_GROUP_REMOVAL}):
        link = replace(WHOLE, **change)
        assert not version1.is_ours(link)
        assert not version1.is_ours(replace(link, altnames=WHOLE.altnames[-1:]))
        assert not version1.is_ours(replace(link, altnames=WHOLE.altnames[:1]))


@pytest.mark.parametrize("whole", [WHOLE, OLD])
@pytest.mark.parametrize("state", ["in the group", "cut off", "both", "down"])
def test_what_is_leaving_leaves(whole: Link, state: str) -> None:
    """It never stays, nor does it take an address of one that stays."""
    cut_off = set() if state == "in the group" else {whole.ifindex}
    if state != "cut off":
        whole = replace(whole, group=allocs.LINK_GROUP_REMOVAL)
    if state == "down":
        whole = replace(whole, flags=0)
    (leaving,) = plan.plan([whole], set(), cut_off=cut_off).leaving
    assert leaving == plan.record_of(whole)
    assert plan.plan([whole], set(), cut_off=cut_off) == plan.Plan((), leaving=(leaving,))
    routes = {(ip, whole.ifindex) for ip in leaving.ips}
    other = replace(leaving, workload_id="another", host_ifindex=9999)
    name = names.host_interface(other.workload_id, other.if_name)
    rival = replace(
        whole, name=name, ifindex=9999, group=8, altnames=names.altnames_of(other), alias=b"another"
    )
    found = plan.plan([whole, rival], routes, cut_off=cut_off)
    assert [one.workload_id for one in found.complete] == ["another"]
    assert found.duplicates == (leaving,)


@pytest.mark.parametrize("group", [allocs.LINK_GROUP_WORKLOAD, allocs.LINK_GROUP_REMOVAL])
def test_what_is_leaving_without_records_is_removed(group: int) -> None:
    link = replace(WHOLE, altnames=(), group=group)
    found = plan.plan([link], {(record(1).ips[0], link.ifindex)}, cut_off={link.ifindex})
    assert found == plan.Plan((), (link,))


def test_what_is_cut_off_is_removed_though_nothing_else_is_known_of_it() -> None:
    """Only this service cuts off; its address is about to be another's."""
    link = replace(WHOLE, name="other", altnames=(), alias=b"", group=7)
    routed = {(record(1).ips[0], link.ifindex)}
    assert plan.plan([link], routed, cut_off={link.ifindex}) == plan.Plan((), (link,))
    assert plan.plan([link], routed) == plan.Plan(())
    newer = replace(link, altnames=("mw9r.1389",))
    assert plan.plan([newer], set(), cut_off={link.ifindex}).half_made == ()


def test_other_links_are_not_even_counted() -> None:
    uplink = replace(WHOLE, name="eth0", group=0, altnames=("enp0s1",), kind=b"", peer=None)
    assert plan.plan([uplink], set()) == plan.Plan(())


def test_the_one_that_has_the_routes_stays() -> None:
    one, other = record(1), replace(record(2), ips=record(1).ips)
    for having, lacking in ((one, other), (other, one)):
        assert plan.resolve([one, other], routes_of(having)) == ((having,), (lacking,))
    half = {(one.ips[0], one.host_ifindex)}
    assert plan.resolve([one, other], half) == ((one,), (other,))


def test_of_equals_the_one_with_its_own_name_stays() -> None:
    one, other = replace(record(1, "w"), host_interface="renamed"), record(2, "w")
    assert plan.resolve([one, other], routes_of(one, other)) == ((other,), (one,))
    assert plan.resolve([other, one], set()) == ((other,), (one,))


def test_one_that_overlaps_two_goes_when_it_has_less() -> None:
    one, two = record(1), record(2)
    between = replace(record(3), ips=(one.ips[0], two.ips[1]))
    routes = routes_of(one, two)
    assert plan.resolve([between, one, two], routes) == ((one, two), (between,))


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
    kept, removed = plan.resolve(records, routes)
    assert {*kept, *removed} == set(records)
    assert len(kept) + len(removed) == len(records)
    assert len({ip for one in kept for ip in one.ips}) == 2 * len(kept)
    assert len({one.netns_cookie for one in kept}) == len(kept)
    # A link goes only if one that stays has something it claims.
    for one in removed:
        assert any(
            set(one.ips) & set(other.ips)
            or one.netns_cookie == other.netns_cookie
            or one.workload_id == other.workload_id
            for other in kept
        )
