# SPDX-License-Identifier: Apache-2.0
"""Tracked flows that parts make stale.

The kernel looks up a host port only for the first packet of a flow. A client
that goes on sending keeps its flow, so its packets go where the first one went:
past a port that was mapped since, or to a workload that is gone. Without the
entry the next packet is looked up.

    correct   after a beginning, delete those that go elsewhere
    forget    after an end, delete those that go to the workload
    forget_left_over   the same, if only its elements are left

Others stay: to delete the entry of a flow that is well harms it, see
osbase.conntrack.delete. So after a beginning flows that were led are looked at
one by one, which takes long, and only where they may be another workload's.
What was led to a workload that has ended is deleted with it, before its link
is: a start finds the link, and does it again.
"""

import contextlib
import logging
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from metropolis.node.core.network.workloads.datapath.elements import Found
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
    what = f"workload {show(record.workload_id)}: flows to its ports stay"
    with _logged(what):
        if filters := list(parts.flows(record, begins=True)):
            _delete(filters, sockets)
        if filters := parts.taken_over(record, host):
            _delete(filters, sockets, parts.stale(record, host))


def forget(parts: Parts, records: Iterable[Record], sockets: SocketPool) -> None:
    """Delete the entries of flows to attachments that have ended. For the rest
    see `correct`.
    """
    having = [one for one in records if one.parts]
    filters = [one for record in having for one in parts.flows(record, begins=False)]
    if filters:
        with _logged(f"workload {show(having[0].workload_id)}: flows to its ports stay"):
            _delete(filters, sockets)


def forget_left_over(parts: Parts, gone: Iterable[Found], sockets: SocketPool) -> None:
    """Delete the entries of flows that elements of no attachment led: its link
    went unseen. Another workload may get its address, and would get packets.
    """
    if filters := parts.left_over(gone):
        with _logged("flows to ports of nobody stay"):
            _delete(filters, sockets)


def _delete(filters: Sequence[Filter], sockets: SocketPool, choose: Choice | None = None) -> None:
    from osbase.conntrack import delete  # most attachments need it not

    delete.delete(filters, sockets, choose)


@contextlib.contextmanager
def _logged(what: str) -> Iterator[None]:
    try:
        yield
    except (NetlinkError, OSError) as error:
        log.warning("%s: %s", what, error)
