# SPDX-License-Identifier: Apache-2.0
"""A gRPC server for handlers that block for about as long as a call costs.

    client ── HTTP/2 ──> C-core ──> [completion queue] ── a worker: takes the
                               ──> [completion queue]      call, reads, runs
                               ──> [completion queue]      the handler, answers

Each thread has a completion queue of its own and stays with a call from its
arrival to its answer, so within the process nothing is handed over. Methods
are of three kinds: blocking ones share the workers, quick ones have threads
that never run anything else and so always answer, streams have a thread each.
A blocking method may have workers of its own.

Why not grpc.server: it is the same C-core, and takes twice as long. There one
thread polls a queue for all; a call is handed to a pool, which asks that thread
for the message, waits for it, and has it send the answer: four hand-overs of
Python's interpreter lock and as many wake-ups, 0.2 of 0.5 ms on two cores. Nor
grpc.aio: 0.1 ms slower still. Nor HTTP/2 of our own: 0.08 ms faster than this,
for a protocol stack to maintain (see PERFORMANCE.md).

The price: grpc._cython.cygrpc is a private module. grpcio is pinned by hash,
and all that is used of it is named in `private`, with its signatures, and
compared by a test. Where something has changed, `choose` takes `stock`, the
same server on grpc.server, which passes the same tests.

What clients do is bounded before a thread is made for it: a call of a quick
method or a stream has none before its message is there, streams are counted,
and a worker whose call has no message gives it up when others wait. Whatever
fails while a call is served fails that call: also a thread that cannot start.
All deadlines are by the monotonic clock.
"""
