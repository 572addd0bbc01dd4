# SPDX-License-Identifier: Apache-2.0
"""The connections of a server, ended whatever their clients do.

C-core closes no connection while it writes to it, and a client that does not
read, such as one that was stopped, keeps it writing for ever; so would the end
of the server be waited for. The kernel can end such a connection: then the
write fails.

C-core gives away no descriptors. So they are found among those of the process,
by the name of the socket that they came from.
"""

import contextlib
import logging
import os
import socket

log = logging.getLogger(__name__)

# After the calls were cancelled: for clients to hear of it.
CUT_AFTER_S = 1.0


def cut(addresses: set[str]) -> bool:
    """End the connections to unix sockets that gRPC calls so, `unix:/run/x`.
    False: it is to be tried again.
    """
    names = {one.removeprefix("unix:") for one in addresses if one.startswith("unix:")}
    count = 0
    try:
        for number in os.listdir("/proc/self/fd"):
            # Most are others'; some may be closed meanwhile.
            with contextlib.suppress(OSError):
                count += _cut(int(number), names)
    except OSError as error:  # no descriptor for it: next time
        log.warning("connections cannot be ended: %s", error)
        return False
    if count:
        log.warning("%d connections did not end with their calls, and were cut", count)
    return True


def _cut(number: int, names: set[str]) -> bool:
    # A descriptor of our own, lest that number becomes another file's.
    with socket.socket(fileno=os.dup(number)) as found:
        if found.family != socket.AF_UNIX or found.getsockname() not in names:
            return False
        found.getpeername()  # fails for the socket that listens
        found.shutdown(socket.SHUT_RDWR)
        return True
