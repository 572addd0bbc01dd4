# SPDX-License-Identifier: Apache-2.0
"""The connections of a server, ended whatever their clients do.

C-core closes no connection while it writes to it, and a client that does not
read, such as one that was stopped, keeps it writing for ever; so would the end
of the server be waited for. The kernel can end such a connection: then the
write fails.

C-core gives away no descriptors. So they are found among those of the process,
by the name of the socket that they came from.
"""

import errno
import logging
import os
import socket
import stat

log = logging.getLogger(__name__)

# After the calls were cancelled: for clients to hear of it.
CUT_AFTER_S = 1.0
_NO_ROOM = (errno.EMFILE, errno.ENFILE)  # for a descriptor of our own


def cut(addresses: set[str]) -> bool:
    """End the connections to unix sockets that gRPC calls so, `unix:/run/x`.
    False: it is to be tried again.
    """
    names = {one.removeprefix("unix:") for one in addresses if one.startswith("unix:")}
    count = 0
    try:
        for number in os.listdir("/proc/self/fd"):
            try:
                count += _cut(int(number), names)
            except OSError as error:
                # Mostly it was closed meanwhile.
                if error.errno in _NO_ROOM:
                    raise
    except OSError as error:
        log.warning("connections cannot be ended: %s", error)
        return False
    if count:
        log.warning("%d connections did not end with their calls, and were cut", count)
    return True


def _cut(number: int, names: set[str]) -> bool:
    if not stat.S_ISSOCK(os.fstat(number).st_mode):
        return False
    # A descriptor of our own, lest that number becomes another file's.
    own = os.dup(number)
    try:
        found = socket.socket(fileno=own)
    except BaseException:
        os.close(own)
        raise
    with found:
        if found.family != socket.AF_UNIX or found.getsockname() not in names:
            return False
        found.getpeername()  # fails for the socket that listens
        found.shutdown(socket.SHUT_RDWR)
        return True
