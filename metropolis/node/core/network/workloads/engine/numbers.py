# SPDX-License-Identifier: Apache-2.0
"""Numbers that are chosen here, since asking the kernel costs a round trip."""

import os
import random
from collections.abc import Collection, Iterator

from metropolis.node.core.network.workloads.datapath.interface import FIRST_PEER_INDEX

# Interface indexes: high ones, which the kernel does not reach by itself.
INDEX_MIN = 1 << 20
INDEX_MAX = 1 << 30
# Metric of the routes of a namespace's further interfaces: behind those of the
# first (0, in IPv6 1024), ours or another plugin's, and different for each.
_FURTHER_METRIC = 2048


def random_index() -> int:
    """Return an interface index that is most likely free."""
    return random.SystemRandom().randrange(INDEX_MIN, INDEX_MAX)


def index_numbers() -> Iterator[int]:
    """Yield interface indexes in a circle that begins at a random one."""
    index = random_index()
    while True:
        yield index
        index = index + 1 if index + 1 < INDEX_MAX else INDEX_MIN


def random_mac() -> bytes:
    """Return a locally administered unicast address, 6 bytes (IEEE 802)."""
    drawn = os.urandom(6)
    return bytes([drawn[0] & 0xFC | 0x02]) + drawn[1:]


def free_peer_index(taken: Collection[int]) -> int:
    """Return the first free interface index of a namespace, for an attachment.
    That of the first interface is only given to one that comes alone.
    """
    begin = FIRST_PEER_INDEX + 1 if taken else FIRST_PEER_INDEX
    return next(index for index in range(begin, INDEX_MIN) if index not in taken)


def further_metric(peer_ifindex: int) -> int:
    """Return the metric of the routes of a namespace's further interface."""
    return _FURTHER_METRIC + peer_ifindex
