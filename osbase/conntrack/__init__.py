# SPDX-License-Identifier: Apache-2.0
"""The kernel's table of tracked flows: how full it is, and which hosts fill it.

    count(), limit()     two small reads, in the calling thread's namespace
    raise_limit(most)    for the whole machine, from the first namespace only
    census()             one dump: entries by their original source
    flush()              delete all entries
    delete               a module: delete some, by protocol, port, destination
    marks                a module: list flows by their mark, delete or mark them
    sources              parse the messages of a dump                   pure
    ctnetlink            numbers of messages

A flow's original source is the address that sent its first packet, before any
translation. So it identifies the host that made the entry.

Why not /proc/net/nf_conntrack: a line of text per entry costs ten times as
much, and some kernels are built without it. Why not libnetfilter_conntrack: it
makes an object of all attributes, where one address is needed.

Limits: the whole table is dumped, since the kernel's filter for dumps cannot
count. Events are not implemented.

Needs the kernel modules nf_conntrack and, for the census, nf_conntrack_netlink
(loaded on demand); the census needs CAP_NET_ADMIN.
"""

from osbase.conntrack.sources import Census
from osbase.conntrack.table import ConntrackError, census, count, flush, limit, raise_limit

__all__ = ["Census", "ConntrackError", "census", "count", "flush", "limit", "raise_limit"]
