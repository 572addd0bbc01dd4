# SPDX-License-Identifier: Apache-2.0
"""Events of the kernel: those of multicast groups that pass a filter.

    socket (multicast groups, filtered by bpf.Match)
       -> thread -> on_message(Message)
                 -> on_overrun()   when events were lost: list all again

The filter is in the kernel, since every step of making a link is a separate
event, and waking Python for each would cost more than making the link.
`LinkEvents` are the removals of links.

Subscribe, then list, then `start`: no event is lost in between.
"""

import errno
import logging
import os
import select
import socket
import threading
from collections.abc import Callable, Iterable

from osbase.netlink import bpf
from osbase.netlink.errors import ProtocolError
from osbase.netlink.ifla import RTM_DELLINK, RTNLGRP_LINK
from osbase.netlink.link import LinkRemoved, parse_link_removed
from osbase.netlink.message import Message, decode
from osbase.netlink.transport import NETLINK_ADD_MEMBERSHIP, SOL_NETLINK

_RETRY_MS = 1000
RECEIVE_BUFFER = 4 * 1024 * 1024  # bytes; about 1,500 removals at once

log = logging.getLogger(__name__)


class Events:
    """The subscription begins with the constructor, delivery with `start`.

    The callbacks run on one thread of this object, one at a time. Their
    exceptions are logged and do not end it. An on_overrun that raises is called
    again a second later.

    protocol: the netlink protocol. matches: the wanted messages. pause_s: how
    long the thread sleeps after each wake-up, so that a burst wakes it once in
    that time.
    """

    def __init__(
        self,
        on_message: Callable[[Message], None],
        on_overrun: Callable[[], None],
        *,
        groups: Iterable[int],
        matches: Iterable[bpf.Match],
        protocol: int = socket.NETLINK_ROUTE,
        name: str = "netlink-events",
        receive_buffer: int = RECEIVE_BUFFER,
        pause_s: float = 0.0,
    ) -> None:
        self._on_message = on_message
        self._on_overrun = on_overrun
        self._name = name
        self._pause_s = pause_s
        self._thread: threading.Thread | None = None
        self._behind = False
        self._stop = os.eventfd(0, os.EFD_CLOEXEC)
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol)
        try:
            # SO_RCVBUFFORCE (33) needs a privilege over the initial user
            # namespace; without it the system's limit is what we get.
            try:
                self._socket.setsockopt(socket.SOL_SOCKET, 33, receive_buffer)
            except PermissionError:
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
            bpf.attach(self._socket, matches)
            self._socket.bind((0, 0))
            for group in groups:
                self._socket.setsockopt(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, group)
        except OSError:
            self._socket.close()
            os.close(self._stop)
            raise

    def start(self) -> None:
        if self._thread is not None:
            raise RuntimeError(f"{self._name} were started already")
        thread = threading.Thread(target=self._run, name=self._name, daemon=True)
        thread.start()  # RuntimeError: there can be no thread
        self._thread = thread

    def close(self) -> None:
        """End the thread, after the running callback."""
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
                    if self._pause_s and select.select([self._stop], [], [], self._pause_s)[0]:
                        return
                if self._behind:
                    self._on_overrun()
                    self._behind = False
            except Exception:
                log.exception("a handler of %s failed", self._name)

    def _drain(self) -> None:
        """Read to the end and discard: a later listing is newer.

        After it has reported an overrun the kernel drops events silently until
        the socket is empty (NETLINK_S_CONGESTED, af_netlink.c). A listing
        before that would miss later removals.
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
        """Read all waiting datagrams; most have one event."""
        while True:
            try:
                data, (sender, _) = self._socket.recvfrom(65536, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            except OSError:  # ENOBUFS: the kernel had no room, events were lost
                self._behind = True
                self._drain()
                return
            if sender != 0:
                continue
            try:
                messages = list(decode(data))
            except ProtocolError:
                self._behind = True
                return
            for message in messages:
                try:
                    self._on_message(message)
                except ProtocolError:
                    self._behind = True
                    return


class LinkEvents(Events):
    """Removals of links; see Events."""

    def __init__(
        self,
        on_removed: Callable[[LinkRemoved], None],
        on_overrun: Callable[[], None],
        *,
        receive_buffer: int = RECEIVE_BUFFER,
    ) -> None:
        def on_message(message: Message) -> None:
            removed = parse_link_removed(message)
            if removed is not None:
                on_removed(removed)

        super().__init__(
            on_message,
            on_overrun,
            groups=(RTNLGRP_LINK,),
            matches=(bpf.Match(RTM_DELLINK),),
            name="link-events",
            receive_buffer=receive_buffer,
        )
