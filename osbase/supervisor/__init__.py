# SPDX-License-Identifier: Apache-2.0
"""A tree of supervised asyncio tasks; a dead one restarts with its subtree.

    root
     +- network                 a runnable: async def run(ctx: Context) -> None
     |   +- uplink
     |   +- workloads
     |       +- server          dies -> restarted alone, after a back-off
     |       +- cni
     +- clock

The contract of a runnable
--------------------------

A runnable is an async function of one argument, its Context. It

- starts NEW. While NEW, and only then, it starts children: `ctx.run(name,
  runnable)`, or `ctx.run_group({name: runnable, ...})` for those that cannot
  live without each other. It never waits for a child; children communicate
  through osbase.event values.
- calls `ctx.signal_healthy()` as soon as it does its work. From then on its
  subtree is complete.
- either runs for ever, or calls `ctx.signal_done()` and returns: DONE. Its
  children live on, and it is not run again unless something above it dies.
- dies (DEAD) in every other case: it raises, or returns without having
  signalled done. So it reports an error by raising it.
- is cancelled (CANCELED) when something above it, or a member of its group,
  died, or at shutdown. It lets CancelledError pass, cleans up in `finally`,
  and takes no more than a few seconds for that.
- is called again, on the same object, after it died or was canceled: state
  outside its own frame survives.
- never blocks the event loop: kernel and disk work goes to threads.
- logs through `ctx.logger`, named by the path in the tree ("root.network").

When a runnable dies, its children, its group, and the children of its group
are cancelled, innermost first, and awaited. Then the group is started
again, after a back-off that doubles with every death and starts over once the
runnable has stayed alive long enough. Runnables above are not affected.

    NEW -> HEALTHY -> DONE            the runnable's own steps
     any but DEAD  -> DEAD            a death
     any           -> CANCELED        a death above or beside, or shutdown
     CANCELED, DEAD, DONE -> NEW      a restart

Why not asyncio.TaskGroup: there the first error ends the whole group and is
raised to the waiting task; a service restarts that part and leaves the rest
alone. Why not processes and an init: these parts share the engine, sockets and
imports of one process, and an import costs seconds on a slow machine. The init
handles the death of the interpreter.

What is in the log of a death: an error that the program expects, such as a port
that is in use, is one line with the cure, and is not repeated at each restart
(Supervisor's `expected`). Any other is an error of the program, and has its
traceback each time. At level debug each death has one.

Limits: one event loop, no supervision of threads, no remote view of the tree.
"""

from __future__ import annotations

from osbase.supervisor.backoff import Backoff
from osbase.supervisor.states import State
from osbase.supervisor.threads import in_thread
from osbase.supervisor.tree import Clock, Context, Runnable, Supervisor

__all__ = ["Backoff", "Clock", "Context", "Runnable", "State", "Supervisor", "in_thread"]
