# SPDX-License-Identifier: Apache-2.0
"""The queueing disciplines of links, as parts compare them with their own."""

from __future__ import annotations

import errno
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from osbase.netlink.errors import BatchError
from osbase.netlink.qdisc import dump_qdiscs

if TYPE_CHECKING:
    from metropolis.node.core.network.workloads.datapath.host import Host
    from osbase.netlink.link import Link
    from osbase.netlink.shaping import TokenBucket

# The link is gone, or has no clsact.
_ABSENT = {errno.ENODEV, errno.EINVAL, errno.ENOENT}


@dataclass(frozen=True, slots=True)
class Queues:
    """buckets: the limits by index of the link. redirects: where what a link
    receives goes, by its index. links: by index; companions, at least.
    """

    buckets: Mapping[int, TokenBucket] = field(default_factory=dict)
    redirects: Mapping[int, int] = field(default_factory=dict)
    links: Mapping[int, Link] = field(default_factory=dict)


def look(host: Host, redirecting: Collection[int], links: Mapping[int, Link]) -> Queues:
    """Return what the kernel has. redirecting: the indexes of links whose
    filters are read: a dump for each. Raises NetlinkError and OSError.
    """
    from osbase.netlink.shaping import (
        dump_filters,
        is_filter,
        parse_redirect,
        parse_token_bucket,
    )

    buckets: dict[int, TokenBucket] = {}
    redirects: dict[int, int] = {}
    with host.sockets.socket() as sock:
        for message in sock.dump(dump_qdiscs()):
            if (found := parse_token_bucket(message)) is not None:
                buckets[found[0]] = found[1]
        for index in redirecting:
            try:
                messages = sock.dump(dump_filters(index))
            except BatchError as error:
                if error.errors[0].errno not in _ABSENT:
                    raise
                continue
            # The first one decides, and it may be another program's.
            first = next(filter(is_filter, messages), None)
            if first is not None and (to := parse_redirect(first)) is not None:
                redirects[index] = to
    return Queues(buckets, redirects, links)
