# SPDX-License-Identifier: Apache-2.0
"""The commands on etcd: each takes a connection, works on it, returns its
output.
"""

from __future__ import annotations

import base64
import sys
from argparse import Namespace
from collections.abc import Awaitable, Callable, Iterable
from typing import Final

from metropolis.cli.metroctl.output import Answer, Table
from metropolis.node.core.curator import administration, records
from metropolis.node.core.curator.administration import Refused, View
from metropolis.node.core.curator.directory import ClaimState, Node
from metropolis.node.core.curator.etcd import Etcd
from metropolis.node.core.curator.records import ClusterConfig, PodNetwork, RecordError

type Command = Callable[[Etcd, Namespace], Awaitable[Answer]]


async def cluster_init(etcd: Etcd, given: Namespace) -> Answer:
    """Write the configuration, once."""
    config = ClusterConfig(tuple(given.pod_network), given.mtu)
    created = await administration.init(etcd, config)
    said = "the cluster is there" if created else "the cluster was there already, the same"
    return Answer({"created": created, **_cluster(config)}, said)


async def cluster_set_networks(etcd: Etcd, given: Namespace) -> Answer:
    """Correct the pod networks."""
    networks = tuple(given.pod_network)
    changed = await administration.set_networks(etcd, networks)
    directory = (await _view(etcd)).directory
    outside = {
        str(prefix): claim.node_id
        for prefix, claim in directory.claims.items()
        if claim.state is ClaimState.HELD and not any(network.gives(prefix) for network in networks)
    }
    said = "the pod networks are changed" if changed else "the pod networks were so already"
    if outside:
        said += (
            f"; {len(outside)} prefixes are of none any more: pods that still have addresses of "
            "them are not reached by other nodes"
        )
    data = {
        "changed": changed,
        "pod_networks": [_network(one) for one in networks],
        "outside": [{"prefix": prefix, "node": outside[prefix]} for prefix in sorted(outside)],
    }
    return Answer(data, said)


async def cluster_show(etcd: Etcd, given: Namespace) -> Answer:
    """Return the configuration, and the claimed part of each network."""
    view = await _view(etcd)
    directory = view.directory
    config = directory.cluster
    if config is None:
        raise Refused(
            f"the cluster's configuration {directory.cluster_problem}; `cluster init` writes it"
        )
    used = [_used(view, network) for network in config.networks]
    data = _cluster(config)
    members = [node for node in directory.nodes.values() if node.member is not None]
    active = sum(not node.removed for node in members)
    alive = sum(node.entry is not None for node in directory.nodes.values())
    data["pod_networks"] = [
        {**_network(network), "size": network.size, "held": held, "freed": freed}
        for network, (held, freed) in zip(config.networks, used, strict=True)
    ]
    data["nodes"] = {"active": active, "alive": alive, "removed": len(members) - active}
    table = Table(
        ("POD NETWORK", "PER NODE", "PREFIXES", "HELD", "FREED"),
        [
            (network.prefix, f"/{network.node_prefix_length}", network.size, held, freed)
            for network, (held, freed) in zip(config.networks, used, strict=True)
        ],
    )
    mtu = config.mtu or "each node's uplink decides"
    removed = len(members) - active
    return Answer(
        data, f"{table}\nMTU: {mtu}\nnodes: {active} active, {alive} alive, {removed} removed"
    )


async def node_list(etcd: Etcd, given: Namespace) -> Answer:
    """Return all nodes that are in the store."""
    view = await _view(etcd)
    nodes = sorted(view.directory.nodes.items())
    table = Table(
        ("NODE", "STATE", "ALIVE", "UNDERLAY", "PREFIXES", "KEY EPOCH", "VERSION"),
        [_row(view, node_id, node) for node_id, node in nodes],
    )
    said = str(table) if nodes else "no node has joined yet"
    return Answer({"nodes": [_node(view, node_id, node) for node_id, node in nodes]}, said)


async def node_remove(etcd: Etcd, given: Namespace) -> Answer:
    """Free a node's prefixes, and keep it out."""
    await administration.remove(etcd, given.node)
    return Answer(
        {"node": given.node, "state": "removed"}, f"{given.node} is removed; its prefixes are free"
    )


async def node_forget(etcd: Etcd, given: Namespace) -> Answer:
    """Let a removed node join again."""
    await administration.forget(etcd, given.node)
    return Answer(
        {"node": given.node, "state": "forgotten"}, f"{given.node} is forgotten and may join again"
    )


async def node_rotate_key(etcd: Etcd, given: Namespace) -> Answer:
    """Ask a node for a new key."""
    epoch = await administration.rotate_key(etcd, given.node)
    return Answer(
        {"node": given.node, "wanted_key_epoch": epoch},
        f"{given.node} will make a key of epoch {epoch}; `node list` shows when it has",
    )


COMMANDS: Final[dict[str, Command]] = {
    "cluster init": cluster_init,
    "cluster set-networks": cluster_set_networks,
    "cluster show": cluster_show,
    "node list": node_list,
    "node remove": node_remove,
    "node forget": node_forget,
    "node rotate-key": node_rotate_key,
}


def pod_network(text: str) -> PodNetwork:
    """Parse "10.200.0.0/16:24". Raises RecordError."""
    prefix, colon, length = text.rpartition(":")
    if not colon or "/" not in prefix or not (length.isascii() and length.isdecimal()):
        raise RecordError(f'{records.quoted(text)} is not as "10.200.0.0/16:24", PREFIX:LENGTH')
    return records.pod_network(prefix, int(length[:4]))


async def _view(etcd: Etcd) -> View:
    view = await administration.view(etcd)
    for note in view.changes.notes:
        print(f"metroctl: the store has what nodes refuse: {note}", file=sys.stderr)
    return view


def _network(network: PodNetwork) -> dict[str, object]:
    return {"prefix": str(network.prefix), "node_prefix_length": network.node_prefix_length}


def _cluster(config: ClusterConfig) -> dict[str, object]:
    return {"pod_networks": [_network(one) for one in config.networks], "mtu": config.mtu}


def _used(view: View, network: PodNetwork) -> tuple[int, int]:
    states = [
        claim.state for prefix, claim in view.directory.claims.items() if network.gives(prefix)
    ]
    return states.count(ClaimState.HELD), states.count(ClaimState.FREE)


def _state(node: Node) -> str:
    if node.member is None:
        return "unknown"
    return "removed" if node.removed else "active"


def _prefixes(view: View, node_id: str, node: Node) -> Iterable[str]:
    """Return the node's prefixes in the networks, else those of its claims."""
    return map(str, view.directory.held_by(node_id) or sorted(node.claims, key=str))


def _node(view: View, node_id: str, node: Node) -> dict[str, object]:
    record = node.seen
    return {
        "node": node_id,
        "state": _state(node),
        "alive": node.entry is not None,
        "underlay_address": None if record is None else str(record.address),
        "wireguard_port": None if record is None else record.port,
        "prefixes": list(_prefixes(view, node_id, node)),
        "public_key": None if record is None else base64.b64encode(record.public_key).decode(),
        "key_epoch": None if record is None else record.key_epoch,
        "wanted_key_epoch": 0 if node.member is None else node.member.wanted_key_epoch,
        "version": None if record is None else record.version,
    }


def _row(view: View, node_id: str, node: Node) -> tuple[object, ...]:
    record = node.seen
    wanted = 0 if node.member is None else node.member.wanted_key_epoch
    epoch = "-" if record is None else str(record.key_epoch)
    if record is not None and wanted > record.key_epoch:
        epoch += f" ({wanted} wanted)"
    return (
        node_id,
        _state(node),
        "no" if node.entry is None else "yes",
        "-" if record is None else record.address,
        ", ".join(_prefixes(view, node_id, node)) or "-",
        epoch,
        "-" if record is None else record.version or "-",
    )
