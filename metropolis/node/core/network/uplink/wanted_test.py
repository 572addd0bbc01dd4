# SPDX-License-Identifier: Apache-2.0
"""The wanted state, from configuration and lease. No kernel."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Network,
    ip_address,
    ip_interface,
)
from pathlib import Path

from metropolis.node.core.network.uplink.wanted import (
    render_resolv_conf,
    wanted_addressing,
    wanted_mtu,
    wanted_names,
    without_ipv6,
)
from metropolis.node.core.network.uplink.ward import replace_file
from metropolis.node.core.network.workload_service import pod_mtu
from osbase.net.addressing import FOREVER, Address, Route
from osbase.net.config import Dhcp4, Interface, StaticRoute
from osbase.net.dhcp4 import Lease
from osbase.net.links import LinkState

DEFAULT = IPv4Network("0.0.0.0/0")
ROUTER = IPv4Address("192.0.2.1")
LEASE = Lease(
    address=IPv4Interface("192.0.2.50/24"),
    server=ROUTER,
    routes=((DEFAULT, ROUTER),),
    dns=(ROUTER,),
    search=(),
    mtu=None,
    start=100,
    length_s=3600,
    renew_s=1800,
    rebind_s=3000,
)


def test_lease_ends_in_the_kernel() -> None:
    """The address is valid for the rest, and routes are bound to it."""
    wanted = wanted_addressing(Interface(dhcp4=Dhcp4()), LEASE, now=700)
    assert wanted.addresses == (Address(LEASE.address, 3000),)
    assert wanted.routes == (Route(DEFAULT, ROUTER, LEASE.address.ip),)


def test_infinite_lease() -> None:
    """Infinity is not a number of seconds."""
    lease = replace(LEASE, length_s=None)
    wanted = wanted_addressing(Interface(dhcp4=Dhcp4()), lease, now=700)
    assert wanted.addresses[0].valid_s == FOREVER


def test_gateway_beyond_the_prefix_gets_a_route() -> None:
    """As clouds give: a /32, and a router beside it."""
    lease = replace(LEASE, address=IPv4Interface("10.0.0.9/32"))
    wanted = wanted_addressing(Interface(dhcp4=Dhcp4()), lease, now=100)
    own = lease.address.ip
    assert set(wanted.routes) == {
        Route(DEFAULT, ROUTER, own),
        Route(IPv4Network("192.0.2.1/32"), None, own),
    }


def test_static_of_both_families() -> None:
    """In IPv4, the route's source is the address whose prefix has it."""
    config = Interface(
        addresses=(ip_interface("198.51.100.7/24"), ip_interface("2001:db8::7/64")),
        gateways=(ip_address("198.51.100.1"), ip_address("fe80::9")),
    )
    wanted = wanted_addressing(config, None, now=0)
    assert wanted.routes == (
        Route(DEFAULT, ip_address("198.51.100.1"), IPv4Address("198.51.100.7")),
        Route(IPv6Network("::/0"), ip_address("fe80::9")),
    )


def test_routes_by_hand_besides_a_lease() -> None:
    """Where both have one to a destination, the configuration's is used."""
    ten = IPv4Network("10.0.0.0/8")
    six = StaticRoute(IPv6Network("2001:db8:1::/48"), ip_address("2001:db8::9"))
    config = Interface(
        dhcp4=Dhcp4(),
        addresses=(ip_interface("2001:db8::7/64"),),
        routes=(StaticRoute(ten, None), six),
    )
    lease = replace(LEASE, routes=((DEFAULT, ROUTER), (ten, IPv4Address("192.0.2.9"))))
    assert wanted_addressing(config, lease, now=100).routes == (
        Route(ten, None),
        Route(six.destination, six.gateway),
        Route(DEFAULT, ROUTER, LEASE.address.ip),
    )


def test_source_of_a_route_by_hand() -> None:
    """That of the gateway's prefix, as for the default route."""
    ten = IPv4Network("10.0.0.0/8")
    config = Interface(
        addresses=(ip_interface("192.0.2.7/24"), ip_interface("198.51.100.7/24")),
        routes=(StaticRoute(ten, ip_address("198.51.100.1")),),
    )
    assert wanted_addressing(config, None, now=0).routes == (
        Route(ten, ip_address("198.51.100.1"), IPv4Address("198.51.100.7")),
    )


def test_names_by_hand_come_first() -> None:
    """Or alone, when those of the server are not wanted."""
    config = Interface(dhcp4=Dhcp4(), dns=(ip_address("2001:db8::53"),), search=("a.example",))
    lease = replace(LEASE, search=("b.example",))
    ours = (config.dns, config.search)
    assert wanted_names(config, lease) == ((*config.dns, ROUTER), ("a.example", "b.example"))
    assert wanted_names(config, None) == ours
    assert wanted_names(replace(config, dhcp4=Dhcp4(ignore_dns=True)), lease) == ours


def test_mtu_by_hand_or_by_lease() -> None:
    """A server does not change a configured one."""
    lease = replace(LEASE, mtu=1400)
    assert wanted_mtu(Interface(), lease) == 1400
    assert wanted_mtu(Interface(mtu=1450), lease) is None
    assert wanted_mtu(Interface(), LEASE) is None
    assert wanted_mtu(Interface(), None) is None


def test_without_ipv6() -> None:
    """IPv4's parts stay."""
    config = Interface(
        addresses=(ip_interface("192.0.2.7/24"), ip_interface("2001:db8::7/64")),
        gateways=(ip_address("2001:db8::1"), ROUTER),
        routes=(StaticRoute(IPv6Network("2001:db8:1::/48"), None),),
        dns=(ip_address("2001:db8::53"),),
    )
    left = without_ipv6(config)
    assert (left.addresses, left.gateways) == (config.addresses[:1], (ROUTER,))
    assert (left.routes, left.dns) == ((), config.dns)
    assert without_ipv6(left) == left


def test_resolv_conf(tmp_path: Path) -> None:
    """Replaced at once, readable by all."""
    target = tmp_path / "run" / "resolv.conf"
    replace_file(str(target), render_resolv_conf([ROUTER], ["example.org"]))
    replace_file(str(target), render_resolv_conf([ROUTER, ip_address("2001:db8::53")], []))
    assert target.read_text().splitlines()[1:] == [
        "nameserver 192.0.2.1",
        "nameserver 2001:db8::53",
    ]
    assert target.stat().st_mode & 0o777 == 0o644
    assert [path.name for path in target.parent.iterdir()] == ["resolv.conf"]
    assert "search a.test b.test\n" in render_resolv_conf([], ["a.test", "b.test"])


def test_pod_mtu() -> None:
    """The uplink's, within what IPv6 needs."""
    link = LinkState(2, "eth0", b"\x02abcde", 9000, True, True)
    assert pod_mtu(link) == 9000
    assert pod_mtu(replace(link, mtu=576)) == 1280
    assert pod_mtu(None) == 1500
