# SPDX-License-Identifier: Apache-2.0
"""The encoded messages equal the described ones, for any attachment."""

from ipaddress import IPv4Address, IPv6Address

from hypothesis import given
from hypothesis import strategies as st

from metropolis.node.core.network.workloads.datapath import messages
from metropolis.node.core.network.workloads.datapath.interface import Record
from osbase.netlink.template import encoded

IPV4 = st.integers(0, 2**32 - 1).map(IPv4Address)
IPV6 = st.integers(0, 2**128 - 1).map(IPv6Address)
INDEX = st.integers(2**20, 2**30)
# The values that the API accepts.
ID = st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1, max_size=255)
NAME = st.text(st.characters(codec="ascii"), min_size=1, max_size=15)

RECORDS = st.builds(
    Record,
    workload_id=ID,
    if_name=NAME,
    netns_cookie=st.integers(0, 2**64 - 1),
    host_interface=st.from_regex(r"wl[0-9a-f]{13}", fullmatch=True),
    host_ifindex=INDEX,
    peer_ifindex=st.integers(2, 2**30),
    mac=st.binary(min_size=6, max_size=6),
    mtu=st.integers(1280, 65535),
    ips=st.one_of(st.tuples(IPV4), st.tuples(IPV6), st.tuples(IPV4, IPV6)),
    request=st.binary(min_size=8, max_size=8),
    owner=st.sampled_from(["", "api", "cni podman", "cni " + "n" * 250]),
    version=st.sampled_from([1, 2, 3]),
)


@given(record=RECORDS, netns_fd=st.integers(0, 2**31 - 1))
def test_a_pair(record: Record, netns_fd: int) -> None:
    assert messages.encode_pair(record, netns_fd) == encoded(messages.pair(record, netns_fd))


@given(record=RECORDS, metric=st.sampled_from([0, 2050]), loopback=st.booleans())
def test_the_inside(record: Record, metric: int, loopback: bool) -> None:
    expected = encoded(messages.inside(record, metric, loopback=loopback))
    assert messages.encode_inside(record, metric, loopback=loopback) == expected


@given(record=RECORDS, ipv6=st.booleans())
def test_a_commit(record: Record, ipv6: bool) -> None:
    assert messages.encode_commit(record, ipv6=ipv6) == encoded(messages.commit(record, ipv6=ipv6))
