# SPDX-License-Identifier: Apache-2.0
"""Removals: first no packet passes a link any more, later it is deleted.

    cut_off  its clsact gets blocks that drop whatever it receives or sends
    remove   it is set down and into the removal group; one request deletes
             the group

Deleting links takes an RCU grace period, 10 to 20 ms, per request and not per
link. Cutting off takes none, and as long with 2,000 links as with one: see
osbase.netlink.qdisc. So a Detach cuts off, and links are deleted behind its
answer, many at a time. Nothing but the link holds the mark: it survives a
restart and `nft flush ruleset`, and ends with the link. What waits in a queue
of the link is dropped, since the kernel empties these when a clsact comes.

A companion's queue is emptied then, and it is deleted with its link: see
companions. The clsact of a link with a companion is ours, and is replaced.

A link is not cut off if another program has a clsact or an ingress qdisc on it,
or a tcx program, which would come before our filters: see osbase.netlink.tcx.

Others wait for the kernel's lock (RTNL) while a group is deleted. So `at_once`
says how many links that should be at most.
"""

import errno
import logging
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Final

from metropolis.node import allocs
from metropolis.node.core.network.workloads.datapath import companions, names
from metropolis.node.core.network.workloads.datapath.host import Host, refusals
from metropolis.node.core.network.workloads.datapath.interface import Record
from metropolis.node.core.network.workloads.datapath.parts import NO_PARTS, Parts
from metropolis.node.core.network.workloads.errors import KernelRefused, WorkloadError
from metropolis.node.core.network.workloads.validate import show
from osbase.netlink.altnames import del_link_by_altname, retire_by_altname
from osbase.netlink.errors import BatchError, NetlinkError
from osbase.netlink.link import del_link, del_links_by_group
from osbase.netlink.message import Request
from osbase.netlink.qdisc import add_clsact, drop_all
from osbase.netlink.tcx import Tcx

log = logging.getLogger(__name__)

_BLOCKS: Final = allocs.REMOVAL_BLOCKS
_LOCKED_S: Final = 0.010
"""For which the kernel's lock may be held."""
_AT_ONCE: Final = range(8, 65)
"""Links: fewer cost a grace period each, more are slow to be answered for."""
_SHARE: Final = 3
"""A deletion holds the lock about as many times as long as setting down."""


class Remover:
    """See the module. Thread-safe."""

    def __init__(self, host: Host, parts: Parts = NO_PARTS) -> None:
        self._host = host
        self._parts = parts
        self._mutex = threading.Lock()  # the group is of one removal at a time
        self._at_once = 16
        self._one_by_one = False  # and it was logged
        self._tcx = Tcx()

    @property
    def at_once(self) -> int:
        """How many links a removal should delete at most."""
        return self._at_once

    def cut_off(self, records: Sequence[Record]) -> None:
        """See Datapath. The kernel names links by their index only: ours are
        random numbers, which no other link gets by chance.
        """
        for one in records:
            if self._tcx.is_on(one.host_ifindex):
                raise _refused(one, f"{one.host_interface} has a tcx program of others")
        uncut = self._open(records)
        before = self._free(uncut)
        requests = [add_clsact(one.host_ifindex, one.host_interface, *_BLOCKS) for one in uncut]
        # Even if all are cut off: the drops may have been refused then.
        requests += map(drop_all, _BLOCKS)
        try:
            self._host.batch(*before, *requests)
        except BatchError as error:
            self._judge(records, uncut, error, len(before))
        except (NetlinkError, OSError) as error:
            raise _refused(records[0], error) from error

    def _open(self, records: Sequence[Record]) -> Sequence[Record]:
        """Return those that are not cut off, if one of them has a companion:
        without its clsact such a link would be open for a moment.
        """
        if not self._having(records):
            return records
        with refusals("look for links that are cut off"):
            done = self._host.cut_off()
        return [one for one in records if one.host_ifindex not in done]

    def _free(self, records: Sequence[Record]) -> list[Request]:
        """Return what comes before a cut: links with companions have a clsact,
        and packets that wait in the companion.
        """
        having = self._having(records)
        if not having:
            return []
        from osbase.netlink.shaping import del_clsact, del_token_bucket

        return [
            request
            for one in having
            for request in (
                del_clsact(one.host_ifindex, one.host_interface),
                del_token_bucket(companions.index_of(one.host_ifindex), companions.name_of(one)),
            )
        ]

    def _having(self, records: Sequence[Record]) -> list[Record]:
        return [one for one in records if one.parts and self._parts.companion(one)]

    def _judge(
        self,
        records: Sequence[Record],
        uncut: Sequence[Record],
        refused: BatchError,
        before: int,
    ) -> None:
        """Raise if a link is there that was not cut off. uncut: those that got
        a clsact now. before: requests whose errors do not matter: what they
        remove may be gone.
        """
        for error in refused.errors:
            if error.index < before:
                continue
            if (at := error.index - before) < len(uncut):
                if error.errno != errno.ENODEV:
                    raise _refused(uncut[at], error) from refused
            elif error.errno != errno.EEXIST and self._any_left(records):
                raise _refused(records[0], error) from refused

    def _any_left(self, records: Sequence[Record]) -> bool:
        """Return whether a link is there. If all are gone, even since the begin
        of the batch, so may be the blocks.
        """
        with refusals("look for links"):
            return any(self._host.link(one.host_ifindex) is not None for one in records)

    def remove(self, records: Sequence[Record]) -> None:
        """See Datapath."""
        with self._mutex:
            try:
                self._remove(records)
            except (NetlinkError, OSError) as error:
                raise _refused(records[0], error) from error

    def _remove(self, records: Sequence[Record]) -> None:
        """Requests name links by their records, or by another name of theirs:
        another link may have got the index since.
        """
        began = time.thread_time()  # without waits for others, who have RTNL
        group = allocs.LINK_GROUP_REMOVAL
        missing: list[Record] = []
        having = self._having(records)
        retired = {companions.index_of(one.host_ifindex): companions.name_of(one) for one in having}
        if retired:
            from osbase.netlink.shaping import retire

            retirements = [retire(index, name, group) for index, name in retired.items()]
            self._host.batch(*retirements, tolerate={errno.ENODEV})
        try:
            self._host.batch(
                *[retire_by_altname(names.record_altname(one), group) for one in records]
            )
        except BatchError as refused:
            for error in refused.errors:
                if error.errno != errno.ENODEV:
                    raise _refused(records[error.index], error) from refused
                missing.append(records[error.index])
        each = (time.thread_time() - began) / len(records)
        fitting = int(_LOCKED_S / (each * _SHARE)) if each > 0 else _AT_ONCE[-1]
        self._at_once = min(max(fitting, _AT_ONCE[0]), _AT_ONCE[-1])
        for record in missing:
            self._remove_without_records(record)
        if len(missing) < len(records) or retired:
            self._delete([one for one in records if one not in missing], retired)

    def _delete(self, retired: Sequence[Record], companions_retired: Mapping[int, str]) -> None:
        try:
            self._host.batch(del_links_by_group(allocs.LINK_GROUP_REMOVAL), tolerate={errno.ENODEV})
            self._one_by_one = False
        except BatchError as refused:
            # Others put a link there that nobody can delete, such as hardware.
            if not self._one_by_one:
                log.warning("%s; links are deleted one by one", refused)
            self._one_by_one = True
            requests = [del_link_by_altname(names.record_altname(one)) for one in retired]
            requests += [del_link(index, name) for index, name in companions_retired.items()]
            self._host.batch(*requests, tolerate={errno.ENODEV})

    def _remove_without_records(self, record: Record) -> None:
        """Delete a link that is not gone: an attach that was not undone, or
        others took its records away.
        """
        link = self._host.link(record.host_ifindex)
        if link is None:
            return
        if (
            names.is_link_of(record, link.name, link.altnames)
            or link.ifindex in self._host.cut_off()
        ):
            self._host.batch(del_link(link.ifindex, link.name), tolerate={errno.ENODEV})


def _refused(record: Record, error: object) -> WorkloadError:
    return KernelRefused(f"detach {show(record.workload_id)}: {error}")
