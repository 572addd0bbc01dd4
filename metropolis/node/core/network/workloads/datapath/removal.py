# SPDX-License-Identifier: Apache-2.0
"""Removals: the queue of calls, and the requests that delete links.

Calls that wait at the same time are served by one removal.

The kernel waits for an RCU grace period, 10 to 20 ms, per request and not per
link. So one waiting call, the leader, removes the links of all calls that wait;
a call that arrives meanwhile waits for the next removal. The call that has
waited longest leads it: no thread works for others after its own links are
gone.

Calls that arrive together come again together: a runtime that removes pods on
16 threads sends the next 16 calls when it has 16 answers. A leader that began
at once would go alone, and the other 15 after it: two grace periods for 16
links. So, shortly after a removal for several calls, a leader waits for as many
as there were: while they keep arriving, and no longer than a quarter of the
time of the last removal. A single call never waits.

    alone:    [1]      10 ms later  [1]
    together: [1] [15] wait [16] wait [16]

While one removal waits for its grace period, the kernel can take links down for
another. So there are two lanes: if enough calls wait, a second removal begins
beside the first. On 2 CPUs, threads that attach and detach in turn do 8 to 12 %
more with it, at 16, 64 and 128 at once; threads that only detach do 30 % less
at 16, and the same from 64 on.

Why not one thread that drains a queue: the hand-over to it and back costs each
call 29 us, and a single call gains nothing for that. Many at once take the same
time as here. It would also have to be started and ended.
"""

import errno
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

from metropolis.node import allocs
from metropolis.node.core.network.workloads.datapath import names
from metropolis.node.core.network.workloads.datapath.host import Host
from metropolis.node.core.network.workloads.datapath.interface import Record
from metropolis.node.core.network.workloads.errors import KernelRefused, WorkloadError
from metropolis.node.core.network.workloads.validate import show
from osbase.netlink.altnames import del_link_by_altname, set_group_by_altname
from osbase.netlink.errors import BatchError, NetlinkError
from osbase.netlink.link import del_link, del_links_by_group

log = logging.getLogger(__name__)

AT_ONCE = 256  # links: others must not make a call wait much longer
_GAP_S = 0.001  # a leader that sees no call arrive for so long begins
_LATELY_S = 0.01  # a leader begins at once if the last removal ended before
_SHARE = 0.25  # of the time of the last removal: a leader's longest wait
_BESIDE_MIN = 8  # calls that wait; also half as many as are being served


class _Call:
    """A call that removes records. error: of the first record that could not be
    removed. leads: it has to lead a removal.
    """

    __slots__ = ("error", "leads", "records", "woken")

    def __init__(self, records: Sequence[Record]) -> None:
        self.records = records
        self.error: WorkloadError | None = None
        self.leads = False
        self.woken = threading.Lock()
        self.woken.acquire()


class Removals:
    """The queue of calls. remove: removes the records' links, and returns
    errors by host index. It gets the number of a lane, from 0; one thread at a
    time calls it for a lane. It must not raise.
    """

    def __init__(
        self, remove: Callable[[list[Record], int], dict[int, WorkloadError]], lanes: int
    ) -> None:
        self._remove = remove
        # The mutex guards all attributes below; `_came` uses it, too.
        self._mutex = threading.Lock()
        self._came = threading.Condition(self._mutex)
        self._waiting: deque[_Call] = deque()
        self._gathering = False  # a leader is chosen, and has not begun
        self._free = list(range(lanes))
        self._lanes = lanes
        self._removing = 0  # calls that are being served
        self._expected = 0  # calls that a leader waits for
        self._took_s = 0.0
        self._ended_s = 0.0

    def remove(self, records: Sequence[Record]) -> None:
        """Return when their links are removed. Raises the first error."""
        call = _Call(records)
        with self._mutex:
            self._waiting.append(call)
            leader = self._choose()
            if self._gathering and len(self._waiting) >= self._expected:
                self._came.notify()
        if leader is not None and leader is not call:
            leader.woken.release()
        if leader is not call:
            call.woken.acquire()
        if call.leads:
            self._lead()
        if call.error is not None:
            raise call.error

    def _choose(self) -> _Call | None:
        """Return the call that has to lead a removal now. Under the mutex."""
        if self._gathering or not self._waiting:
            return None
        if len(self._free) < self._lanes:
            enough = max(_BESIDE_MIN, self._removing // 2)
            if not self._free or len(self._waiting) < enough:
                return None
        self._gathering = True
        leader = self._waiting[0]
        leader.leads = True
        return leader

    def _lead(self) -> None:
        """Serve the calls that wait; the leader's own is the first."""
        with self._mutex:
            self._gather()
            taken = [self._waiting.popleft()]
            count = len(taken[0].records)
            while self._waiting and count + len(self._waiting[0].records) <= AT_ONCE:
                taken.append(self._waiting.popleft())
                count += len(taken[-1].records)
            self._gathering = False
            self._removing += len(taken)
            lane = self._free.pop()
        began = time.monotonic()
        failures = self._remove([record for call in taken for record in call.records], lane)
        for call in taken:
            errors = [failures.get(record.host_ifindex) for record in call.records]
            call.error = next((error for error in errors if error is not None), None)
        with self._mutex:
            self._ended_s = time.monotonic()
            self._took_s = self._ended_s - began
            self._free.append(lane)
            self._removing -= len(taken)
            self._expected = len(taken) + len(self._waiting)
            leader = self._choose()
        if leader is not None:
            leader.woken.release()
        for call in taken[1:]:
            call.woken.release()

    def _gather(self) -> None:
        """Wait for calls that should arrive soon. Under the mutex."""
        now = time.monotonic()
        until = now + self._took_s * _SHARE
        if now - self._ended_s > _LATELY_S:
            return
        while len(self._waiting) < self._expected and now < until:
            before = len(self._waiting)
            self._came.wait(min(_GAP_S, until - now))
            if len(self._waiting) == before:
                return
            now = time.monotonic()


class Remover:
    """Deletes links, for Removals.

    A single link is deleted by its record's name. Several are moved into the
    removal group of the lane, and one request deletes the group.
    """

    def __init__(self, host: Host) -> None:
        self._host = host

    def remove(self, records: list[Record], lane: int) -> dict[int, WorkloadError]:
        """Delete the links. Returns errors by host index; whatever is raised
        concerns every one of them.
        """
        try:
            return self._delete(records, allocs.LINK_GROUPS_REMOVAL[lane])
        except (NetlinkError, OSError) as error:
            refused = KernelRefused(f"detach: {error}")
        except Exception as error:
            log.exception("a removal failed")
            refused = KernelRefused(f"detach: unexpected {type(error).__name__}")
        return {record.host_ifindex: refused for record in records}

    def _delete(self, records: list[Record], group: int) -> dict[int, WorkloadError]:
        """Return errors by host index. The requests name links by their
        records, or by another name of theirs: another link may have got the
        index since.
        """
        if len(records) == 1:
            requests = [del_link_by_altname(names.record_altname(records[0]))]
        else:
            requests = [
                set_group_by_altname(names.record_altname(record), group) for record in records
            ]
            requests.append(del_links_by_group(group))
        try:
            self._host.batch(*requests)
        except BatchError as error:
            return self._after_refusal(records, error)
        return {}

    def _after_refusal(
        self, records: list[Record], refused: BatchError
    ) -> dict[int, WorkloadError]:
        failures: dict[int, WorkloadError] = {}
        for error in refused.errors:
            if error.index >= len(records):  # the group as a whole
                if error.errno != errno.ENODEV:
                    failed = KernelRefused(f"detach: {error}")
                    return {record.host_ifindex: failed for record in records}
                continue
            record = records[error.index]
            if error.errno == errno.ENODEV:
                # It is gone, or has no records: an attach that was not undone,
                # or others took them away.
                link = self._host.link(record.host_ifindex)
                if link is not None and names.is_link_of(record, link.name, link.altnames):
                    request = del_link(link.ifindex, link.name)
                    self._host.batch(request, tolerate={errno.ENODEV})
                continue
            operation = f"detach {show(record.workload_id)}"
            failures[record.host_ifindex] = KernelRefused(f"{operation}: {error}")
        return failures
