# SPDX-License-Identifier: Apache-2.0
"""Newest-value events: how one part of a process tells others what is so now.

    prefixes = event.Value[tuple[IPv4Network, ...]]("prefixes")

    prefixes.set(new)                       any thread, any time

    watcher = prefixes.watch()              each consumer its own, one task
    while True:
        newest = await watcher.get()        the first get: the current value

A watcher always gets the newest value and may miss those between: a consumer
slower than its producer works on what is true, never on a backlog. Use it for
state (an address, a lease, a set of prefixes), not for occurrences that each
matter (requests, log lines).

Why not asyncio.Queue: it keeps every value, so a consumer that was restarted
or is slow sees stale ones, and each consumer needs a queue of its own that
the producer must know. Why not asyncio.Condition or asyncio.Event: neither may
be set from another thread, both need the value and "have I seen it" kept
beside them, and a condition must be locked to be notified. Callbacks run
on the setter's thread and with its errors.

Of many things of a kind, `event.Table` is the newest value by key: its watchers
get what changed since they looked, however large the rest is.

Values must not be changed after they were set (frozen dataclasses, tuples):
they are shared between threads without copying.
"""

from __future__ import annotations

from osbase.event.table import Table, TableWatcher
from osbase.event.value import Value, Watcher

__all__ = ["Table", "TableWatcher", "Value", "Watcher"]
