# SPDX-License-Identifier: Apache-2.0
"""The kernel's table of tracked flows: how full it is, and by whom.

    count(), limit()     two small reads; of the calling thread's namespace
    raise_limit(most)    of the whole machine, from the first namespace only
    census()             one dump: entries by their original source
    flush()              forget all
    sources              what a dump's messages say                     pure

A flow's original source is the address that sent its first packet, before any
translation, so it says who made the entry.

Why not /proc/net/nf_conntrack: a line of text an entry costs ten times as much,
and kernels are built without it. Why not libnetfilter_conntrack: it makes an
object of all that an entry has, where one address is needed.

Limits: the whole table is dumped, since the kernel's filter for dumps cannot
count. Events, and deletions of some, are not here; nothing uses them.

Needs the kernel modules nf_conntrack and, for the census, nf_conntrack_netlink
(loaded when asked for); the census needs CAP_NET_ADMIN.
"""

from osbase.conntrack.sources import Census
from osbase.conntrack.table import ConntrackError, census, count, flush, limit, raise_limit

__all__ = ["Census", "ConntrackError", "census", "count", "flush", "limit", "raise_limit"]
