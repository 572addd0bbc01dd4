# SPDX-License-Identifier: Apache-2.0
"""A node's place in its cluster: its view of the store, and the consequences.

    identity, underlay --> +-------+ --> mesh, peers, published   the overlay's
                           | Place | --> pod_prefixes             the workloads'
      the store's changes, |       | --> trouble                  the node's
     lease, etcd's absence +-------+ --> decision                 for the store

The curator calls etcd, and passes the changes on to here. `membership.decide`
decides; this module calls it when an input changes, and sets the values that
follow from the decision. Used by one event loop only.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from dataclasses import replace

from metropolis.node.core.config import Cluster, PodPrefixes
from metropolis.node.core.curator import keys
from metropolis.node.core.curator.directory import Changes, Directory
from metropolis.node.core.curator.membership import TRANSIENT, Decision, Me, Standing, decide
from metropolis.node.core.curator.transaction import Transaction
from metropolis.node.core.network.overlay.mesh import Exchange, Mesh
from osbase import event
from osbase.ip import IPAddress, IPNetwork


class Place:
    """Sets the values of Curator, whose docstring explains them.

    directory: the content of the store. decision: the last one; None before the
    directory is complete. due: set when the decision, or whether it may be
    committed, may have changed. away: why etcd is not used; "": it is.
    others_are_back: the other nodes had time to return to etcd, too.
    """

    def __init__(
        self,
        config: Cluster,
        exchange: Exchange,
        underlay: event.Value[IPAddress | None],
        pod_prefixes: event.Value[PodPrefixes],
        *,
        version: str,
        held: tuple[IPNetwork, ...],
    ) -> None:
        """See Curator."""
        self.directory = Directory(config.node_id)
        self.decision: Decision | None = None
        self.due = asyncio.Event()
        self.away = ""
        self.others_are_back = False
        self.mesh = exchange.mesh
        self.peers = exchange.peers
        self.published = exchange.published
        self.pod_prefixes = pod_prefixes
        self.trouble = event.Value[str]("the curator's trouble")
        self.trouble.set(f"waiting for etcd at {', '.join(config.etcd_endpoints)}")
        self._config = config
        self._identity = exchange.identity
        self._underlay = underlay
        self._log = logging.getLogger(__name__)
        self._absent: dict[str, tuple[IPNetwork, ...]] = {}
        self._me = Me(config.node_id, version, underlay=config.underlay_address, using=held)
        if held:
            self.pod_prefixes.set(PodPrefixes(held))

    async def run(self, log: logging.Logger, remind_s: float) -> None:
        """Follow this node's key and address until cancelled. A node that has
        no place logs why every remind_s seconds.
        """
        self._log = log
        async with asyncio.TaskGroup() as group:
            group.create_task(self._follow_identity())
            group.create_task(self._follow_underlay())
            group.create_task(self._remind(remind_s))

    # --- Inputs ---------------------------------------------------------------

    def take(self, changes: Changes) -> None:
        """Follow changes of the directory, which is complete the first time."""
        first = self.decision is None
        self._tell_peers(changes, complete=first)
        before = self._absent
        self._absent = self._find_absent(self.directory.nodes if first else before)
        if changes.ours or first or self._absent != before:
            self._decide()

    def set_away(self, why: str) -> None:
        """Set why etcd is not used; "": it is."""
        self.away = why
        self._tell_trouble()

    @property
    def lease(self) -> int:
        """The lease of this node's record; 0: it has none."""
        return self._me.lease

    def set_lease(self, lease: int) -> None:
        """Set the lease under which to write the record; 0: it ended."""
        self._me = replace(self._me, lease=lease)
        self._reconsider()

    def relied_on(self) -> Transaction:
        """Return a transaction that only compares: it succeeds if the keys on
        which this node's place depends have not changed.
        """
        directory, node_id = self.directory, self._me.node_id
        compared = [
            keys.CLUSTER,
            keys.member(node_id),
            *(keys.claim(prefix) for prefix in directory.node(node_id).claims),
        ]
        return Transaction({key: directory.revision_of(key) for key in compared})

    def is_early(self, decision: Decision) -> bool:
        """Return whether its record has a key that others may not know yet."""
        identity, seen = self._me.identity, self.directory.node(self._me.node_id).seen
        if not decision.record or identity is None or not identity.switching:
            return False
        written = seen is not None and seen.public_key == identity.public_key
        return not written and not self.others_are_back

    def _find_absent(self, names: Iterable[str]) -> dict[str, tuple[IPNetwork, ...]]:
        """Return the prefixes of those of these nodes that hold some, but are
        no peers, since their records have not been seen.
        """
        found = {}
        for name in names:
            node = self.directory.node(name)
            if name != self._me.node_id and node.peer is None and not node.removed:
                if held := self.directory.held_by(name):
                    found[name] = held
        return found

    def _tell_peers(self, changes: Changes, *, complete: bool = False) -> None:
        for note in changes.notes:
            self._log.warning("refused: %s", note)
        if complete:
            # The table may have peers from a curator that failed before.
            self.peers.replace(changes.peers)
        elif changes.peers or changes.gone:
            self.peers.update(changes.peers, changes.gone)

    async def _follow_identity(self) -> None:
        async for identity in self._identity.watch():
            self._me = replace(self._me, identity=identity)
            own = frozenset(
                key for key in (identity.public_key, identity.next_public_key) if key is not None
            )
            self._tell_peers(self.directory.set_own_keys(own))
            self._reconsider()

    async def _follow_underlay(self) -> None:
        async for address in self._underlay.watch():
            self._me = replace(self._me, underlay=self._config.underlay_address or address)
            self._reconsider()

    # --- Decisions ------------------------------------------------------------

    def _reconsider(self) -> None:
        """Decide again, if there was a decision."""
        if self.decision is not None:
            self._decide()

    def _decide(self) -> None:
        before, directory = self.decision, self.directory
        decision = decide(directory, self._me)
        self.decision = decision
        self._tell_trouble()
        logged = None if before is None else (before.standing, before.reason)
        if decision.standing not in TRANSIENT and (decision.standing, decision.reason) != logged:
            level = logging.INFO if decision.standing is Standing.JOINED else logging.WARNING
            self._log.log(level, "%s", decision.reason)
        self._use(decision.own)
        if decision.standing is Standing.JOINED:
            self._joined()
        self.due.set()

    def _tell_trouble(self) -> None:
        decision, trouble = self.decision, ""
        if self.away:
            trouble = self.away
        elif decision is not None and decision.standing is not Standing.JOINED:
            trouble = f"cluster: {decision.reason}"
        if self.trouble.peek(None) != trouble:
            self.trouble.set(trouble)

    def _use(self, own: tuple[IPNetwork, ...]) -> None:
        for prefix in self._me.using:
            if prefix not in own:
                claim = self.directory.claims.get(prefix)
                holder = claim.node_id if claim is not None else ""
                self._log.error(
                    "%s is not this node's any more%s; workloads that have addresses of it "
                    "cannot be reached by other nodes", prefix,
                    f', but "{holder}"\'s' if holder not in ("", self._me.node_id) else "",
                )  # fmt: skip
        self._me = replace(self._me, using=own)
        if self.pod_prefixes.peek(None) != PodPrefixes(own):
            self.pod_prefixes.set(PodPrefixes(own))
        config = self.directory.cluster
        if config is None:
            return
        member = self.directory.node(self._me.node_id).member
        mesh = Mesh(
            tuple(network.prefix for network in config.networks),
            own,
            config.mtu,
            0 if member is None else member.wanted_key_epoch,
            tuple(prefix for held in self._absent.values() for prefix in held),
        )
        if self.mesh.peek(None) != mesh:
            self.mesh.set(mesh)

    def _joined(self) -> None:
        entry, identity = self.directory.node(self._me.node_id).entry, self._me.identity
        assert entry is not None, "joined by it"
        assert identity is not None, "joined by it"
        self._me = replace(self._me, published=entry.mod_revision)
        if self.published.peek(None) != identity:
            self.published.set(identity)

    async def _remind(self, every_s: float) -> None:
        while True:
            await asyncio.sleep(every_s)
            decision = self.decision
            if decision is not None and decision.standing not in (*TRANSIENT, Standing.JOINED):
                self._log.warning("still so: %s", decision.reason)
