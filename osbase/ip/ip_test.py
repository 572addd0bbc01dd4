# SPDX-License-Identifier: Apache-2.0
"""The constants equal the C library's; the example of RFC 4291 is computed."""

import socket
from ipaddress import ip_address, ip_interface, ip_network

from osbase import ip


def test_families() -> None:
    assert (ip.AF_UNSPEC, *ip.FAMILIES) == (socket.AF_UNSPEC, socket.AF_INET, socket.AF_INET6)
    for text, family in (("10.0.0.1", ip.AF_INET), ("fe80::1", ip.AF_INET6)):
        for parse in (ip_address, ip_interface, ip_network):
            assert ip.family_of(parse(text)) == family


def test_the_link_local_address_of_a_mac() -> None:
    assert ip.link_local(bytes.fromhex("34567890abcd")) == ip_address("fe80::3656:78ff:fe90:abcd")
    assert ip.link_local(bytes(6)) in ip.LINK_LOCAL_IPV6
