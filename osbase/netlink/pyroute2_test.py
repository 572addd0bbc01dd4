# SPDX-License-Identifier: Apache-2.0
"""pyroute2's message classes decode the builders' messages. No kernel.

The test prints the time of both, for the figures in the package's docstring.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from ipaddress import ip_address, ip_interface, ip_network
from typing import Any

from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg

from osbase.netlink import attrs
from osbase.netlink.address import Address, parse_address, replace_address
from osbase.netlink.ifla import IFLA_BOND_MIIMON, IFLA_BOND_MODE, IFLA_VLAN_ID
from osbase.netlink.link import new_link, parse_link, set_link_data, set_link_master
from osbase.netlink.message import Message, Request, decode, encode
from osbase.netlink.route import Route, parse_route, replace_route


def read(kind: type[Any], request: Request) -> Any:
    """Decode a request as pyroute2 decodes messages of the kernel."""
    found = kind(encode([request], 1))
    found.decode()
    return found


def message(request: Request) -> Message:
    """Return the request as if the kernel had sent it."""
    return next(decode(encode([request], 1)))


def test_a_bond_and_a_vlan() -> None:
    data = attrs.attr(IFLA_BOND_MODE, b"\4") + attrs.u32(IFLA_BOND_MIIMON, 100)
    found = read(ifinfmsg, new_link("bond0", "bond", mtu=9000, group=10, data=data))
    assert (found.get_attr("IFLA_IFNAME"), found.get_attr("IFLA_MTU")) == ("bond0", 9000)
    assert found.get_attr("IFLA_GROUP") == 10
    assert found.get_nested("IFLA_LINKINFO", "IFLA_INFO_KIND") == "bond"
    bond = found.get_nested("IFLA_LINKINFO", "IFLA_INFO_DATA")
    assert (bond.get_attr("IFLA_BOND_MODE"), bond.get_attr("IFLA_BOND_MIIMON")) == (4, 100)
    data = attrs.attr(IFLA_VLAN_ID, (7).to_bytes(2, "little"))
    found = read(ifinfmsg, new_link("v7", "vlan", mtu=None, group=10, lower=5, data=data))
    assert (found.get_attr("IFLA_LINK"), found.get_attr("IFLA_MTU")) == (5, None)
    assert found.get_nested("IFLA_LINKINFO", "IFLA_INFO_DATA").get_attr("IFLA_VLAN_ID") == 7


def test_changes_of_links() -> None:
    found = read(ifinfmsg, set_link_master(3, "a", 5))
    assert (found["index"], found["change"], found.get_attr("IFLA_MASTER")) == (3, 0, 5)
    data = attrs.u32(IFLA_BOND_MIIMON, 50)
    found = read(ifinfmsg, set_link_data(3, "bond0", "bond", data))
    assert found["index"] == 3
    assert found.get_nested("IFLA_LINKINFO", "IFLA_INFO_DATA").get_attr("IFLA_BOND_MIIMON") == 50


def test_addresses() -> None:
    """With and without an end; our own parser reads them, too."""
    for text, family, no_dad in (("192.0.2.7/24", 2, 0), ("2001:db8::7/64", 10, 2)):
        interface = ip_interface(text)
        request = replace_address(3, "up0", interface, protocol=77, valid_s=600)
        found = read(ifaddrmsg, request)
        assert (found["family"], found["index"], found["flags"]) == (family, 3, no_dad)
        assert found["prefixlen"] == interface.network.prefixlen
        assert found.get_attr("IFA_LOCAL") == found.get_attr("IFA_ADDRESS") == str(interface.ip)
        assert found.get_attr("IFA_PROTO") == 77
        assert found.get_attr("IFA_CACHEINFO")["ifa_valid"] == 600
        length = interface.network.prefixlen
        ours = Address(3, interface.ip, length, no_dad, protocol=77, valid_s=600)
        assert parse_address(message(request)) == ours


def test_routes() -> None:
    """Our own parser reads them, too."""
    for destination, gateway, source in (
        ("0.0.0.0/0", "192.0.2.1", "192.0.2.7"),
        ("198.51.100.0/24", None, None),
        ("2001:db8:1::/48", "fe80::1", None),
    ):
        route = Route(
            ip_network(destination),
            3,
            77,
            gateway=None if gateway is None else ip_address(gateway),
            source=None if source is None else ip_address(source),
            metric=100,
        )
        request = replace_route(route, "up0")
        found = read(rtmsg, request)
        length = route.destination.prefixlen
        assert (found["dst_len"], found["proto"], found["table"]) == (length, 77, 254)
        expected = str(route.destination.network_address) if length else None
        assert found.get_attr("RTA_DST") == expected
        assert found.get_attr("RTA_GATEWAY") == gateway
        assert found.get_attr("RTA_PREFSRC") == source
        assert (found.get_attr("RTA_OIF"), found.get_attr("RTA_PRIORITY")) == (3, 100)
        assert parse_route(message(request)) == route


def test_what_both_take() -> None:
    """Print only: there is no assertion about time."""

    def microseconds(step: Callable[[], object], times: int = 200) -> float:
        begun = time.process_time()
        for _ in range(times):
            step()
        return (time.process_time() - begun) / times * 1e6

    link = new_link("bond0", "bond", mtu=9000, group=10, data=attrs.attr(IFLA_BOND_MODE, b"\4"))
    address = replace_address(3, "up0", ip_interface("192.0.2.7/24"), protocol=77)
    route = replace_route(Route(ip_network("198.51.100.0/24"), 3, 77, metric=9), "up0")
    for name, request, parse, kind in (
        ("link", link, parse_link, ifinfmsg),
        ("address", address, parse_address, ifaddrmsg),
        ("route", route, parse_route, rtmsg),
    ):
        one = message(request)
        ours = microseconds(lambda one=one, parse=parse: parse(one))  # type: ignore[misc]
        theirs = microseconds(
            lambda request=request, kind=kind: read(kind, request)  # type: ignore[misc]
        )
        print(f"parse a {name}: {ours:.0f} us here, {theirs:.0f} us by pyroute2")
