# SPDX-License-Identifier: Apache-2.0
"""A gRPC server for handlers that block for about as long as a call costs.

    client ── HTTP/2 ──> C-core ──> [completion queue] ── a worker: takes the
                               ──> [completion queue]      call, reads, runs
                               ──> [completion queue]      the handler, answers

Each thread has its own completion queue and serves a call from its arrival to
its answer, so there is no hand-over between threads. There are three kinds of
methods: blocking ones share the workers; quick ones have threads that never run
anything else and so always answer; streams have a thread each. A blocking
method may have its own workers.

Why not grpc.server: it uses the same C-core, and takes twice as long. There one
thread polls a queue for all; it hands a call to a pool, whose thread asks it
for the message, waits for it, and lets it send the answer: four hand-overs of
Python's interpreter lock and as many wake-ups, 0.2 of 0.5 ms on two cores. Why
not grpc.aio: it is 0.1 ms slower still. Why not our own HTTP/2: it is 0.08 ms
faster than this, but a protocol stack to maintain (see PERFORMANCE.md).

The price: grpc._cython.cygrpc is a private module. grpcio is pinned by hash,
and `private` lists all used names with their signatures; a test compares them.
After a change in grpcio, `choose` takes `stock`, the same server on
grpc.server, which passes the same tests.

Clients are limited before they cost a thread: a call of a quick method or a
stream has none before its message arrives, streams are counted, and a worker
gives up a call without a message when other calls wait. A failure while a call
is served fails only that call, also when a thread cannot start. All deadlines
are by the monotonic clock.
"""
