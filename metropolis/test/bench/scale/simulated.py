# SPDX-License-Identifier: Apache-2.0
"""Simulated nodes: their records in the cluster's store. Pure.

    fleet.join(n)    claims and membership, then a record      as a node's first
    fleet.move(n)    the record, with another address          an uplink changed
    fleet.rotate(n)  the record with a next key, then with that as its key
    fleet.leave(n)   claims freed, REMOVED, no record          as metroctl does

Each is one transaction or two, with the comparisons that a real node makes.
Addresses are in the ranges for benchmarks (RFC 2544, RFC 5180), without real
hosts. A fourth of the nodes is reached over IPv6.
"""

import hashlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from ipaddress import IPv4Network, IPv6Network
from typing import Final

from metropolis.node import allocs
from metropolis.node.core.curator import keys, records
from metropolis.node.core.curator.records import ClusterConfig, Member, PodNetwork, Record
from metropolis.node.core.curator.transaction import Put, Transaction
from osbase.ip import IPAddress, IPNetwork

CONFIG: Final = ClusterConfig(
    (
        PodNetwork(IPv4Network("10.128.0.0/9"), 24),
        PodNetwork(IPv6Network("fd00:200::/48"), 64),
    )
)
"""Room for 32,768 nodes."""

UNDERLAY: Final = (IPv4Network("198.18.0.0/15"), IPv6Network("2001:2::/48"))
MAX_NODES: Final = 30_000
MAX_OPERATIONS: Final = 128
"""Operations of a transaction: etcd's --max-txn-ops."""

_PLACES: Final = 1 << 16  # addresses that nodes move between: two each
_VERSION: Final = "scale"


@dataclass(frozen=True)
class Sim:
    """A simulated node. number: the number of its prefixes, unique.

    moves, epoch: how often its address and its key have changed. announced:
    whether its record has its next key. record_revision: revision of its
    record; 0: no record.
    """

    number: int
    lease: int
    moves: int = 0
    epoch: int = 0
    announced: bool = False
    record_revision: int = 0

    @property
    def node_id(self) -> str:
        """Its name."""
        return f"sim-{self.number}"

    @property
    def address(self) -> IPAddress:
        """Return the address that it announces."""
        at = self.number + self.moves % 2 * _PLACES
        return UNDERLAY[self.number % 4 == 3][at]

    @property
    def prefixes(self) -> tuple[IPNetwork, ...]:
        """Return the prefixes that it claims."""
        return tuple(network.nth(self.number) for network in CONFIG.networks)

    def key(self, epoch: int) -> bytes:
        """Return the public key of an epoch; there is no private one."""
        return hashlib.sha256(f"{self.node_id}/{epoch}".encode()).digest()

    @property
    def record(self) -> Record:
        """Return its record, with address and keys."""
        return Record(
            self.node_id,
            self.key(self.epoch),
            self.key(self.epoch + 1) if self.announced else None,
            self.epoch,
            self.address,
            allocs.WIREGUARD_PORT,
            self.prefixes,
            _VERSION,
        )

    def claim(self) -> Transaction:
        """Return its first transaction, which makes it a member."""
        member_key = keys.member(self.node_id)
        claims = [keys.claim(prefix) for prefix in self.prefixes]
        value = records.encode_claim(self.node_id)
        member = records.encode_member(Member(False, 0, self.prefixes))
        return Transaction(
            dict.fromkeys([member_key, *claims], 0),
            (*(Put(key, value) for key in claims), Put(member_key, member)),
        )

    def publish(self) -> Transaction:
        """Return the transaction that writes its present record."""
        key = keys.node(self.node_id)
        put = Put(key, records.encode_record(self.record), self.lease)
        return Transaction({key: self.record_revision}, (put,))

    def remove(self) -> Transaction:
        """Return the transaction of `metroctl node remove`."""
        member = records.encode_member(Member(True, 0, ()))
        free = records.encode_claim("")
        return Transaction(
            {},
            (
                *(Put(keys.claim(prefix), free) for prefix in self.prefixes),
                Put(keys.member(self.node_id), member),
            ),
            (keys.node(self.node_id),),
        )

    def moved(self) -> Sim:
        """Return the node with another address."""
        return replace(self, moves=self.moves + 1)

    def rotated(self) -> Sim:
        """Return the node after the next step of a rotation."""
        if self.announced:
            return replace(self, announced=False, epoch=self.epoch + 1)
        return replace(self, announced=True)


def numbers(taken: Collection[IPNetwork]) -> Iterator[int]:
    """Yield the numbers of free prefixes, until there are no more."""
    held = set(taken)
    for number in range(MAX_NODES):
        if not held.intersection(network.nth(number) for network in CONFIG.networks):
            yield number


def batches(sims: Sequence[Sim]) -> Iterator[tuple[tuple[Sim, ...], Transaction]]:
    """Yield joins, many in a transaction: the result is the state of an old
    cluster, written in seconds.
    """
    each = MAX_OPERATIONS // 4
    for at in range(0, len(sims), each):
        some = tuple(sims[at : at + each])
        joined = [step for sim in some for step in (sim.claim(), sim.publish())]
        compare = {key: revision for step in joined for key, revision in step.compare.items()}
        yield some, Transaction(compare, tuple(put for step in joined for put in step.puts))
