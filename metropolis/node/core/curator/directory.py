# SPDX-License-Identifier: Apache-2.0
"""The store's content as peers: events in, changes of peers out. Pure.

    directory.replace(all entries)  | apply(events) | set_own_keys(keys)
        -> Changes: peers to set, peers that are gone, lines for the log

A peer is another node whose record was seen and that holds claims. A record
says how to reach it, its claims say which prefixes are behind it. A node stays
a peer when its record ends with its lease: then it is away, or only cut off
from etcd. A WireGuard peer that does not answer does no harm, and traffic must
not depend on etcd. A peer is removed when its claims are freed or its member is
REMOVED.

Claims are never deleted, only freed. If one is absent all the same, the store
has lost it, e.g. by a restoration from an older snapshot: it counts as its
holder's until another node has it, so that pods keep their network while the
holder claims it again.

A wrong value is refused, and a line of the log says whose it is and why; the
last right value of that node, cluster or claim stays. No other node is
affected. If two nodes have one key, the first keeps it while its record is
alive; no other node can have our own keys.

The cost of a change does not grow with the cluster, except a change of the
cluster's configuration.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from metropolis.node.core.curator import keys, records
from metropolis.node.core.curator.keys import Kind
from metropolis.node.core.curator.records import ClusterConfig, Member, Record, RecordError
from metropolis.node.core.network.overlay.mesh import Peer
from osbase.ip import IPNetwork


@dataclass(frozen=True)
class Entry:
    """A key with its value, as in the store. lease: 0 if there is none."""

    key: bytes
    value: bytes
    mod_revision: int
    lease: int = 0


@dataclass(frozen=True)
class Removal:
    """A key that was deleted."""

    key: bytes


type Event = Entry | Removal


class ClaimState(enum.Enum):
    """The state of a claim's key."""

    HELD = "held"
    FREE = "free"
    LOST = "lost"
    """It is gone, though it existed; the store was restored, or edited."""
    BAD = "bad"
    """Its value is garbage; it belongs to its former holder."""


@dataclass(frozen=True)
class Claim:
    """node_id: "" when it is free. mod_revision: 0 when the key is absent."""

    state: ClaimState
    node_id: str
    mod_revision: int


@dataclass
class Changes:
    """The effects of events. ours: claims, members, the cluster or our own
    record changed, so our decision may change. notes: lines for the log.
    """

    peers: dict[str, Peer] = field(default_factory=dict)
    gone: set[str] = field(default_factory=set)
    ours: bool = False
    notes: list[str] = field(default_factory=list)


@dataclass
class Node:
    """The known state of a node. entry: its record now; None: it has ended.

    seen: the newest record that can be read. good: the one that peers use.
    """

    member: Member | None = None
    member_revision: int = 0
    claims: set[IPNetwork] = field(default_factory=set)
    entry: Entry | None = None
    seen: Record | None = None
    good: Record | None = None
    refusal: str = ""
    peer: Peer | None = None

    @property
    def removed(self) -> bool:
        """Return whether an operator removed it."""
        return self.member is not None and self.member.removed


class Directory:
    """The store as one node knows it. Not thread-safe."""

    def __init__(self, node_id: str) -> None:
        """Make an empty directory."""
        self._own = node_id
        self._own_keys: frozenset[bytes] = frozenset()
        self._entries: dict[bytes, Entry] = {}
        self._nodes: dict[str, Node] = {}
        self._claims: dict[IPNetwork, Claim] = {}
        self._holders: dict[bytes, str] = {}  # by key: the node that has it
        self._waiting: dict[bytes, set[str]] = {}  # by key: nodes refused for it
        self._touched: dict[str, None] = {}
        self.cluster: ClusterConfig | None = None
        self.cluster_revision = 0
        self.cluster_problem = "is not there"
        """Why `cluster` differs from the store's; "": it does not."""

    @property
    def claims(self) -> Mapping[IPNetwork, Claim]:
        """Return all claims that were ever seen."""
        return self._claims

    @property
    def nodes(self) -> Mapping[str, Node]:
        """Return all known nodes, by id."""
        return self._nodes

    def node(self, node_id: str) -> Node:
        """Return the known state of a node."""
        return self._nodes.get(node_id) or Node()

    def held_by(self, node_id: str) -> tuple[IPNetwork, ...]:
        """Return a node's prefixes inside the networks, in order, including
        those that the store lost.
        """
        cluster = self.cluster
        if cluster is None:
            return ()
        held = (prefix for prefix in self.node(node_id).claims if cluster.gives(prefix))
        return tuple(sorted(held, key=lambda one: (one.version, int(one.network_address))))

    def revision_of(self, key: bytes) -> int:
        """Return mod_revision of a key; 0: it is absent."""
        entry = self._entries.get(key)
        return 0 if entry is None else entry.mod_revision

    def replace(self, entries: Iterable[Entry]) -> Changes:
        """Apply a complete list: its differences from the known state, in the
        order in which they were written.
        """
        listed = {entry.key: entry for entry in entries}
        gone = [Removal(key) for key in self._entries if key not in listed]
        new = [entry for key, entry in listed.items() if self._entries.get(key) != entry]
        return self.apply([*gone, *sorted(new, key=lambda entry: entry.mod_revision)])

    def apply(self, events: Sequence[Event]) -> Changes:
        """Apply events; readers see all of them or none."""
        changes = Changes()
        for event in events:
            self._apply(event, changes)
        self._settle(changes)
        return changes

    def set_own_keys(self, own: frozenset[bytes]) -> Changes:
        """Set our own keys: a node that has one of them is no peer."""
        changes = Changes()
        released, self._own_keys = self._own_keys - own, own
        for key in own:
            if key in self._holders:
                self._touch(self._holders[key])
        for key in released:
            self._wake(key)
        self._settle(changes)
        return changes

    # --- Events, by kind ------------------------------------------------------

    def _apply(self, event: Event, changes: Changes) -> None:
        entry = event if isinstance(event, Entry) else None
        before = self._entries.pop(event.key, None)
        if entry is not None:
            self._entries[event.key] = entry
        elif before is None:
            return
        key = keys.parse(event.key)
        try:
            if key is None:
                if entry is not None:
                    raise RecordError("names nothing of a cluster")
            elif key.kind is Kind.CLUSTER:
                changes.ours = True
                self._cluster(entry)
            elif key.kind is Kind.MEMBER:
                changes.ours |= key.name == self._own
                self._member(key.name, entry)
            elif key.kind is Kind.CLAIM:
                assert key.prefix is not None, "a claim is of a prefix"
                changes.ours = True
                self._claim(key.prefix, entry)
            else:
                changes.ours |= key.name == self._own
                self._record(key.name, entry)
        except RecordError as error:
            name = event.key.removeprefix(keys.ROOT).decode("ascii", "backslashreplace")
            changes.notes.append(f"{records.quoted(name)}: {error}")

    def _cluster(self, entry: Entry | None) -> None:
        self.cluster_revision = 0 if entry is None else entry.mod_revision
        if entry is None:
            self.cluster_problem = "is not there"
            return
        try:
            config = records.decode_cluster(entry.value)
        except RecordError as error:
            self.cluster_problem = str(error)
            raise
        self.cluster_problem = ""
        if config != self.cluster:
            self.cluster = config
            for node_id in self._nodes:
                self._touch(node_id)

    def _member(self, node_id: str, entry: Entry | None) -> None:
        node = self._touch(node_id)
        node.member_revision = 0 if entry is None else entry.mod_revision
        if entry is None:
            node.member = None
        else:
            node.member = records.decode_member(entry.value)

    def _claim(self, prefix: IPNetwork, entry: Entry | None) -> None:
        before = self._claims.get(prefix)
        owner = "" if before is None else before.node_id
        if entry is None:
            if owner:
                self._claims[prefix] = Claim(ClaimState.LOST, owner, 0)
            else:
                self._claims.pop(prefix, None)
            return
        try:
            node_id = records.decode_claim(entry.value)
        except RecordError:
            self._claims[prefix] = Claim(ClaimState.BAD, owner, entry.mod_revision)
            raise
        state = ClaimState.HELD if node_id else ClaimState.FREE
        self._claims[prefix] = Claim(state, node_id, entry.mod_revision)
        if owner != node_id:
            if owner:
                self._touch(owner).claims.discard(prefix)
            if node_id:
                self._touch(node_id).claims.add(prefix)
        if self.cluster is not None and not self.cluster.gives(prefix):
            raise RecordError("is of no pod network")

    def _record(self, node_id: str, entry: Entry | None) -> None:
        node = self._touch(node_id)
        node.entry = entry
        node.seen = node.good
        if entry is None:
            # Other nodes may have its keys now.
            for key in node.good.keys if node.good is not None else ():
                self._wake(key)
            return
        node.refusal = ""
        record = records.decode_record(entry.value)
        if record.node_id != node_id:
            raise RecordError(f"is the record of {records.quoted(record.node_id)}")
        node.seen = record

    # --- Effects on peers -----------------------------------------------------

    def _touch(self, node_id: str) -> Node:
        self._touched[node_id] = None
        return self._nodes.setdefault(node_id, Node())

    def _wake(self, key: bytes) -> None:
        for node_id in self._waiting.pop(key, ()):
            self._touch(node_id)

    def _settle(self, changes: Changes) -> None:
        while self._touched:
            node_id = next(iter(self._touched))
            del self._touched[node_id]
            node = self._nodes.get(node_id)
            if node is None:
                continue
            if node_id != self._own:
                self._note_peer(node_id, node, changes)
            if not (node.member_revision or node.claims or node.entry):
                del self._nodes[node_id]

    def _note_peer(self, node_id: str, node: Node, changes: Changes) -> None:
        peer = self._evaluate(node_id, node, changes)
        if peer == node.peer:
            return
        node.peer = peer
        changes.peers.pop(node_id, None)
        changes.gone.discard(node_id)
        if peer is None:
            changes.gone.add(node_id)
        else:
            changes.peers[node_id] = peer

    def _evaluate(self, node_id: str, node: Node, changes: Changes) -> Peer | None:
        held = () if node.removed else self.held_by(node_id)
        if not held:
            self._drop(node_id, node)
            return None
        if node.good is not None and self._own_keys.intersection(node.good.keys):
            self._drop(node_id, node)
        if node.seen is not None and node.seen is not node.good:
            try:
                self._accept(node_id, node, node.seen, held)
            except RecordError as error:
                if str(error) != node.refusal:
                    node.refusal = str(error)
                    changes.notes.append(f'"nodes/{node_id}": {error}')
        good = node.good
        if good is None:
            return None
        return Peer(node_id, good.public_key, good.address, good.port, held, good.next_public_key)

    def _drop(self, node_id: str, node: Node) -> None:
        if node.good is None:
            return
        if node.entry is None:
            node.seen = None
        good, node.good = node.good, None
        for key in good.keys:
            if self._holders.get(key) == node_id:
                del self._holders[key]
                self._wake(key)

    def _accept(
        self, node_id: str, node: Node, record: Record, held: tuple[IPNetwork, ...]
    ) -> None:
        """Use this record from now on. Raises RecordError."""
        assert self.cluster is not None, "who holds prefixes is in a cluster"
        records.check_address(record.address, self.cluster)
        for prefix in record.prefixes:
            if prefix not in held:
                raise RecordError(f"pod_prefix {prefix} is not claimed by it")
        for key in record.keys:
            holder = self._holders.get(key, node_id)
            alive = holder != node_id and self._nodes[holder].entry is not None
            if key in self._own_keys or alive:
                self._waiting.setdefault(key, set()).add(node_id)
                whose = "ours" if key in self._own_keys else f'that of "{holder}"'
                raise RecordError(f"its public key is {whose}")
        before = node.good.keys if node.good is not None else ()
        node.good = record
        node.refusal = ""
        for key in record.keys:
            holder = self._holders.get(key, node_id)
            if holder != node_id:  # it is away, and another node has its key now
                self._drop(holder, self._touch(holder))
            self._holders[key] = node_id
        for key in before:
            if key not in record.keys:
                del self._holders[key]
                self._wake(key)
