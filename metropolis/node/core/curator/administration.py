# SPDX-License-Identifier: Apache-2.0
"""An operator's changes to a cluster: each is one transaction on its store.

A node that acts at the same time changes its member in the same transaction as
its claims: one of the two transactions fails, and the operator's is tried again
on the new state.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from metropolis.node.core.curator import keys, records
from metropolis.node.core.curator.directory import Changes, Directory, Node
from metropolis.node.core.curator.etcd import Etcd
from metropolis.node.core.curator.records import ClusterConfig, Member, PodNetwork, RecordError
from metropolis.node.core.curator.transaction import Put, Transaction

_TRIES: Final = 20


class Refused(Exception):
    """The change was not made; the text says why, and what to do instead."""


@dataclass(frozen=True)
class View:
    """The whole store. changes: its notes list what is wrong in the store."""

    directory: Directory
    changes: Changes
    revision: int


async def view(etcd: Etcd) -> View:
    """Read the whole store. Raises EtcdError."""
    listing = await etcd.list(keys.ROOT)
    directory = Directory("")
    return View(directory, directory.replace(listing.entries), listing.revision)


async def init(etcd: Etcd, config: ClusterConfig) -> bool:
    """Write the cluster's configuration, once. False: it exists, and is equal.

    Raises Refused when it exists and differs; EtcdError.
    """
    if await etcd.commit(
        Transaction({keys.CLUSTER: 0}, (Put(keys.CLUSTER, records.encode_cluster(config)),))
    ):
        return True
    directory = (await view(etcd)).directory
    if directory.cluster_problem:
        raise Refused(
            f"the cluster's configuration is there already, and {directory.cluster_problem}; "
            f"delete {keys.CLUSTER.decode()} with etcdctl first"
        )
    if directory.cluster != config:
        raise Refused(
            "the cluster is there already, with another configuration; `cluster show` prints it, "
            "`cluster set-networks` corrects it"
        )
    return False


async def set_networks(etcd: Etcd, networks: tuple[PodNetwork, ...]) -> bool:
    """Replace the pod networks; the rest stays. False: they were equal already.

    Nodes claim prefixes of the new networks at once. They keep claims in
    former networks, which no other node can get: their workloads keep running.
    Raises Refused when it would harm a node; EtcdError.
    """
    for _ in range(_TRIES):
        directory = (await view(etcd)).directory
        before = directory.cluster
        if before is None:
            raise Refused(
                f"the cluster's configuration {directory.cluster_problem}; "
                "`cluster init` writes one where there is none"
            )
        after = replace(before, networks=networks)
        if after == before:
            return False
        _check_networks(directory, after)
        put = Put(keys.CLUSTER, records.encode_cluster(after))
        transaction = Transaction({keys.CLUSTER: directory.cluster_revision}, (put,))
        if await etcd.commit(transaction) is not None:
            return True
    raise Refused("the cluster's configuration changes all the time; try again")


def _check_networks(directory: Directory, config: ClusterConfig) -> None:
    """Check that no network harms a node. Raises Refused."""
    members = sum(node.member is not None and not node.removed for node in directory.nodes.values())
    for version in config.families:
        of_family = [one for one in config.networks if one.prefix.version == version]
        size = sum(one.size for one in of_family)
        if size < members:
            names = ", ".join(map(str, of_family))
            raise Refused(f"{names} has prefixes for {size} nodes, and there are {members}")
    for node_id, node in directory.nodes.items():
        if node.seen is not None and not node.removed:
            try:
                records.check_address(node.seen.address, config)
            except RecordError as error:
                raise Refused(f'node "{node_id}" would be cut off: its {error}') from error
    for prefix, claim in directory.claims.items():
        clash = next((one for one in config.networks if _splits(one, prefix)), None)
        if clash is not None and claim.node_id:
            raise Refused(
                f'{clash} would give addresses of {prefix}, which "{claim.node_id}" holds, to '
                f"others; choose another network, or remove the node first"
            )


def _splits(network: PodNetwork, prefix: records.IPNetwork) -> bool:
    """Return whether the network gives prefixes that overlap this one."""
    same = network.prefix.version == prefix.version
    return same and network.prefix.overlaps(prefix) and not network.gives(prefix)


async def remove(etcd: Etcd, node_id: str) -> None:
    """Free a node's prefixes and keep the node out. Idempotent.

    Raises Refused when there is no such node; EtcdError.
    """

    def build(directory: Directory, node: Node) -> Transaction:
        key = keys.member(node_id)
        claims = [keys.claim(prefix) for prefix in node.claims]
        epoch = 0 if node.member is None else node.member.wanted_key_epoch
        return Transaction(
            {one: directory.revision_of(one) for one in (key, *claims)},
            (
                Put(key, records.encode_member(Member(True, epoch))),
                *(Put(claim, records.encode_claim("")) for claim in claims),
            ),
            (keys.node(node_id),),
        )

    await _change(etcd, node_id, build)


async def forget(etcd: Etcd, node_id: str) -> None:
    """Let a removed node join again, as if it had never been there.

    Raises Refused when it was not removed; EtcdError.
    """

    def build(directory: Directory, node: Node) -> Transaction:
        if not node.removed:
            raise Refused(
                f'"{node_id}" is a node of the cluster; `node remove {node_id}` removes it'
            )
        key = keys.member(node_id)
        return Transaction({key: directory.revision_of(key)}, (), (key,))

    await _change(etcd, node_id, build)


async def rotate_key(etcd: Etcd, node_id: str) -> int:
    """Ask a node for a new WireGuard key; returns the epoch it will have.

    Raises Refused when it is no active node; EtcdError.
    """
    wanted = 0

    def build(directory: Directory, node: Node) -> Transaction:
        nonlocal wanted
        member = node.member
        if member is None or member.removed:
            raise Refused(f'"{node_id}" was removed, or has not joined yet')
        epoch = 0 if node.seen is None else node.seen.key_epoch
        wanted = max(member.wanted_key_epoch, epoch) + 1
        key = keys.member(node_id)
        changed = Member(False, wanted, member.prefixes)
        return Transaction(
            {key: directory.revision_of(key)}, (Put(key, records.encode_member(changed)),)
        )

    await _change(etcd, node_id, build)
    return wanted


async def _change(
    etcd: Etcd, node_id: str, build: Callable[[Directory, Node], Transaction]
) -> None:
    for _ in range(_TRIES):
        directory = (await view(etcd)).directory
        if node_id not in directory.nodes:
            raise Refused(f"there is no node {records.quoted(node_id)}; `node list` shows all")
        if await etcd.commit(build(directory, directory.node(node_id))) is not None:
            return
    raise Refused(f'"{node_id}" changes all the time; try again')
