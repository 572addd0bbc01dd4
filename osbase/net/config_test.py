# SPDX-License-Identifier: Apache-2.0
"""Static configuration: what is accepted, and what is said of the rest."""

from __future__ import annotations

from ipaddress import ip_address, ip_interface

import pytest
from google.protobuf import text_format
from hypothesis import given
from hypothesis import strategies as st

from osbase.net import config
from osbase.net.config import Dhcp4, Interface, Problems
from osbase.net.spec import net_pb2


def read(text: str) -> tuple[Interface, list[str]]:
    """The configuration of a text, and its problems."""
    problems = Problems()
    message = text_format.Parse(text, net_pb2.Interface())
    return config.interface(message, "uplink", problems), problems.found


def test_empty_is_the_first_device_with_router_advertisements() -> None:
    """Nothing said is IPv6 only, of whatever link there is."""
    interface, problems = read("")
    assert problems == []
    assert interface == Interface()
    assert interface.router_advertisements


def test_dhcp_and_static_ipv6() -> None:
    """Both families, each its own way."""
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


@pytest.mark.parametrize(
    "text",
    [
        'static { address: "192.0.2.0/31" }',
        'static { address: "192.0.2.9/32" }',
        'static { address: "192.0.2.9/24" gateway: "192.0.2.1" }',
        'static { address: "2001:db8::1/128" }',
        'name: "enp0s3.100"',
    ],
)
def test_accepted(text: str) -> None:
    """What looks odd and is right."""
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
        ('static { address: "192.0.2.1/33" }', 'address[0]: "192.0.2.1/33" is not an address'),
        ('static { address: "moon" }', 'address[0]: "moon" is not an address'),
        ('static { address: "192.0.2.0/24" }', "is the network itself"),
        ('static { address: "192.0.2.255/24" }', "is the network itself"),
        ('static { address: "224.0.0.1/4" }', "cannot be the address of a host"),
        ('static { address: "192.0.2.1/24" address: "192.0.2.1/25" }', "address[1]"),
        ('dhcp4 {} static { address: "192.0.2.1/24" }', "IPv4 is configured by dhcp4"),
        ('static { gateway: "192.0.2.1" }', "is not inside the prefix of any address"),
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
    ],
)
def test_refused(text: str, problem: str) -> None:
    """Field and value are named."""
    _, problems = read(text)
    assert any(problem in found for found in problems), problems


@given(st.text(max_size=40), st.lists(st.text(max_size=20), max_size=4))
def test_any_text_is_survived(name: str, texts: list[str]) -> None:
    """And every message is one line."""
    problems = Problems()
    message = net_pb2.Interface(
        name=name, static=net_pb2.Static(address=texts, gateway=texts, dns=texts)
    )
    config.interface(message, "x", problems)
    assert all(found.isprintable() for found in problems.found)
