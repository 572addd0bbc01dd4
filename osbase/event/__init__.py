# SPDX-License-Identifier: Apache-2.0
"""Newest-value events: one part of a process publishes a state to others.

    prefixes = event.Value[tuple[IPv4Network, ...]]("prefixes")

    prefixes.set(new)                       any thread, any time

    watcher = prefixes.watch()              one for each consumer, in one task
    while True:
        newest = await watcher.get()        the first get: the current value

A watcher always gets the newest value and may miss those between: a consumer
slower than its producer works on the present state, never on a backlog. Use it
for state (an address, a lease, a set of prefixes), not for events that each
matter (requests, log lines).

Why not asyncio.Queue: it keeps every value, so a slow or restarted consumer
sees stale ones, and the producer must know the queue of each consumer. Why not
asyncio.Condition or asyncio.Event: neither may be set from another thread, the
value and "have I seen it" must be stored beside them, and a condition must be
locked to be notified. Callbacks run on the setter's thread, which also gets
their errors.

For many values of a kind, `event.Table` has the newest value by key: a watcher
gets the changes since its last read, however large the table is.

Values must not be changed after they are set (use frozen dataclasses, tuples):
threads share them without copying.
"""

from __future__ import annotations

from osbase.event.table import Table, TableWatcher
from osbase.event.value import Value, Watcher

__all__ = ["Table", "TableWatcher", "Value", "Watcher"]
