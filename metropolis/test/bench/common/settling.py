# SPDX-License-Identifier: Apache-2.0
"""Await the end of network namespaces, which the kernel removes later."""

import threading

from metropolis.test.bench.common.errors import BenchError
from metropolis.test.world.namespaces import Netns
from osbase.netlink.events import LinkEvents
from osbase.netlink.link import LinkRemoved
from osbase.netlink.transport import NetlinkSocket
from osbase.netlink.veth import VethEnd, new_veth

_END_S = 300.0
_SENTINEL = 1 << 22  # an index


def settle() -> None:
    """Wait until the kernel has removed the closed namespaces.

    It removes them in order, or together: so this closes one more, with the end
    of a link in it, and waits for the removal of the other end. Raises
    BenchError.
    """
    gone = threading.Event()

    def removed(link: LinkRemoved) -> None:
        if link.ifindex == _SENTINEL:
            gone.set()

    events = LinkEvents(removed, gone.set)
    events.start()
    try:
        netns = Netns()
        try:
            with open(netns.path, "rb") as file, NetlinkSocket() as sock:
                near = VethEnd("sentinel", _SENTINEL, None)
                far = VethEnd("sentinel", 2, None)
                sock.batch([new_veth(near, far, netns_fd=file.fileno(), mtu=1500, group=0)])
        finally:
            netns.close()
        if not gone.wait(_END_S):
            raise BenchError(f"namespaces that were closed are still there after {_END_S:g} s")
    finally:
        events.close()
