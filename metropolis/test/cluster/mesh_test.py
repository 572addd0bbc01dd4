# SPDX-License-Identifier: Apache-2.0
"""Everything reaches everything, encrypted between the nodes.

The network between them has a smaller MTU than Ethernet: it drops larger
packets silently, so no node may send one.
"""

import pytest

from metropolis.node import allocs
from metropolis.test.launch import capture
from metropolis.test.launch.checks import Check
from metropolis.test.launch.cluster import BODIES, POD_NETWORKS, Cluster
from metropolis.test.launch.lab import OUTSIDE_IPV4, OUTSIDE_IPV6, ROUTER_IPV4
from metropolis.test.launch.matrix import to_table

pytestmark = pytest.mark.asyncio(loop_scope="session")

NODES = 3
MTU = 1400
LARGE = max(BODIES)
WIREGUARD = f"udp port {allocs.WIREGUARD_PORT}"


async def test_full_mesh(cluster: Cluster, found: list[Check]) -> None:
    """Pods to pods, nodes to pods of others, pods to the outside; in both
    families, with bodies of 1 MB each way.
    """
    print(to_table(cluster.report(found)))
    # 6 pairs of pods, 6 of node and pod, 3 pods and the outside.
    assert len(found) == (6 + 6 + 3) * 2
    assert [f"{check.name}: {check.detail}" for check in found if not check.ok] == []


async def test_nobody_outside_sees_a_pods_address(cluster: Cluster, found: list[Check]) -> None:
    nodes = {ip for place in cluster.places for ip in place.addresses}
    assert cluster.lab.seen
    assert set(cluster.lab.seen) <= nodes


async def test_the_underlay_sees_wireguard_only(cluster: Cluster, found: list[Check]) -> None:
    """The capture begins before the machines boot."""
    port = cluster.etcd.endpoint.rpartition(":")[2]
    kinds = {
        "WireGuard": WIREGUARD,
        "etcd, TLS": f"tcp port {port} and host {ROUTER_IPV4.ip}",
        "outside, masqueraded": f"host {OUTSIDE_IPV4} or host {OUTSIDE_IPV6}",
        "DHCP": "udp and (port 67 or port 68)",
        # A server answers a repeated question twice; the second is unexpected.
        # Port unreachable (RFC 792): behind 8 bytes an IPv4 header, then ports.
        "DHCP, too late": "icmp[0] == 3 and icmp[1] == 3 and icmp[28:4] == 0x00430044",
        "NTP": f"udp port 123 and host {ROUTER_IPV4.ip}",
        "ARP": "arp",
        # RFC 4861: types 133 to 137. Multicast listeners' (RFC 3810) have a
        # hop-by-hop header.
        "ND, RA": "icmp6 and ip6[40] >= 133 and ip6[40] <= 137",
        "MLD": "ip6 and ip6[6] == 0",
    }
    counts = {name: await cluster.capture.count(text) for name, text in kinds.items()}
    rest = f"not ({' or '.join(f'({text})' for text in kinds.values())})"
    pods = " or ".join(f"net {prefix}" for prefix, _ in POD_NETWORKS)
    counts["anything else"] = await cluster.capture.count(rest)
    counts["addresses of pods"] = await cluster.capture.count(pods)
    print(f"the underlay:\n{capture.to_text(counts)}")
    assert await cluster.capture.show(rest) == ""
    assert await cluster.capture.show(pods) == ""
    # It contains all traffic from pod to pod and from node to pod.
    assert counts["WireGuard"].bytes > 12 * 2 * LARGE
    assert counts["etcd, TLS"].packets > 0


async def test_no_fragments(cluster: Cluster, found: list[Check]) -> None:
    """Fragments would arrive, at twice the cost."""
    assert (await cluster.capture.count(WIREGUARD)).packets > 1000
    # More fragments, or an offset; IPv6's header for it (RFC 8200, 4.5).
    fragments = "ip[6:2] & 0x3fff != 0 or ip6[6] == 44"
    assert await cluster.capture.show(fragments) == ""
    assert (await cluster.capture.count(f"greater {MTU + 14 + 1} and {WIREGUARD}")).packets == 0
