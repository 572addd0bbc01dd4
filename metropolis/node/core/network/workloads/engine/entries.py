# SPDX-License-Identifier: Apache-2.0
"""Attachments in memory, and the tables that find them.

An attachment's life (any other step is an AssertionError):

                                               REPAIRING
                                                 ^   │
                                                 │   v
    (none) ─ reserve ─> ATTACHING ─ created ─> ATTACHED ─ remove ─> LEAVING
                            │                                        ^  │ │
                            └ undo failed ─> BROKEN ─── remove again ┘  │ │ cut
                                               ^                        │ │ off
                                               └── could not be removed ┘ v
                                                                     DETACHED

A DETACHED one is gone for callers: no packet passes its link, which is deleted
soon (removals), and only then are its addresses and names free. A restart
finds it so again.

An entry is dropped when its link is gone; if a call is busy with it, when the
step ends, so that what the call made meanwhile is removed, too. Not
thread-safe: the ledger owns the tables, and uses them under its mutex.
"""

import enum
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from metropolis.node.core.network.workloads.datapath.interface import Record
from metropolis.node.core.network.workloads.model import Attachment, first_hop, routes_of
from metropolis.node.core.network.workloads.validate import show


class State(enum.Enum):
    """See the picture above."""

    ATTACHING = enum.auto()
    ATTACHED = enum.auto()
    REPAIRING = enum.auto()
    LEAVING = enum.auto()
    DETACHED = enum.auto()
    BROKEN = enum.auto()


_NEXT: dict[State, set[State]] = {
    State.ATTACHING: {State.ATTACHED, State.BROKEN},
    State.ATTACHED: {State.REPAIRING, State.LEAVING},
    State.REPAIRING: {State.ATTACHED},
    State.BROKEN: {State.LEAVING},
    State.LEAVING: {State.BROKEN, State.DETACHED},
    State.DETACHED: set(),
}


IN_USE: Final = frozenset((State.ATTACHED, State.REPAIRING))
"""A workload has its attachment."""
BUSY: Final = frozenset((State.ATTACHING, State.REPAIRING, State.LEAVING, State.DETACHED))
"""A call, or the removals' thread, is busy with the link: if it is gone, that
ends the entry."""


@dataclass(slots=True, eq=False)
class Entry:
    """An attachment. Only the ledger changes it; others read it.

    gone: the link was removed while a call was busy with it; stays true unless
    the entry gets a new index. announced: watchers were notified of it.
    """

    record: Record
    state: State
    gone: bool = False
    announced: bool = False

    def move_to(self, state: State) -> None:
        """Change the state as the picture allows."""
        assert state in _NEXT[self.state], (self.state, state)
        self.state = state


class Tables:
    """Entries by workload and interface, by network namespace, by index."""

    def __init__(self) -> None:
        self._by_workload: dict[str, dict[str, Entry]] = {}
        self._by_netns: dict[int, dict[str, Entry]] = {}  # by cookie
        self._by_index: dict[int, Entry] = {}

    def add(self, entry: Entry) -> None:
        """Add an entry whose names and index are free."""
        record = entry.record
        self._by_workload.setdefault(record.workload_id, {})[record.if_name] = entry
        self._by_netns.setdefault(record.netns_cookie, {})[record.if_name] = entry
        self._by_index[record.host_ifindex] = entry

    def drop(self, entry: Entry) -> bool:
        """Drop an entry. Returns whether it was there."""
        record = entry.record
        if self._by_index.pop(record.host_ifindex, None) is None:
            return False
        _discard(self._by_workload, record.workload_id, record.if_name)
        _discard(self._by_netns, record.netns_cookie, record.if_name)
        return True

    def replace(self, entry: Entry, record: Record) -> None:
        """Give an entry a record with another host index."""
        del self._by_index[entry.record.host_ifindex]
        entry.record = record
        self._by_index[record.host_ifindex] = entry

    def of_workload(self, workload_id: str) -> Mapping[str, Entry]:
        """Return a workload's entries, by their interface's name."""
        return self._by_workload.get(workload_id, {})

    def in_netns(self, cookie: int) -> Mapping[str, Entry]:
        """Return a namespace's entries, by their interface's name."""
        return self._by_netns.get(cookie, {})

    def at_index(self, ifindex: int) -> Entry | None:
        """Return the entry whose link on the host has this index."""
        return self._by_index.get(ifindex)

    def __iter__(self) -> Iterator[Entry]:
        for entries in self._by_workload.values():
            yield from entries.values()


def _discard[K](table: dict[K, dict[str, Entry]], key: K, name: str) -> None:
    inner = table.get(key)
    if inner is not None:
        inner.pop(name, None)
        if not inner:
            del table[key]


def owner_text(workload_id: str) -> str:
    """Return the owner of an address or a name, for messages."""
    return f"workload {show(workload_id)}"


def attachment_of(record: Record) -> Attachment:
    """Return the record's part that callers see."""
    versions = [ip.version for ip in record.ips]
    return Attachment(
        workload_id=record.workload_id,
        if_name=record.if_name,
        ips=record.ips,
        mac=record.mac,
        host_interface=record.host_interface,
        host_ifindex=record.host_ifindex,
        mtu=record.mtu,
        gateways=tuple([first_hop(version) for version in versions]),
        routes=routes_of(versions),
        owner=record.owner,
        parts=record.parts,
    )
