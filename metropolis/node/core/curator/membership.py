# SPDX-License-Identifier: Apache-2.0
"""Decides the next step of a node towards its place in the cluster. Pure.

    decide(directory, me) -> Decision: the node's standing, the reason, the
                             prefixes it uses, the transaction to commit, if any

Prefixes are claimed in transactions that compare everything that the choice
depends on: each claim, the node's member entry (so it is not removed), and the
cluster's configuration. So two nodes never get the same prefix: one of two
transactions fails, and its node decides again, by the state that it then reads.

A node that comes back finds its claims in the store. If they are gone, because
etcd was restored from an older snapshot, the node claims its former prefixes
again (`Me.using`, at first those in its kernel). It uses them until another
node holds them.
"""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from metropolis.node import allocs
from metropolis.node.core.curator import keys, records
from metropolis.node.core.curator.directory import Claim, ClaimState, Directory
from metropolis.node.core.curator.records import ClusterConfig, Member, Record, RecordError
from metropolis.node.core.curator.transaction import Put, Transaction
from metropolis.node.core.network.overlay.mesh import Identity
from osbase.ip import IPAddress, IPNetwork


class Standing(enum.Enum):
    """A node's position in its cluster."""

    NO_CLUSTER = "no cluster"
    NO_KEY = "no key"
    REMOVED = "removed"
    DUPLICATE = "duplicate"
    EXHAUSTED = "exhausted"
    CLAIMING = "claiming"
    NO_ADDRESS = "no address"
    PUBLISHING = "publishing"
    JOINED = "joined"


TRANSIENT: Final = frozenset({Standing.CLAIMING, Standing.PUBLISHING, Standing.NO_KEY})
"""Standings that end soon by themselves: they are not logged."""


@dataclass(frozen=True)
class Me:
    """The node's own state.

    using: the prefixes of its workloads. underlay: its address for WireGuard.
    lease: that of its record in etcd; 0: there is none. published: mod_revision
    of the record that it wrote last; 0: none since it started.
    """

    node_id: str
    version: str = ""
    identity: Identity | None = None
    underlay: IPAddress | None = None
    using: tuple[IPNetwork, ...] = ()
    lease: int = 0
    published: int = 0


@dataclass(frozen=True)
class Decision:
    """reason: for the log. own: the prefixes that the node uses, in order.
    record: whether `commit` writes the record, and so needs a lease.
    """

    standing: Standing
    reason: str
    own: tuple[IPNetwork, ...] = ()
    commit: Transaction | None = None
    record: bool = False


class Exhausted(Exception):
    """No prefix is left; the text names the networks."""


def decide(directory: Directory, me: Me) -> Decision:
    """Return what to do now."""
    config = directory.cluster
    if config is None:
        reason = f"the cluster's configuration {directory.cluster_problem}"
        return Decision(
            Standing.NO_CLUSTER, f"{reason}: `metroctl cluster init` writes it", me.using
        )
    node = directory.node(me.node_id)
    if node.removed:
        reason = "this node was removed from the cluster; `metroctl node forget` lets it join anew"
        return Decision(Standing.REMOVED, reason)
    if (other := _duplicate(directory, me)) is not None:
        return Decision(Standing.DUPLICATE, other)
    held, missing, lost = _prefixes(directory, config, me)
    kept = _ordered((*held, *lost))
    if me.identity is None:
        # Without a key, another machine looks the same as this node.
        using = tuple(prefix for prefix in kept if prefix in me.using)
        return Decision(Standing.NO_KEY, "the WireGuard key is not known yet", using)
    if missing or node.member is None or set(node.member.prefixes) != set(held):
        if directory.cluster_problem:
            reason = f"the cluster's configuration {directory.cluster_problem}; nothing is claimed"
            return Decision(Standing.NO_CLUSTER, reason, kept)
        try:
            chosen = lost + tuple(
                choose(config, directory.claims, me.node_id, version)
                for version in missing
                if not any(prefix.version == version for prefix in lost)
            )
        except Exhausted as error:
            return Decision(Standing.EXHAUSTED, str(error), kept)
        commit = _claim(directory, me, held, chosen)
        names = ", ".join(map(str, chosen)) or "membership"
        return Decision(Standing.CLAIMING, f"claiming {names}", kept, commit)
    return _publish(directory, config, me, held)


def choose(
    config: ClusterConfig, claims: Mapping[IPNetwork, Claim], node_id: str, version: int
) -> IPNetwork:
    """Choose a prefix of an IP version: one that was never claimed, else the
    one that was freed first.

    The search begins at a hash of the node's id, so that nodes that join at the
    same time rarely choose the same. Raises Exhausted.
    """
    networks = [network for network in config.networks if network.prefix.version == version]
    digest = hashlib.blake2b(node_id.encode(), digest_size=8).digest()
    for network in networks:
        start = int.from_bytes(digest) % network.size
        # At most all claims can be in the way.
        for step in range(min(network.size, len(claims) + 1)):
            prefix = network.nth((start + step) % network.size)
            if prefix not in claims:
                return prefix
    free = [
        (claim.mod_revision, int(prefix.network_address), prefix)
        for prefix, claim in claims.items()
        if claim.state is ClaimState.FREE and any(network.gives(prefix) for network in networks)
    ]
    if not free:
        names = ", ".join(f"{one} ({one.size} in all)" for one in networks)
        raise Exhausted(
            f"no prefix is left in {names}: remove nodes that are gone (`metroctl node remove`)"
        )
    return min(free)[2]


def _prefixes(
    directory: Directory, config: ClusterConfig, me: Me
) -> tuple[tuple[IPNetwork, ...], tuple[int, ...], tuple[IPNetwork, ...]]:
    """Return the prefixes that the node holds by the store, the IP versions
    without one, and its former prefixes of these that it can claim again.
    """
    ours = directory.held_by(me.node_id)
    held = tuple(one for one in ours if directory.claims[one].state is ClaimState.HELD)
    missing = tuple(
        version
        for version in config.families
        if not any(prefix.version == version for prefix in held)
    )
    wanted = dict.fromkeys((*me.using, *ours))
    lost = tuple(
        prefix
        for prefix in wanted
        if prefix.version in missing
        and config.gives(prefix)
        and _is_free(directory.claims.get(prefix), me.node_id)
    )
    return held, missing, lost


def _is_free(claim: Claim | None, node_id: str) -> bool:
    if claim is None or claim.state is ClaimState.FREE:
        return True
    return claim.state is not ClaimState.HELD and claim.node_id == node_id


def _duplicate(directory: Directory, me: Me) -> str | None:
    """Return a text if another machine is alive under this node's id, or None.

    A record with this node's lease, or with none, is its own. So is one that is
    older than the last that it wrote: the store was restored. So is one with
    its key, if it has written none since it started. Any other is another
    machine's; or the node's own after its key was lost, until the lease ends.
    """
    node = directory.node(me.node_id)
    entry, record, identity = node.entry, node.seen, me.identity
    if entry is None or record is None or identity is None:
        return None
    if entry.lease in (0, me.lease):
        return None
    if me.published and entry.mod_revision <= me.published:
        return None
    own = {identity.public_key, identity.next_public_key}.intersection(record.keys)
    if own and not me.published:
        return None
    return (
        f'another machine is node "{me.node_id}": key {record.public_key.hex()[:16]}..., '
        f"address {record.address}; this one stays out. Give one of them another node_id"
    )


def _claim(
    directory: Directory, me: Me, held: tuple[IPNetwork, ...], chosen: tuple[IPNetwork, ...]
) -> Transaction:
    member_key = keys.member(me.node_id)
    before = directory.node(me.node_id).member or Member(False)
    own = _ordered((*held, *chosen))
    member = Member(False, before.wanted_key_epoch, own)
    compared = [keys.CLUSTER, member_key, *map(keys.claim, own)]
    return Transaction(
        {key: directory.revision_of(key) for key in compared},
        (
            *(Put(keys.claim(prefix), records.encode_claim(me.node_id)) for prefix in chosen),
            Put(member_key, records.encode_member(member)),
        ),
        values=_values(directory, own),
    )


def _values(directory: Directory, prefixes: Iterable[IPNetwork]) -> dict[bytes, bytes]:
    """Return the values at the prefixes' keys, where they can be read."""
    claims = {prefix: directory.claims.get(prefix) for prefix in prefixes}
    return {
        keys.claim(prefix): records.encode_claim(claim.node_id)
        for prefix, claim in claims.items()
        if claim is not None and claim.state in (ClaimState.HELD, ClaimState.FREE)
    }


def _publish(
    directory: Directory, config: ClusterConfig, me: Me, held: tuple[IPNetwork, ...]
) -> Decision:
    identity, key = me.identity, keys.node(me.node_id)
    assert identity is not None, "asked for before"
    if me.underlay is None:
        return Decision(Standing.NO_ADDRESS, "the node has no underlay address yet", held)
    record = Record(
        me.node_id,
        identity.public_key,
        identity.next_public_key,
        identity.epoch,
        me.underlay,
        allocs.WIREGUARD_PORT,
        held,
        me.version,
    )
    value = records.encode_record(record)
    try:
        # Other nodes would refuse it.
        records.decode_record(value)
        records.check_address(me.underlay, config)
    except RecordError as error:
        return Decision(Standing.NO_ADDRESS, f"this node's record: {error}", held)
    entry = directory.node(me.node_id).entry
    if entry is not None and me.lease and entry.lease == me.lease and entry.value == value:
        return Decision(Standing.JOINED, f"joined with {', '.join(map(str, held))}", held)
    compared = [key, keys.member(me.node_id), *map(keys.claim, held)]
    commit = Transaction(
        {one: directory.revision_of(one) for one in compared},
        (Put(key, value, me.lease),),
        values=_values(directory, held),
    )
    return Decision(Standing.PUBLISHING, "publishing the record", held, commit, record=True)


def _ordered(prefixes: Iterable[IPNetwork]) -> tuple[IPNetwork, ...]:
    return tuple(sorted(prefixes, key=lambda one: (one.version, int(one.network_address))))
