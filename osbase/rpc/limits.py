# SPDX-License-Identifier: Apache-2.0
"""Default limits of a server for its clients.

C-core limits the rest: calls that wait for a thread (it refuses some from 1,000
on, and all from 3,000), the size of headers, frames that ask for answers.
"""

from collections.abc import Sequence

STREAMS = 32  # streaming calls at a time

_OPTIONS = {
    # Calls under way on one connection: the client's library makes further ones
    # wait. It is higher than any sensible use, since one of them may be of a
    # quick method.
    "grpc.max_concurrent_streams": 1000,
    "grpc.max_allowed_incoming_connections": 512,
    # So forgotten connections without a call do not keep others out for good.
    # Clients connect again for their next call.
    "grpc.max_connection_idle_ms": 60_000,
    # Until a connection has shown that it speaks HTTP/2; by default 120,000.
    "grpc.server_handshake_timeout_ms": 5000,
}


def with_limits(options: Sequence[tuple[str, int]]) -> list[tuple[str, int]]:
    """Return the options, with the limits that they do not set."""
    return list((_OPTIONS | dict(options)).items())
