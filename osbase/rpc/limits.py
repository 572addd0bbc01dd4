# SPDX-License-Identifier: Apache-2.0
"""What a server allows its clients, unless it is told otherwise.

C-core bounds the rest: calls that wait for a thread (1,000, then some and at
3,000 all are refused), the size of headers, frames that ask for answers.
"""

from collections.abc import Sequence

STREAMS = 32  # calls that are answered by many messages, at a time

_OPTIONS = {
    # Calls under way on one connection: a caller's own library makes further
    # ones wait. More than there ever are for good reason, since one of them may
    # be of a quick method.
    "grpc.max_concurrent_streams": 1000,
    "grpc.max_allowed_incoming_connections": 512,
    # So those that a client has forgotten, without a call, do not keep others
    # out for good. Clients connect again when they have something to ask.
    "grpc.max_connection_idle_ms": 60_000,
    # Until a connection has shown that it speaks HTTP/2; by default 120,000.
    "grpc.server_handshake_timeout_ms": 5000,
}


def with_limits(options: Sequence[tuple[str, int]]) -> list[tuple[str, int]]:
    """The options, and the limits that they do not set."""
    return list((_OPTIONS | dict(options)).items())
