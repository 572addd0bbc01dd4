# SPDX-License-Identifier: Apache-2.0
"""Bandwidth limits: token buckets on the host's side of a link. Pure.

    to the workload     a token bucket at the root of its link on the host
    from the workload   what this link receives is redirected to a companion,
                        an ifb with a token bucket at its root

So a limit holds for every peer: outside, the node, pods of the same node. The
workload cannot change it, since nothing of it is in its namespace.

The bucket counts bytes of Ethernet, so its rate is a little more than that of
IP packets, for packets of the MTU. Its burst is worth 4 ms of the rate, but two
packets at least, and its queue 25 ms, but ten packets at least: a longer queue
is only waiting.

The text of the part is in workloads.bandwidth.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Final

from metropolis.node import allocs
from metropolis.node.core.network.workloads.bandwidth import (
    BURST_MS,
    FIELD,
    LETTER,
    NO_LIMITS,
    Limit,
    parse,
)
from metropolis.node.core.network.workloads.datapath import checks, companions
from metropolis.node.core.network.workloads.datapath.parts import LinkPart
from metropolis.node.core.network.workloads.model import Finding

if TYPE_CHECKING:
    from metropolis.node.core.network.workloads.datapath.interface import Record
    from metropolis.node.core.network.workloads.datapath.queues import Queues
    from osbase.netlink.message import Request
    from osbase.netlink.shaping import TokenBucket

_ETHERNET: Final = 14
_QUEUE_MS: Final = 25
_BURST_PACKETS: Final = 2
_QUEUE_PACKETS: Final = 10


class BandwidthLimits(LinkPart):
    """See the module."""

    letter = LETTER
    name = FIELD
    queues = True

    def check(self, text: str) -> None:
        """See Part."""
        parse(text)

    def companion(self, text: str) -> bool:
        """See LinkPart."""
        return bool(parse(text).egress.rate)

    def requests(self, record: Record, text: str) -> Sequence[Request]:
        """See LinkPart. Each link has its bucket before it is up: the kernel
        waits for packets under way when it changes that of another.
        """
        from osbase.netlink import shaping  # few attaches need it
        from osbase.netlink.link import set_link_up

        limits, index, name = parse(text), record.host_ifindex, record.host_interface
        made: list[Request] = []
        if limits.ingress.rate:
            made.append(shaping.put_token_bucket(index, name, bucket(limits.ingress, record.mtu)))
        if limits.egress.rate:
            to, other = companions.index_of(index), companions.name_of(record)
            made += [
                shaping.put_ifb(to, other, allocs.LINK_GROUP_COMPANION),
                shaping.put_token_bucket(to, other, bucket(limits.egress, record.mtu)),
                set_link_up(to, other),
                shaping.put_clsact(index, name),
                shaping.put_redirect(index, name, to),
            ]
        return made

    def change(self, record: Record, before: str, now: str) -> Sequence[Request]:
        """See LinkPart."""
        from osbase.netlink import shaping
        from osbase.netlink.link import del_link

        was, limits = (parse(one) if one else NO_LIMITS for one in (before, now))
        made = list(self.requests(record, now)) if now else []
        index, name = record.host_ifindex, record.host_interface
        if was.ingress.rate and not limits.ingress.rate:
            made.append(shaping.del_token_bucket(index, name))
        if was.egress.rate and not limits.egress.rate:
            # The redirect first: what goes to a link that is gone is dropped.
            made.append(shaping.del_clsact(index, name))
            made.append(del_link(companions.index_of(index), companions.name_of(record)))
        return made

    def queue_findings(self, record: Record, text: str, queues: Queues) -> Iterable[Finding]:
        """See LinkPart."""
        limits, index, name = parse(text), record.host_ifindex, record.host_interface
        if limits.ingress.rate:
            yield from _differs(index, name, limits.ingress, record.mtu, queues)
        if not limits.egress.rate:
            return
        to, other = companions.index_of(index), companions.name_of(record)
        link = queues.links.get(to)
        if link is None or companions.owner(link) != index:
            yield Finding(f"link {other}", f"index {to}", checks.NOTHING)
            return
        if not link.up:
            yield Finding(f"state of {other}", "up", "down")
        yield from _differs(to, other, limits.egress, record.mtu, queues)
        if queues.redirects.get(index) != to:
            found = queues.redirects.get(index)
            where = checks.NOTHING if found is None else f"to link {found}"
            yield Finding(f"redirect of {name}", f"to link {to}", where)


def bucket(limit: Limit, mtu: int) -> TokenBucket:
    """Return the bucket of a limit."""
    from osbase.netlink.shaping import BURST_STEP, BYTES_MAX, TokenBucket

    frame = mtu + _ETHERNET
    rate = limit.rate * frame // (8 * mtu)
    burst = rate * BURST_MS // 1000
    if limit.burst:
        burst = min(burst, limit.burst // 8)
    burst = -(-max(burst, _BURST_PACKETS * frame) // BURST_STEP) * BURST_STEP
    queue = max(burst + rate * _QUEUE_MS // 1000, _QUEUE_PACKETS * frame)
    return TokenBucket(rate, min(burst, BYTES_MAX), min(queue, BYTES_MAX))


def _differs(index: int, name: str, limit: Limit, mtu: int, queues: Queues) -> Iterator[Finding]:
    wanted, found = bucket(limit, mtu), queues.buckets.get(index)
    if found is None:
        yield Finding(f"limit of {name}", f"{limit.rate} bit/s", checks.NOTHING)
    elif not wanted.is_like(found):
        if wanted.rate == found.rate:
            # It is in the burst or the queue; the latter is not in a request.
            texts = [
                f"{limit.rate} bit/s, burst {8 * one.burst} bit, queue {8 * one.queue} bit"
                for one in (wanted, found)
            ]
        else:
            texts = [f"{limit.rate} bit/s", f"{_bits(found.rate, mtu)} bit/s"]
        yield Finding(f"limit of {name}", *texts)


def _bits(rate: int, mtu: int) -> int:
    """Return the bits of IP packets per second at a rate of a bucket."""
    return round(rate * 8 * mtu / (mtu + _ETHERNET))


PART: Final = BandwidthLimits()
