# SPDX-License-Identifier: Apache-2.0
"""Plans for the present links. No kernel."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest

from osbase.net import stack
from osbase.net.config import Bond, BondMode, Interface, LacpRate, Vlan
from osbase.net.stack import StackError
from osbase.netlink import attrs
from osbase.netlink.ifla import IFF_UP
from osbase.netlink.link import Link

MARK = 10


def link(ifindex: int, name: str, kind: bytes = b"", **changes: object) -> Link:
    """Return a link that is down; hardware unless it has a kind."""
    plain = Link(
        ifindex=ifindex,
        flags=0,
        name=name,
        mac=bytes([2, 0, 0, 0, 0, ifindex]),
        mtu=1500,
        peer=None,
        alias=b"",
        group=0,
        kind=kind,
        altnames=(),
    )
    return replace(plain, **changes)  # type: ignore[arg-type]


def bond_data(mode: int = 4, rate: int = 0, primary: int = 0, miimon: int = 100) -> bytes:
    """Return the kernel's data of a bond with the default configuration."""
    return b"".join(
        [
            attrs.attr(1, bytes([mode])),
            attrs.u32(3, miimon),
            attrs.attr(14, b"\1"),
            attrs.attr(16, b"\3"),
            attrs.u32(18, 1),
            attrs.attr(21, bytes([rate])),
            *([attrs.u32(11, primary)] if primary else []),
        ]
    )


def vlan_data(number: int) -> bytes:
    """Return the kernel's data of a VLAN."""
    return attrs.attr(1, number.to_bytes(2, sys.byteorder))


LACP = Bond(BondMode.LACP, ("a", "b"))
BACKUP = Bond(BondMode.ACTIVE_BACKUP, ("a", "b"), primary="b")
A, B = link(1, "a"), link(2, "b")
BOND0 = link(5, "bond0", b"bond", group=MARK, data=bond_data(), flags=IFF_UP)
MEMBERS = (replace(A, master=5, flags=IFF_UP), replace(B, master=5, flags=IFF_UP))
VLAN7 = link(6, "vlan7", b"vlan", group=MARK, peer=5, data=vlan_data(7))
ON_BOND = Interface(bond=LACP, vlan=Vlan(7, "vlan7"))


def said(config: Interface, *links: Link) -> list[str]:
    """The requests in words."""
    return [request.what for request in stack.plan(config, links, MARK).requests]


def test_a_plain_link_is_left_alone() -> None:
    """It is found by name, or as the first."""
    for name in ("", "a"):
        plan = stack.plan(Interface(name=name), [B, A], MARK)
        assert (plan.requests, plan.top, plan.missing) == ((), A, ())
    assert stack.plan(Interface(name="z"), [A], MARK).missing == ("z",)
    assert stack.plan(Interface(), [], MARK).missing == ("an Ethernet device",)


def test_steps_to_a_vlan_on_a_bond() -> None:
    """Each step follows when the one before is done, until all are."""
    down = replace(BOND0, flags=0)
    assert said(ON_BOND, A, B) == ["create bond bond0"]
    assert said(ON_BOND, A, B, down) == [
        "set MAC of bond0",
        "set a down",
        "add a to bond0",
        "set b down",
        "add b to bond0",
    ]
    assert said(ON_BOND, *MEMBERS, down) == [
        "set bond0 up",
        "create VLAN vlan7, id 7, on bond0",
    ]
    plan = stack.plan(ON_BOND, [*MEMBERS, BOND0, VLAN7], MARK)
    assert (plan.requests, plan.top, plan.missing) == ((), VLAN7, ())


def test_a_bond_is_used_with_the_members_that_there_are() -> None:
    """It is not used before it has one."""
    plan = stack.plan(Interface(bond=LACP), [BOND0], MARK)
    assert (plan.requests, plan.top, plan.missing) == ((), None, ("a", "b"))
    plan = stack.plan(Interface(bond=LACP), [MEMBERS[0], BOND0], MARK)
    assert (plan.requests, plan.top, plan.missing) == ((), BOND0, ("b",))
    assert said(Interface(bond=LACP), MEMBERS[0], B, BOND0) == ["set b down", "add b to bond0"]


def test_a_bond_has_the_mac_of_its_first_member() -> None:
    """The order is the configuration's, not the kernel's. The hardware's MAC
    counts, since a member has the bond's. A bond with members keeps its MAC.
    """
    config = Interface(bond=replace(LACP, members=("b", "a")))
    hardware = b"\x02hardw"
    plan = stack.plan(config, [A, replace(B, permanent_mac=hardware), BOND0], MARK)
    assert plan.requests[0].what == "set MAC of bond0"
    assert hardware in plan.requests[0].body
    assert not any("MAC" in one for one in said(config, *MEMBERS, BOND0))
    assert not any("MAC" in one for one in said(config, A, MEMBERS[1], BOND0))
    same = replace(BOND0, mac=B.mac)
    assert not any("MAC" in one for one in said(config, A, B, same))


def test_a_bond_waits_for_its_first_member() -> None:
    """Once it has one, or its patience is over, it takes all members."""
    config = Interface(bond=LACP)
    held = stack.plan(config, [B, BOND0], MARK, patient=True)
    assert (held.requests, held.top, held.held, held.missing) == ((), None, True, ("a",))
    taken = ["set MAC of bond0", "set b down", "add b to bond0"]
    late = stack.plan(config, [B, BOND0], MARK)
    assert [request.what for request in late.requests] == taken
    for links in ([A, BOND0], [A, B, BOND0], [MEMBERS[1], BOND0], [BOND0]):
        assert not stack.plan(config, links, MARK, patient=True).held


def test_members_that_are_down_or_too_many_or_of_others() -> None:
    """Set up, released, waited for."""
    bridge = link(9, "br0", b"bridge")
    links = [replace(MEMBERS[0], flags=0), replace(B, master=9), bridge, BOND0]
    links.append(link(3, "c", master=5))
    plan = stack.plan(Interface(bond=LACP), links, MARK)
    assert [request.what for request in plan.requests] == ["release c", "set a up"]
    assert plan.missing == ("b (which belongs to br0)",)


def test_former_links_are_removed() -> None:
    """Ours only, and the VLAN before what it is on."""
    foreign = link(7, "bond9", b"bond")
    links = [*MEMBERS, BOND0, VLAN7, foreign]
    assert said(Interface(name="a"), *links) == ["delete link vlan7", "delete link bond0"]
    other = Interface(bond=replace(LACP, name="bond1"))
    assert said(other, *links) == ["delete link vlan7", "delete link bond0"]
    assert said(Interface(bond=LACP), *links) == ["delete link vlan7"]


@pytest.mark.parametrize(
    ("vlan", "links"),
    [
        (Vlan(7, "vlan7"), [*MEMBERS, BOND0, replace(VLAN7, peer=1)]),
        (Vlan(8, "vlan7"), [*MEMBERS, BOND0, VLAN7]),
        (Vlan(7, "vlan7"), [*MEMBERS, VLAN7]),
    ],
)
def test_a_vlan_of_another_id_or_link_is_replaced(vlan: Vlan, links: list[Link]) -> None:
    """Neither can be changed."""
    assert said(Interface(bond=LACP, vlan=vlan), *links) == ["delete link vlan7"]


def test_the_bond_that_the_module_made_is_taken() -> None:
    """In another mode it is replaced, in the right one it is marked."""
    made = link(5, "bond0", b"bond", data=bond_data(mode=0))
    assert said(Interface(bond=LACP), A, made) == ["delete link bond0"]
    made = replace(made, data=bond_data())
    assert said(Interface(bond=replace(LACP, members=("a",))), A, made) == [
        "set group of bond0",
        "set MAC of bond0",
        "set a down",
        "add a to bond0",
    ]


def test_options_are_changed_as_the_kernel_takes_them() -> None:
    """The LACP rate while the bond is down, the rest as it is."""
    config = Interface(bond=replace(LACP, lacp_rate=LacpRate.FAST))
    assert said(config, *MEMBERS, BOND0) == [
        "set bond0 down",
        "change options of bond bond0",
        "set bond0 up",
    ]
    config = Interface(bond=replace(LACP, miimon_ms=50))
    assert said(config, *MEMBERS, BOND0) == ["change options of bond bond0"]
    config = Interface(bond=replace(LACP, min_links=2))
    assert said(config, *MEMBERS, BOND0) == ["change options of bond bond0"]


def test_primary_once_it_is_a_member() -> None:
    """It is set, left alone, and removed."""
    bond = replace(BOND0, data=bond_data(mode=1))
    config = Interface(bond=BACKUP)
    assert said(config, MEMBERS[0], bond) == []
    assert said(config, *MEMBERS, bond) == ["set primary of bond bond0 to b"]
    bond = replace(bond, data=bond_data(mode=1, primary=2))
    assert said(config, *MEMBERS, bond) == []
    config = Interface(bond=replace(BACKUP, primary=""))
    assert said(config, *MEMBERS, bond) == ["set primary of bond bond0 to none"]


def test_mtu_below_before_above() -> None:
    """A VLAN is never larger than its lower link; members follow the bond."""
    config = replace(ON_BOND, mtu=9000)
    assert said(config, *MEMBERS, BOND0, VLAN7) == [
        "set MTU of bond0 to 9000",
        "set MTU of vlan7 to 9000",
    ]
    assert said(Interface(name="a", mtu=1400), A) == ["set MTU of a to 1400"]
    assert said(Interface(name="a"), replace(A, mtu=9000)) == []


@pytest.mark.parametrize(
    ("config", "found", "message"),
    [
        (Interface(bond=LACP), link(5, "bond0", b"bridge"), "bond0 is to be a bond, .* is bridge"),
        (Interface(bond=LACP), link(5, "bond0"), "bond0 is to be a bond, but .* is hardware"),
        (ON_BOND, link(6, "vlan7", b"veth"), "vlan7 is to be a vlan, but is there, and is veth"),
    ],
)
def test_a_name_that_is_taken(config: Interface, found: Link, message: str) -> None:
    """Another owner's link has it, so we do not remove that."""
    with pytest.raises(StackError, match=message):
        stack.plan(config, [A, found], MARK)
