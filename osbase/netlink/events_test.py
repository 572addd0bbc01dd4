# SPDX-License-Identifier: Apache-2.0
"""Only removals are reported. Runs in a fresh namespace."""

import os
import queue
from collections.abc import Iterator

import pytest
from pyroute2 import IPRoute

from osbase.netlink import netns
from osbase.netlink.events import LinkEvents
from osbase.netlink.link import LinkRemoved, del_link, set_link_up
from osbase.netlink.message import Request
from osbase.netlink.transport import NetlinkSocket
from osbase.netlink.veth import VethEnd, new_veth

WAIT_S = 10.0


class Heard:
    """The calls of the callbacks."""

    def __init__(self) -> None:
        self.queue: queue.SimpleQueue[LinkRemoved | str] = queue.SimpleQueue()

    def overrun(self) -> None:
        self.queue.put("overrun")

    def next(self) -> LinkRemoved | str:
        return self.queue.get(timeout=WAIT_S)


@pytest.fixture
def heard() -> Heard:
    return Heard()


@pytest.fixture
def events(heard: Heard) -> Iterator[LinkEvents]:
    opened = LinkEvents(heard.queue.put, heard.overrun)
    yield opened
    opened.close()


@pytest.fixture
def sock() -> Iterator[NetlinkSocket]:
    with NetlinkSocket() as opened:
        yield opened


def veth(index: int, netns_fd: int) -> Request:
    host = VethEnd(f"e{index}", index, None)
    peer = VethEnd(f"f{index}", index + 1, None)
    return new_veth(host, peer, netns_fd=netns_fd, mtu=1500, group=8)


def test_a_removal_before_the_start_is_reported_after_it(
    sock: NetlinkSocket, heard: Heard, events: LinkEvents
) -> None:
    fd = netns.open_current()
    sock.batch([veth(100, fd), set_link_up(100, "e100"), del_link(100, "e100")])
    os.close(fd)
    assert heard.queue.empty()
    events.start()
    seen = {heard.next(), heard.next()}
    assert seen == {LinkRemoved(100, "e100"), LinkRemoved(101, "f100")}


def test_the_death_of_a_namespace_removes_the_end_here(
    sock: NetlinkSocket, heard: Heard, events: LinkEvents
) -> None:
    events.start()
    home = netns.open_current()
    os.unshare(netns.CLONE_NEWNET)
    other = netns.open_current()
    os.setns(home, netns.CLONE_NEWNET)
    sock.batch([veth(200, other)])
    os.close(other)
    os.close(home)
    assert heard.next() == LinkRemoved(200, "e200")


def test_a_port_that_leaves_a_bridge_is_not_reported(
    sock: NetlinkSocket, heard: Heard, events: LinkEvents
) -> None:
    events.start()
    fd = netns.open_current()
    sock.batch([veth(300, fd)])
    os.close(fd)
    with IPRoute() as other:
        other.link("add", ifname="br0", kind="bridge", index=400)
        other.link("set", index=300, master=400)
        other.link("set", index=300, master=0)
        other.link("del", index=400)
        other.link("del", index=300)
    assert heard.next() == LinkRemoved(400, "br0")
    assert {heard.next(), heard.next()} == {LinkRemoved(300, "e300"), LinkRemoved(301, "f300")}


def test_lost_events_are_reported(sock: NetlinkSocket, heard: Heard) -> None:
    events = LinkEvents(heard.queue.put, heard.overrun, receive_buffer=1)
    fd = netns.open_current()
    for index in range(500, 540, 2):
        sock.batch([veth(index, fd), del_link(index, f"e{index}")])
    os.close(fd)
    events.start()
    seen: list[LinkRemoved | str] = []
    while not seen or seen[-1] != "overrun":
        seen.append(heard.next())
    events.close()


def test_what_is_removed_while_an_overrun_is_handled_is_reported(
    sock: NetlinkSocket, heard: Heard
) -> None:
    """The kernel drops all events, and reports this only once, until the socket
    has been read to its end.
    """

    def resync() -> None:
        heard.overrun()
        if not removed:
            removed.append(900)
            with NetlinkSocket() as other:
                other.batch([del_link(900, "e900")])

    removed: list[int] = []

    events = LinkEvents(heard.queue.put, resync, receive_buffer=1)
    fd = netns.open_current()
    sock.batch([veth(900, fd)])
    for index in range(800, 840, 2):
        sock.batch([veth(index, fd), del_link(index, f"e{index}")])
    os.close(fd)
    events.start()
    while heard.next() != "overrun":
        pass
    # The buffer holds one of the two: then the other is another overrun.
    assert heard.next() in (LinkRemoved(900, "e900"), LinkRemoved(901, "f900"), "overrun")
    events.close()


def test_an_overrun_that_could_not_be_handled_is_reported_again(
    sock: NetlinkSocket, heard: Heard
) -> None:
    def failing() -> None:
        heard.overrun()
        failures.append(len(failures))
        if len(failures) == 1:
            raise ZeroDivisionError

    failures: list[int] = []
    events = LinkEvents(lambda _: None, failing, receive_buffer=1)
    fd = netns.open_current()
    for index in range(700, 740, 2):
        sock.batch([veth(index, fd), del_link(index, f"e{index}")])
    os.close(fd)
    events.start()
    assert [heard.next(), heard.next()] == ["overrun", "overrun"]
    events.close()


def test_a_handler_that_fails_does_not_end_the_events(sock: NetlinkSocket, heard: Heard) -> None:
    def handler(event: LinkRemoved) -> None:
        heard.queue.put(event)
        raise ZeroDivisionError

    events = LinkEvents(handler, heard.overrun)
    events.start()
    fd = netns.open_current()
    sock.batch([veth(600, fd), del_link(600, "e600")])
    os.close(fd)
    assert len({heard.next(), heard.next()}) == 2
    events.close()
