# SPDX-License-Identifier: Apache-2.0
"""Tracked flows that parts make stale.

The kernel looks up a host port only for the first packet of a flow. A client
that goes on sending keeps its flow, so its packets go where the first one went:
past a port that was mapped since, or to a workload that is gone. Without the
entry the next packet is looked up.
"""

import logging
from collections.abc import Iterable

from metropolis.node.core.network.workloads.datapath.interface import Record
from metropolis.node.core.network.workloads.datapath.parts import Parts
from metropolis.node.core.network.workloads.validate import show
from osbase.netlink.errors import NetlinkError
from osbase.netlink.transport import SocketPool

log = logging.getLogger(__name__)


def forget(
    parts: Parts, records: Iterable[Record], sockets: SocketPool, *, begins: bool = False
) -> None:
    """Delete the entries of the attachments' flows from the kernel's table. An
    error is logged, since the attachments are as they should be without it.
    sockets: netfilter's. begins: the attachments do; else they have ended.
    """
    having = [one for one in records if one.parts]
    filters = [one for record in having for one in parts.flows(record, begins=begins)]
    if not filters:
        return
    from osbase.conntrack import delete  # most attachments need it not

    try:
        delete.delete(filters, sockets)
    except (NetlinkError, OSError) as error:
        log.warning("workload %s: flows to its ports stay: %s", show(having[0].workload_id), error)
