# SPDX-License-Identifier: Apache-2.0
"""Which changes by ip(8), nft(8) and an attach wake the reconciler.

Events come in order: an event that did not come before the last never comes.
"""

from __future__ import annotations

import contextlib
import errno
import os
import queue
import subprocess
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path

import pytest

from metropolis.node import allocs
from metropolis.node.core.network.reconcile import watch
from metropolis.node.core.network.reconcile.watch import Kind
from metropolis.node.core.network.workloads.datapath import messages
from metropolis.node.core.network.workloads.datapath.interface import Record
from osbase.netlink import netns
from osbase.netlink.errors import BatchError
from osbase.netlink.events import Events
from osbase.netlink.link import del_link, del_links_by_group
from osbase.netlink.transport import NetlinkSocket

LIMIT_S = 20.0
PLAIN = 40  # index of a link
LAST = ("rule add pref 900 lookup 77", "rule del pref 900")


class Heard:
    """The events, in order."""

    def __init__(self) -> None:
        self.queue: queue.SimpleQueue[tuple[Kind, int]] = queue.SimpleQueue()

    def put(self, kind: Kind, ifindex: int) -> None:
        self.queue.put((kind, ifindex))

    def overrun(self) -> None:
        raise AssertionError("nothing was lost")

    def all(self) -> list[tuple[Kind, int]]:
        """Return all until now, without the mark that ends them."""
        for command in LAST:
            ip(command)
        found = []
        while (one := self.queue.get(timeout=LIMIT_S))[0] is not Kind.POLICY:
            found.append(one)
        return found


def ip(command: str) -> None:
    subprocess.run(["ip", *command.split()], check=True)


@pytest.fixture
def heard() -> Iterator[Heard]:
    """Two links that are up; their own events are dropped."""
    ip(f"link add d0 index {PLAIN} type veth peer name d1")
    for command in ("link set d0 up", "link set d1 up", "address add 192.0.2.1/24 dev d0"):
        ip(command)
    reported = Heard()
    events = watch.route_events(reported.put, reported.overrun)
    events.start()
    try:
        yield reported
    finally:
        events.close()
        ip("link del d0")


def setting(path: str, value: int) -> None:
    Path("/proc/sys/net", path).write_text(str(value))


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("protocol", [76, 77, 78])
def test_a_route_of_ours_that_is_deleted_or_replaced(
    heard: Heard, version: int, protocol: int
) -> None:
    route = "198.51.100.7/32" if version == 4 else "2001:db8:7::7/128"
    ip(f"-{version} route add {route} dev d0 proto {protocol}")
    assert heard.all() == []
    ip(f"-{version} route replace {route} dev d1 proto static")
    (reported,) = heard.all()
    assert reported[0] is Kind.ROUTE
    ip(f"-{version} route replace {route} dev d0 proto {protocol}")
    assert heard.all() == [(Kind.ROUTE, PLAIN)]
    ip(f"-{version} route flush proto {protocol}")
    assert heard.all() == [(Kind.ROUTE, PLAIN)]


@pytest.mark.parametrize("version", [4, 6])
def test_routes_of_others_are_not_told(heard: Heard, version: int) -> None:
    route = "198.51.100.7/32" if version == 4 else "2001:db8:7::7/128"
    for protocol in (4, 9, 75, 79, 186):
        ip(f"-{version} route add {route} dev d0 proto {protocol}")
        ip(f"-{version} route del {route} dev d0 proto {protocol}")
    assert heard.all() == []


@pytest.mark.parametrize("table", ["local", "main"])
@pytest.mark.parametrize("address", ["192.0.2.9/24", "2001:db8:9::9/64"])
def test_a_route_that_came_with_an_address(heard: Heard, address: str, table: str) -> None:
    family = "-6" if ":" in address else "-4"
    ip(f"address add {address} dev d0" + (" nodad" if ":" in address else ""))
    assert heard.all() == []
    ip(f"{family} route flush table {table} proto kernel dev d0")
    assert set(heard.all()) == {(Kind.ROUTE, PLAIN)}


@pytest.mark.parametrize("address", ["192.0.2.9/24", "2001:db8:9::9/64", "fe80::9/64"])
def test_an_address_that_is_deleted(heard: Heard, address: str) -> None:
    ip(f"address add {address} dev d0" + (" nodad" if ":" in address else ""))
    assert heard.all() == []
    ip(f"address del {address} dev d0")
    # With it go its routes.
    assert set(heard.all()) == {(Kind.ADDRESS, PLAIN), (Kind.ROUTE, PLAIN)}


def test_a_link_that_is_set_down(heard: Heard) -> None:
    ip("link set d0 down")
    assert (Kind.LINK, PLAIN) in heard.all()
    ip("link set d0 up")
    ip("link set d0 mtu 1400")
    ip("link set d0 group 8")
    ip("link set d0 alias something")
    assert heard.all() == []


@pytest.mark.parametrize(
    "path",
    [
        "ipv4/ip_forward",
        "ipv4/conf/all/forwarding",
        "ipv4/conf/default/forwarding",
        "ipv4/conf/d0/forwarding",
        "ipv4/conf/all/rp_filter",
        "ipv4/conf/d0/rp_filter",
        "ipv6/conf/all/forwarding",
        "ipv6/conf/default/forwarding",
        "ipv6/conf/d0/forwarding",
    ],
)
def test_a_setting_that_is_written(heard: Heard, path: str) -> None:
    """In both directions."""
    before = int(Path("/proc/sys/net", path).read_text())
    for value in (1 - min(before, 1), before):
        setting(path, value)
        reported = heard.all()
        assert reported
        assert {kind for kind, _ in reported} == {Kind.SETTING}


def test_rules_that_are_deleted(heard: Heard) -> None:
    for version in (4, 6):
        ip(f"-{version} rule add pref 100 lookup 77")
        assert heard.queue.empty()
        ip(f"-{version} rule del pref 100")
        assert heard.queue.get(timeout=LIMIT_S) == (Kind.POLICY, 0)


def record(number: int) -> Record:
    index = 100 + 2 * number
    return Record(
        workload_id=f"workload-number-{number}",
        if_name=f"eth{number}",
        netns_cookie=number + 1,
        host_interface=f"wl{number}",
        host_ifindex=index,
        peer_ifindex=index + 1,
        mac=bytes([2, 0, 0, 0, 0, number]),
        mtu=1500,
        ips=(ip_address(f"10.192.0.{number}"), ip_address(f"fd00:10:192::{number}")),
        request=bytes(8),
    )


def test_an_attach_is_not_told_and_a_removal_is(heard: Heard) -> None:
    """Links, names, routes and addresses of ten attachments."""
    home = netns.open_current()
    os.unshare(netns.CLONE_NEWNET)
    other = netns.open_current()
    with NetlinkSocket() as there:
        os.setns(home, netns.CLONE_NEWNET)
        ip(f"address add {allocs.FIRST_HOP_IPV4}/32 dev lo")
        with NetlinkSocket() as here:
            for number in range(1, 11):
                made = record(number)
                here.batch(messages.pair(made, other))
                # No earlier interface has left a rule.
                there.batch(messages.inside(made, number, loopback=True), tolerate={errno.ENOENT})
                *sent, multicast = messages.commit(made, ipv6=True)
                here.batch(sent)
                with contextlib.suppress(BatchError):  # the kernel may be first
                    here.batch([multicast])
            assert heard.all() == []
            here.batch([del_link(102, "wl1")])
            assert {index for _, index in heard.all()} == {102}
            # Now, and not some time after the namespace is closed.
            here.batch([del_links_by_group(allocs.LINK_GROUP_WORKLOAD)])
    ip(f"address del {allocs.FIRST_HOP_IPV4}/32 dev lo")
    os.close(other)
    os.close(home)


def test_rules_events() -> None:
    """Every commit."""
    heard = Heard()
    events = watch.rules_events(heard.put, heard.overrun)
    events.start()
    for command in ("add table inet t", "flush ruleset"):
        subprocess.run(["nft", command], check=True)
        assert heard.queue.get(timeout=LIMIT_S) == (Kind.RULES, 0)
    events.close()


def test_what_is_lost_is_said() -> None:
    lost: queue.SimpleQueue[str] = queue.SimpleQueue()
    events: Events = watch.route_events(lambda kind, index: None, lambda: lost.put("lost"))
    # Not started: nobody reads, and the buffer is full in the end.
    pair = "rule add pref 100 lookup 77\nrule del pref 100\n"
    subprocess.run(["ip", "-batch", "-"], input=pair * 20_000, text=True, check=True)
    events.start()
    assert lost.get(timeout=LIMIT_S) == "lost"
    events.close()
