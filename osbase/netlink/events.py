# SPDX-License-Identifier: Apache-2.0
"""Link removals, as the kernel tells them.

    socket (RTNLGRP_LINK, filtered to RTM_DELLINK)
       -> thread -> on_removed(LinkRemoved)
                 -> on_overrun()   when events were lost: list the links anew

The filter is in the kernel, since every step of making a link is an event of
its own, and waking Python for each would cost more than making the link.

Subscribe, then list, then `start`: nothing between is lost.
"""

import ctypes
import errno
import logging
import os
import select
import socket
import struct
import threading
from collections.abc import Callable

from osbase.netlink.errors import ProtocolError
from osbase.netlink.message import decode
from osbase.netlink.rtnl import RTM_DELLINK, RTNLGRP_LINK, LinkRemoved, parse_link_removed
from osbase.netlink.transport import NETLINK_ADD_MEMBERSHIP, SOL_NETLINK

_SO_ATTACH_FILTER = 26
_RETRY_MS = 1000
RECEIVE_BUFFER = 4 * 1024 * 1024  # bytes; about 1,500 removals at once

log = logging.getLogger(__name__)


def _attach_filter(sock: socket.socket, kind: int) -> None:
    """Lets pass only datagrams that start with a message of this type.

    Classic BPF loads big-endian, the header is host-order: compare swapped.
    """
    instructions = struct.pack(
        "=HBBIHBBIHBBIHBBI",
        *(0x28, 0, 0, 4),  # load the half word at byte 4, nlmsg_type
        *(0x15, 0, 1, socket.htons(kind)),  # not equal: skip one
        *(0x06, 0, 0, 0xFFFFFFFF),  # accept
        *(0x06, 0, 0, 0),  # drop
    )
    program = ctypes.create_string_buffer(instructions)
    descriptor = struct.pack("HL", 4, ctypes.addressof(program))
    sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, descriptor)


class LinkEvents:
    """The subscription begins with the constructor, delivery with `start`.

    The callbacks run on one thread of this object, one at a time; what they
    raise is logged and does not end it. An on_overrun that raises is called
    again a second later.
    """

    def __init__(
        self,
        on_removed: Callable[[LinkRemoved], None],
        on_overrun: Callable[[], None],
        *,
        receive_buffer: int = RECEIVE_BUFFER,
    ) -> None:
        self._on_removed = on_removed
        self._on_overrun = on_overrun
        self._thread: threading.Thread | None = None
        self._behind = False
        self._stop = os.eventfd(0, os.EFD_CLOEXEC)
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
        try:
            # SO_RCVBUFFORCE (33) needs a privilege over the initial user
            # namespace; without it the system's limit is what we get.
            try:
                self._socket.setsockopt(socket.SOL_SOCKET, 33, receive_buffer)
            except PermissionError:
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
            _attach_filter(self._socket, RTM_DELLINK)
            self._socket.bind((0, 0))
            self._socket.setsockopt(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, RTNLGRP_LINK)
        except OSError:
            self._socket.close()
            os.close(self._stop)
            raise

    def start(self) -> None:
        if self._thread is not None:
            raise RuntimeError("link events were started already")
        self._thread = threading.Thread(target=self._run, name="link-events", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ends the thread, after the callback under way."""
        os.eventfd_write(self._stop, 1)
        if self._thread is not None:
            self._thread.join()
        self._socket.close()
        os.close(self._stop)

    def _run(self) -> None:
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        poll.register(self._stop, select.POLLIN)
        while True:
            ready = {fd for fd, _ in poll.poll(_RETRY_MS if self._behind else None)}
            if self._stop in ready:
                return
            try:
                if ready:
                    self._deliver()
                if self._behind:
                    self._on_overrun()
                    self._behind = False
            except Exception:
                log.exception("a handler of link events failed")

    def _drain(self) -> None:
        """Reads to the end and forgets: what is listed afterwards is newer.

        Once it has told an overrun the kernel drops events, and does not tell,
        until the socket is empty (NETLINK_S_CONGESTED, af_netlink.c). Listing
        before that would miss what is removed meanwhile.
        """
        while True:
            try:
                self._socket.recvfrom(65536, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    return

    def _deliver(self) -> None:
        try:
            data, (sender, _) = self._socket.recvfrom(65536, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError:  # ENOBUFS: the kernel had no room, events were lost
            self._behind = True
            self._drain()
            return
        if sender != 0:
            return
        try:
            removed = [parse_link_removed(message) for message in decode(data)]
        except ProtocolError:
            self._behind = True
            return
        for event in removed:
            if event is not None:
                self._on_removed(event)
