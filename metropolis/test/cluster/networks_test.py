# SPDX-License-Identifier: Apache-2.0
"""A cluster whose pod networks overlap the underlay, and are corrected."""

import asyncio

import grpc
import pytest

from metropolis.node import allocs
from metropolis.node.core.curator import administration, keys, records
from metropolis.node.core.curator.records import ClusterConfig, pod_network
from metropolis.node.core.curator.transaction import Put, Transaction
from metropolis.node.core.network.workloads.spec import workload_pb2
from metropolis.test.launch.cluster import BODIES, POD_NETWORKS, Cluster
from metropolis.test.launch.node import Node

pytestmark = pytest.mark.asyncio(loop_scope="session")

NODES = 3
MTU = 1400  # as in mesh_test, which has the cluster first
LIMIT_S = 600.0
# The lab's underlay is 198.51.100.0/24 and 2001:db8:51::/64.
WRONG = (pod_network("198.51.0.0/16", 24), pod_network("2001:db8:51::/48", 64))
# The cluster's initial networks, for the next tests.
RIGHT = tuple(pod_network(prefix, length) for prefix, length in POD_NETWORKS)


async def problem(node: Node) -> str:
    """Return why Status is unavailable; "": it is OK."""
    try:
        await node.workloads.Status(workload_pb2.StatusRequest(), timeout=10)
    except grpc.aio.AioRpcError as error:
        return str(error.details())
    return ""


async def refuses_both(node: Node) -> None:
    """Wait until Status names both networks."""
    said = ""
    async with asyncio.timeout(LIMIT_S):
        while not all(f"pod prefix {one.prefix} overlaps" in said for one in WRONG):
            await asyncio.sleep(0.2)
            said = await problem(node)


async def test_the_underlay_wins_and_a_correction_is_taken(cluster: Cluster) -> None:
    """Nodes refuse the networks, still reach etcd after a restart of node core,
    and accept correct ones at once.
    """
    nodes = [member.running for member in cluster.members.values()]
    async with cluster.store() as store:
        # `metroctl cluster set-networks` refuses these.
        put = Put(keys.CLUSTER, records.encode_cluster(ClusterConfig(WRONG)))
        assert await store.commit(Transaction({}, (put,))) is not None
    for node in nodes:
        await refuses_both(node)
    # Status reports it before the rules change.
    table = f"inet {allocs.NFTABLES_TABLE}"
    async with asyncio.timeout(LIMIT_S):
        for name, network in (("withheld", "198.51.0.0/16"), ("in_use", "198.51.100.0/24")):
            await nodes[0].shell(
                f"until nft list set {table} {name}_ipv4 | grep -qF {network}; do sleep 0.2; done"
            )
    assert "198.51." not in await nodes[0].shell(f"nft list set {table} pods_ipv4")
    routes = await nodes[0].shell("ip route show dev overlay; ip -6 route show dev overlay")
    assert "198.51." not in routes
    assert "2001:db8:51:" not in routes

    # A new process, with the rules of its start.
    async with asyncio.timeout(LIMIT_S):
        await nodes[0].shell(
            "pid=/run/sv/node-core/supervise/pid; old=$(cat $pid); sv kill /run/sv/node-core; "
            'until new=$(cat $pid) && [ -n "$new" ] && [ "$new" != "$old" ]; do sleep 0.2; done'
        )
    await refuses_both(nodes[0])

    async with cluster.store() as store:
        assert await administration.set_networks(store, RIGHT)
    for member in cluster.members.values():
        await member.running.wait_ready(LIMIT_S)
        assert member.pod is not None, "every node has one"
        await member.running.cri.remove_pod(member.pod.id)
        member.pod = None
    await cluster.run_pods()
    for place in cluster.places:
        assert place.pod.ipv4 in RIGHT[0].prefix
    found = await cluster.reach(max(BODIES))
    assert [f"{check.name}: {check.detail}" for check in found if not check.ok] == []
