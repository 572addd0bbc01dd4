# SPDX-License-Identifier: Apache-2.0
"""Tracked flows that parts make stale.

The kernel looks up a host port only for the first packet of a flow. A client
that goes on sending keeps its flow, so its packets go where the first one went:
past a port that was mapped since, or to a workload that is gone. Without the
entry the next packet is looked up.

    correct   after a beginning, delete those that go elsewhere
    forget    after an end, delete those that go to the workload

Others stay, and so do flows that began a moment ago and are right: to delete
the entry of a flow that is well harms it, see osbase.conntrack.delete.
"""

import logging
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from metropolis.node.core.network.workloads.datapath.interface import Record
from metropolis.node.core.network.workloads.datapath.parts import HostFacts, Parts
from metropolis.node.core.network.workloads.validate import show
from osbase.netlink.errors import NetlinkError
from osbase.netlink.transport import SocketPool

if TYPE_CHECKING:
    from osbase.conntrack.delete import Choice, Filter

log = logging.getLogger(__name__)


def correct(parts: Parts, record: Record, sockets: SocketPool, host: HostFacts) -> None:
    """Delete the entries of flows that an attachment which begins should have,
    and that go elsewhere. An error is logged, since the attachment is as it
    should be without it. sockets: netfilter's.
    """
    filters = list(parts.flows(record, begins=True))
    if filters:
        _delete(record, filters, sockets, parts.stale(record, host))


def forget(parts: Parts, records: Iterable[Record], sockets: SocketPool) -> None:
    """Delete the entries of flows to attachments that have ended. For the rest
    see `correct`.
    """
    having = [one for one in records if one.parts]
    filters = [one for record in having for one in parts.flows(record, begins=False)]
    if filters:
        _delete(having[0], filters, sockets)


def _delete(
    record: Record,
    filters: Sequence[Filter],
    sockets: SocketPool,
    choose: Choice | None = None,
) -> None:
    from osbase.conntrack import delete  # most attachments need it not

    try:
        delete.delete(filters, sockets, choose)
    except (NetlinkError, OSError) as error:
        log.warning("workload %s: flows to its ports stay: %s", show(record.workload_id), error)
