# SPDX-License-Identifier: Apache-2.0
"""The IPv6 first hop on the host's link: its routes, and who gets an answer.

Runs in a network namespace of its own, as its root.
"""

import contextlib
import socket
import struct
import time
from typing import Any

import pytest
from pyroute2 import IPRoute

from metropolis.node import allocs
from metropolis.node.core.network.workloads.datapath import messages
from metropolis.node.core.network.workloads.datapath.interface import Record
from metropolis.node.core.network.workloads.testing.contract import always, create, idle
from metropolis.node.core.network.workloads.testing.kernel_bench import KernelBench
from metropolis.node.core.network.workloads.testing.lab import WAIT_S, Pod, settled, udp_round_trip
from osbase.ip import link_local
from osbase.netlink.ifla import IFF_LOWER_UP, IFF_UP
from osbase.netlink.message import Request
from osbase.netlink.template import Encoded, encoded

HOP = allocs.FIRST_HOP_IPV6
SOLICITED = "ff02::1:ff00:1"
_IPV6_MULTICAST_HOPS, _IPV6_UNICAST_HOPS = 18, 16
_SOLICIT, _ADVERT = 135, 136


def routes(index: int) -> list[tuple[int, str]]:
    """Return table and destination of each IPv6 route through the link."""
    with IPRoute() as witness:
        found = witness.get_routes(family=socket.AF_INET6)
    return sorted(
        (one.get("table"), f"{one.get('dst')}/{one['dst_len']}")
        for one in found
        if one.get("oif") == index
    )


def operational(index: int) -> Any:
    """Return the link once the kernel has looked at its carrier."""
    deadline = time.monotonic() + WAIT_S
    with IPRoute() as witness:
        while time.monotonic() < deadline:
            (link,) = witness.get_links(index)
            if link.get("operstate") == "UP":
                return link
    raise AssertionError(f"link {index} is {link.get('operstate')}")


def test_a_link_has_no_route_more_than_it_needs(bench: KernelBench) -> None:
    """The kernel walks all of them for each link that comes up or goes. That of
    multicast is the kernel's own: it adds no second one.
    """
    record = create(bench, bench.add_netns())
    assert (255, "ff00::/8") in routes(record.host_ifindex)
    settled(str(HOP))
    operational(record.host_ifindex)
    assert routes(record.host_ifindex) == [
        (254, "fd00:9::1/128"),
        (254, f"{link_local(record.mac)}/128"),
        (255, f"{HOP}/128"),
        (255, "ff00::/8"),
    ]


def test_the_kernel_may_be_first(bench: KernelBench, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the route of multicast: a second request for it is refused."""
    once = messages.commit

    def commit(record: Record, **named: Any) -> list[Request]:
        return [*once(record, **named), messages.multicast_route(record)]

    def encode_commit(record: Record, **named: Any) -> Encoded:
        return encoded(commit(record, **named))

    monkeypatch.setattr(messages, "commit", commit)
    monkeypatch.setattr(messages, "encode_commit", encode_commit)
    record = create(bench, bench.add_netns())
    assert routes(record.host_ifindex)[-1] == (255, "ff00::/8")


def test_the_link_is_operational(bench: KernelBench) -> None:
    """It is dormant only until the kernel has looked at the carrier."""
    record = create(bench, bench.add_netns())
    link = operational(record.host_ifindex)
    assert link["flags"] & (IFF_UP | IFF_LOWER_UP) == IFF_UP | IFF_LOWER_UP


@pytest.mark.parametrize("to", [SOLICITED, str(HOP)])
def test_who_solicits_the_first_hop_is_answered(bench: KernelBench, to: str) -> None:
    """As by network stacks of their own, such as gVisor's, and as often as they
    ask: the host has the address a moment after the attach.
    """
    path = bench.add_netns()
    record = create(bench, path)
    found = solicit(bench.pods[path], record, to)
    # Asked at its own address, the MAC is known (RFC 4861, 7.2.4).
    assert found == (allocs.FIRST_HOP_MAC if to == SOLICITED else b"")


def test_what_older_versions_made_is_left_as_it_is(bench: KernelBench) -> None:
    """They let the kernel add a route to the address's prefix."""
    path = bench.add_netns()
    record = create(bench, path)
    index = record.host_ifindex
    with IPRoute() as other:
        other.addr("del", index=index, address=str(HOP), prefixlen=128)
        other.addr("add", index=index, address=str(HOP), prefixlen=128, flags=0x02)  # no DAD
    before = settled(str(HOP))
    assert any("'table': '254'" in one and f"'RTA_DST': '{HOP}'" in one for one in before)
    assert not bench.datapath.repair([record], always, idle)
    with bench.datapath.open_netns(path) as netns:
        assert bench.datapath.check(record, netns) == ()
    scan = bench.again().scan()
    assert (scan.complete, scan.repairs) == ((record,), ())
    assert settled(str(HOP)) == before
    pod, six = bench.pods[path], str(record.ips[1])
    with (
        pod.socket(socket.AF_INET6, socket.SOCK_DGRAM) as server,
        socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as client,
    ):
        client.settimeout(WAIT_S)
        assert udp_round_trip(server, client, six) == (str(HOP), six)


def solicit(pod: Pod, record: Record, to: str) -> bytes:
    """Send neighbour solicitations from the pod's address, one a second; return
    the MAC in the answer (RFC 4861, 4.3, 4.4 and 10). Raises TimeoutError.
    """
    kind = socket.SOCK_RAW, socket.IPPROTO_ICMPV6
    with pod.inside(lambda: socket.socket(socket.AF_INET6, *kind)) as raw:
        raw.bind((str(record.ips[1]), 0, 0, record.peer_ifindex))
        for option in (_IPV6_MULTICAST_HOPS, _IPV6_UNICAST_HOPS):
            raw.setsockopt(socket.IPPROTO_IPV6, option, 255)
        raw.settimeout(1.0)
        source = struct.pack("!BB", 1, 1) + record.mac
        packet = struct.pack("!BBHI", _SOLICIT, 0, 0, 0) + HOP.packed + source
        deadline = time.monotonic() + WAIT_S
        while time.monotonic() < deadline:
            raw.sendto(packet, (to, 0, 0, record.peer_ifindex))
            with contextlib.suppress(TimeoutError):
                return _advertised(raw)
    raise TimeoutError(f"{to} does not answer")


def _advertised(raw: socket.socket) -> bytes:
    while True:
        got, _ = raw.recvfrom(200)
        if got[0] == _ADVERT and got[8:24] == HOP.packed:
            return got[26:32]
