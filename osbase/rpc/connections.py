# SPDX-License-Identifier: Apache-2.0
"""End the connections of a server, whatever their clients do.

C-core closes no connection while it writes to it. A client that does not read,
such as a stopped process, blocks the write for ever, and with it the end of the
server. The kernel can shut down such a connection: then the write fails.

C-core does not expose descriptors. So the module searches those of the process,
by the name of the listening socket.
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
    """End the connections to unix sockets with these gRPC names, such as
    `unix:/run/x`. Return False when the caller has to try again.
    """
    names = {one.removeprefix("unix:") for one in addresses if one.startswith("unix:")}
    count = 0
    try:
        for number in os.listdir("/proc/self/fd"):
            try:
                count += _cut(int(number), names)
            except OSError as error:
                # Usually it was closed meanwhile.
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
    # Our own descriptor, since the number may become another file's.
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
