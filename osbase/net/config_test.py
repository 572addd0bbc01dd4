# SPDX-License-Identifier: Apache-2.0
"""Static configuration: accepted ones, and the messages about others."""

from __future__ import annotations

from ipaddress import ip_address, ip_interface, ip_network

import pytest
from google.protobuf import text_format
from hypothesis import given
from hypothesis import strategies as st

from osbase.net import config
from osbase.net.config import (
    Bond,
    BondMode,
    Dhcp4,
    Interface,
    LacpRate,
    Problems,
    StaticRoute,
    TransmitHash,
    Vlan,
)
from osbase.net.spec import net_pb2


def read(text: str) -> tuple[Interface, list[str]]:
    """Return the configuration of a text, and its problems."""
    problems = Problems()
    message = text_format.Parse(text, net_pb2.Interface())
    return config.interface(message, "uplink", problems), problems.found


def test_empty_is_the_first_device_with_router_advertisements() -> None:
    """An empty configuration is IPv6 only, on any link."""
    interface, problems = read("")
    assert problems == []
    assert interface == Interface()
    assert interface.router_advertisements


def test_dhcp_and_static_ipv6() -> None:
    """IPv4 by DHCP, IPv6 static."""
    interface, problems = read("""
        name: "eth0"
        dhcp4 { host_name: "node-1" }
        static { address: "2001:db8::2/64" gateway: "fe80::9" dns: "2001:db8::53" }
    """)
    assert problems == []
    assert interface.dhcp4 == Dhcp4("node-1")
    assert interface.addresses == (ip_interface("2001:db8::2/64"),)
    assert interface.dns == (ip_address("2001:db8::53"),)
    assert not interface.router_advertisements


def test_a_port_by_its_hardware_address() -> None:
    """The address is bytes; there is no name."""
    interface, problems = read('hardware_address: "52:54:00:aB:cd:ef"')
    assert problems == []
    assert interface.hardware_address == bytes.fromhex("525400abcdef")
    assert (interface.name, interface.top_name) == ("", "")
    assert interface.described == "a link with hardware address 52:54:00:ab:cd:ef"


def test_bond_and_vlan() -> None:
    """The example of the proto's head; the addresses are the VLAN's."""
    interface, problems = read("""
        bond {
          name: "bond0"
          mode: "802.3ad"
          member: "enp65s0f0"
          member: "enp65s0f1"
        }
        vlan { id: 120 }
        mtu: 9000
        static {
          address: "192.0.2.7/24"
          gateway: "192.0.2.1"
          dns: "192.0.2.53"
          search: "dc1.example.org"
        }
    """)
    assert problems == []
    assert interface.bond == Bond(BondMode.LACP, ("enp65s0f0", "enp65s0f1"))
    assert interface.bond.transmit_hash is TransmitHash.LAYER34
    assert interface.vlan == Vlan(120, "vlan120")
    assert (interface.lower_name, interface.top_name) == ("bond0", "vlan120")
    assert (interface.mtu, interface.search) == (9000, ("dc1.example.org",))


def test_every_field_of_a_bond() -> None:
    """Both modes are covered."""
    lacp, problems = read("""
        bond { name: "up" mode: "802.3ad" member: "a" member: "b" miimon_ms: 50
               lacp_rate: "fast" min_links: 2 transmit_hash: "layer2+3" }
    """)
    assert problems == []
    assert lacp.bond == Bond(
        BondMode.LACP, ("a", "b"), "up", 50, LacpRate.FAST, 2, "", TransmitHash.LAYER23
    )
    backup, problems = read('bond { mode: "active-backup" member: "a" member: "b" primary: "b" }')
    assert problems == []
    assert backup.bond == Bond(BondMode.ACTIVE_BACKUP, ("a", "b"), primary="b")


def test_routes_and_names_besides_dhcp() -> None:
    """The server's names are ignored."""
    interface, problems = read("""
        dhcp4 { ignore_dns: true }
        static {
          address: "2001:db8::2/64"
          search: "a.example" search: "b.example" search: "a.example"
          route { destination: "10.0.0.0/8" }
          route { destination: "2001:db8:1::/48" gateway: "fe80::9" }
        }
    """)
    assert problems == []
    assert interface.dhcp4 == Dhcp4(ignore_dns=True)
    assert interface.search == ("a.example", "b.example")
    assert interface.routes == (
        StaticRoute(ip_network("10.0.0.0/8"), None),
        StaticRoute(ip_network("2001:db8:1::/48"), ip_address("fe80::9")),
    )


@pytest.mark.parametrize(
    "text",
    [
        'bond { mode: "802.3ad" member: "a" } mtu: 1280',
        'name: "eth0" vlan { id: 4094 name: "up" } mtu: 65535',
        "vlan { id: 1 }",
        'static { address: "192.0.2.0/31" }',
        'static { address: "192.0.2.9/32" }',
        'static { address: "192.0.2.9/24" gateway: "192.0.2.1" }',
        'static { address: "2001:db8::1/128" }',
        'name: "enp0s3.100"',
        'hardware_address: "52:54:00:aB:cd:ef" vlan { id: 1 }',
    ],
)
def test_accepted(text: str) -> None:
    """These look odd and are valid."""
    assert read(text)[1] == []


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('name: "a/b"', 'uplink.name: "a/b" cannot be the name'),
        ('name: "sixteen-letters-"', "uplink.name"),
        ('name: ".."', "uplink.name"),
        ('name: "a\\nb"', 'uplink.name: "a\\nb" cannot'),
        ('dhcp4 { host_name: "a b" }', 'uplink.dhcp4.host_name: "a b"'),
        ('static { address: "192.0.2.1" }', 'address[0]: "192.0.2.1" has no prefix length'),
        ('static { address: "fd00::1%a/64" }', '"fd00::1%a/64" is not an address with a prefix'),
        ('static { address: "192.0.2.1/33" }', 'address[0]: "192.0.2.1/33" is not an address'),
        ('static { address: "moon" }', 'address[0]: "moon" is not an address'),
        ('static { address: "192.0.2.0/24" }', "is the network itself"),
        ('static { address: "192.0.2.255/24" }', "is the network itself"),
        ('static { address: "224.0.0.1/4" }', "cannot be the address of a host"),
        ('static { address: "192.0.2.1/24" address: "192.0.2.1/25" }', "address[1]"),
        ('dhcp4 {} static { address: "192.0.2.1/24" }', "IPv4 is configured by dhcp4"),
        ('static { gateway: "192.0.2.1" }', "is not inside the prefix of any address"),
        (
            'static { address: "192.0.2.1/32" gateway: "2001:db8::1" }',
            "is not inside the prefix of any address",
        ),
        (
            'static { address: "192.0.2.1/24" gateway: "192.0.2.1" }',
            'gateway[0]: "192.0.2.1" is our own address',
        ),
        (
            'static { address: "192.0.2.9/24" gateway: "192.0.2.1" gateway: "192.0.2.2" }',
            'gateway[1]: "192.0.2.2" is a second gateway of IPv4',
        ),
        ('static { dns: "one.one.one.one" }', "dns[0]"),
        ('static { dns: "0.0.0.0" }', "cannot be the address of a host"),
        ('static { search: "a b" }', 'static.search[0]: "a b" cannot be a domain'),
        ("mtu: 1279", "uplink.mtu: 1279 is not between 1280 and 65535"),
        ("mtu: 65536", "uplink.mtu: 65536"),
        ('hardware_address: "52:54:00:12:34"', 'hardware_address: "52:54:00:12:34" is not like'),
        ('hardware_address: "52-54-00-12-34-56"', "is not like"),
        ('hardware_address: "53:54:00:12:34:56"', "cannot be the address of a host"),
        ('hardware_address: "00:00:00:00:00:00"', "cannot be the address of a host"),
        (
            'name: "e0" hardware_address: "52:54:00:12:34:56"',
            'hardware_address: "52:54:00:12:34:56" contradicts name "e0"',
        ),
        (
            'hardware_address: "52:54:00:12:34:56" bond { mode: "802.3ad" member: "a" }',
            "contradicts bond",
        ),
        ("vlan {}", "uplink.vlan.id: 0 is not between 1 and 4094"),
        ("vlan { id: 4095 }", "uplink.vlan.id: 4095"),
        ('vlan { id: 1 name: "a/b" }', 'uplink.vlan.name: "a/b" cannot'),
        ('name: "e0" vlan { id: 1 name: "e0" }', 'vlan.name: "e0" is the name of a link below'),
        ('name: "e0" bond { mode: "802.3ad" member: "a" }', 'name: "e0" contradicts bond'),
        ('bond { member: "a" }', 'bond.mode: is missing; supported are "active-backup", "802.3ad"'),
        (
            'bond { mode: "balance-rr" member: "a" }',
            'bond.mode: "balance-rr" is not supported; supported are "active-backup", "802.3ad"',
        ),
        ('bond { mode: "4" member: "a" }', 'bond.mode: "4" is not supported'),
        ('bond { mode: "802.3ad" }', "bond.member: 0 members; 1 to 16 are needed"),
        ('bond { mode: "802.3ad" member: "" }', 'bond.member[0]: "" cannot be the name'),
        ('bond { mode: "802.3ad" member: "a" member: "a" }', 'member[1]: "a" is there twice'),
        ('bond { mode: "802.3ad" member: "bond0" }', 'member[0]: "bond0" is the bond itself'),
        ('bond { mode: "802.3ad" member: "a" miimon_ms: 10001 }', "miimon_ms: 10001 is over"),
        ('bond { mode: "802.3ad" member: "a" min_links: 2 }', "min_links: 2 is over the 1"),
        (
            'bond { mode: "802.3ad" member: "a" lacp_rate: "often" }',
            'lacp_rate: "often" is not supported; supported are "slow", "fast"',
        ),
        ('bond { mode: "802.3ad" member: "a" transmit_hash: "encap2+3" }', '"encap2+3" is not'),
        (
            'bond { mode: "802.3ad" member: "a" primary: "a" }',
            'primary: "a" means nothing in mode "802.3ad"',
        ),
        ('bond { mode: "active-backup" member: "a" primary: "b" }', 'primary: "b" is not a'),
        ('bond { mode: "active-backup" member: "a" min_links: 1 }', "min_links: 1 means nothing"),
        ('bond { mode: "active-backup" member: "a" lacp_rate: "fast" }', "lacp_rate: "),
        ('bond { mode: "active-backup" member: "a" transmit_hash: "layer2" }', "transmit_hash: "),
        ('static { route { destination: "10.0.0.1/8" } }', 'destination: "10.0.0.1/8" has host'),
        ('static { route { destination: "10.0.0.1" } }', 'route[0].destination: "10.0.0.1" is not'),
        ('static { route { destination: "0.0.0.0/0" } }', "use static.gateway"),
        ('static { route { destination: "fe80::/64" } }', "is link-local, loopback or multicast"),
        (
            'static { route { destination: "10.0.0.0/8" } route { destination: "10.0.0.0/8" } }',
            'route[1].destination: "10.0.0.0/8" is there twice',
        ),
        (
            'static { route { destination: "10.0.0.0/8" gateway: "192.0.2.1" } }',
            'route[0].gateway: "192.0.2.1" is not inside the prefix',
        ),
        (
            'static { route { destination: "10.0.0.0/8" gateway: "fe80::1" } }',
            'route[0].gateway: "fe80::1" is not of IPv4',
        ),
    ],
)
def test_refused(text: str, problem: str) -> None:
    """The message has field and value."""
    _, problems = read(text)
    assert any(problem in found for found in problems), problems


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ('bond { updelay_ms: 100 mode: "802.3ad" }', "updelay_ms"),
        ("vlan { protocol: 1 }", "protocol"),
        ("wifi {}", "wifi"),
        ("dhcp6 {}", "dhcp6"),
    ],
)
def test_what_is_not_implemented_is_refused_by_name(text: str, name: str) -> None:
    """The parser refuses it, since it knows all fields."""
    with pytest.raises(text_format.ParseError, match=f'has no field named "{name}"'):
        read(text)


@given(st.text(max_size=40), st.integers(0, 2**32 - 1), st.text(max_size=20))
def test_any_bond_is_survived(text: str, number: int, mode: str) -> None:
    """Every message is one line, and a wrong bond is left out."""
    problems = Problems()
    message = net_pb2.Interface(
        name=text,
        bond=net_pb2.Bond(
            name=text,
            mode=mode,
            member=[text],
            miimon_ms=number,
            lacp_rate=text,
            min_links=number,
            primary=text,
            transmit_hash=text,
        ),
        vlan=net_pb2.Vlan(id=number, name=text),
        static=net_pb2.Static(search=[text], route=[net_pb2.Route(destination=text, gateway=text)]),
        mtu=number,
    )
    found = config.interface(message, "x", problems)
    assert found.bond is None
    assert all(problem.isprintable() for problem in problems.found)


@given(st.text(max_size=40), st.lists(st.text(max_size=20), max_size=4))
def test_any_text_is_survived(name: str, texts: list[str]) -> None:
    """Every message is one line."""
    problems = Problems()
    message = net_pb2.Interface(
        name=name, static=net_pb2.Static(address=texts, gateway=texts, dns=texts)
    )
    config.interface(message, "x", problems)
    assert all(found.isprintable() for found in problems.found)
