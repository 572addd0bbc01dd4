# SPDX-License-Identifier: Apache-2.0
"""The kernel's datapath keeps the contract, and more.

Runs in a network namespace of its own, as its root.
"""

import errno
import os
import queue
import socket
import struct
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from pyroute2 import IPRoute

from metropolis.node import allocs
from metropolis.node.core.network.workloads.datapath import messages, names, restore
from metropolis.node.core.network.workloads.datapath.interface import Datapath, Record, Scan
from metropolis.node.core.network.workloads.datapath.veth import KernelDatapath
from metropolis.node.core.network.workloads.engine.engine import Engine
from metropolis.node.core.network.workloads.errors import KernelRefused, Unavailable
from metropolis.node.core.network.workloads.model import AttachIntent, first_hop
from metropolis.node.core.network.workloads.testing import version1
from metropolis.node.core.network.workloads.testing.contract import (
    OTHER,
    WAIT_S,
    DatapathContract,
    always,
    idle,
    record_for,
)
from metropolis.node.core.network.workloads.testing.lab import Pod, objects, pods, settled
from osbase.netlink import rtnl
from osbase.netlink.errors import ReplyLost
from osbase.netlink.message import Message, Request
from osbase.netlink.netns import open_current
from osbase.netlink.rtnl import VethEnd
from osbase.netlink.template import Encoded, encoded
from osbase.netlink.transport import NetlinkSocket, open_raw


class KernelBench:
    """See contract.Bench."""

    not_netns = "/proc/self/ns/mnt"
    home = f"/proc/{os.getpid()}/ns/net"

    def __init__(self) -> None:
        self.removed: queue.SimpleQueue[int] = queue.SimpleQueue()
        self.pods: dict[str, Pod] = {}
        self.opened: list[KernelDatapath] = []
        self.datapath: Datapath = self.again()

    def add_netns(self) -> str:
        pod = Pod()
        self.pods[pod.path] = pod
        return pod.path

    def kill_netns(self, path: str) -> None:
        self.pods.pop(path).close()

    def again(self) -> Datapath:
        datapath = KernelDatapath()
        datapath.open(self.removed.put, lambda: None)
        datapath.watch()
        self.opened.append(datapath)
        return datapath

    def take_name(self, path: str, name: str) -> None:
        def add() -> None:
            with IPRoute() as other:
                other.link("add", ifname=name, kind="veth")

        self.pods[path].inside(add)

    def set_mtu(self, record: Record, mtu: int) -> None:
        with IPRoute() as other:
            other.link("set", index=record.host_ifindex, mtu=mtu)

    def take_host_route(self, record: Record) -> None:
        with IPRoute() as other:
            other.route("del", dst=f"{record.ips[0]}/32", oif=record.host_ifindex, scope=253)

    def take_route(self, path: str, record: Record) -> None:
        def take() -> None:
            with IPRoute() as other:
                other.route("del", dst="0.0.0.0/0", oif=record.peer_ifindex)

        self.pods[path].inside(take)

    def forge(self, path: str, record: Record) -> None:
        index, name = record.host_ifindex, record.host_interface
        host = VethEnd(name, index, allocs.FIRST_HOP_MAC)
        peer = VethEnd(record.if_name, record.peer_ifindex, record.mac)
        pod, group = self.pods[path], allocs.LINK_GROUP_WORKLOAD
        with NetlinkSocket() as sock:
            sock.batch(
                [
                    rtnl.new_veth(host, peer, netns_fd=pod.fd, mtu=record.mtu, group=group),
                    rtnl.set_link_alias(index, name, record.workload_id, ipv6=True),
                    rtnl.add_link_altnames(index, name, *names.altnames_of(record)),
                    rtnl.set_link_up(index, name),
                ]
            )

    def close(self) -> None:
        self.opened[0].remove(self.opened[0].scan().complete)
        for datapath in self.opened:
            datapath.close()
        for pod in self.pods.values():
            pod.close()


@dataclass(frozen=True)
class Damage:
    """What others do to the host's end of an attachment, and the repairs."""

    name: str
    act: Callable[[Record], None]
    keys: Sequence[str]


def changed(**to: Any) -> Callable[[Record], None]:
    def act(record: Record) -> None:
        with IPRoute() as other:
            other.link("set", index=record.host_ifindex, **to)

    return act


def set_down(record: Record) -> None:
    """An administrator's `ip link set down` and `up`, the second forgotten."""
    changed(state="down")(record)


def enslaved(record: Record) -> None:
    with IPRoute() as other:
        other.link("add", ifname="br0", kind="bridge")
        (bridge,) = other.link_lookup(ifname="br0")
        other.link("set", index=record.host_ifindex, master=bridge)


def without_arp(record: Record) -> None:
    body = struct.pack("=BxHiII", 0, 0, record.host_ifindex, rtnl.IFF_NOARP, rtnl.IFF_NOARP)
    with NetlinkSocket() as sock:
        sock.batch([Request(rtnl.RTM_NEWLINK, 0, body, "set ARP off")])


def written(path: str, value: int) -> Callable[[Record], None]:
    def act(record: Record) -> None:
        Path(f"/proc/sys/net/{path.format(record.host_interface)}").write_text(str(value))

    return act


def without_addresses(record: Record) -> None:
    with IPRoute() as other:
        other.flush_addr(index=record.host_ifindex)


def without_routes(record: Record) -> None:
    with IPRoute() as other:
        for family in (socket.AF_INET, socket.AF_INET6):
            other.flush_routes(oif=record.host_ifindex, family=family, proto=77)


def by_another(record: Record) -> None:
    """As `ip route replace`, of somebody who means well."""
    with NetlinkSocket() as sock:
        ip, lo = ip_network(record.ips[0]), 1
        sock.batch([rtnl.replace_route(rtnl.Route(ip, lo, rtnl.RTPROT_BOOT), "lo")])


IPV4_ROUTE = "route 10.9.0.1/32"
IPV6_ROUTES = ("address fe80::1 of {N}", "route fd00:9::1/128", "route {OWN}/128 of {N}")
DAMAGES = [
    Damage("nothing", lambda _: None, ()),
    Damage("down", set_down, ("link {N}: state", IPV6_ROUTES[0], IPV4_ROUTE, *IPV6_ROUTES[1:])),
    Damage("group", changed(group=99), ("link {N}: group",)),
    Damage("overlay's group", changed(group=9), ("link {N}: group",)),
    Damage("no alias", changed(ifalias=""), ("link {N}: alias",)),
    Damage("alias", changed(ifalias="other"), ("link {N}: alias",)),
    Damage("name", changed(ifname="renamed"), ("link {N}: name",)),
    Damage("MAC", changed(address="02:00:00:00:00:99"), ("link {N}: MAC",)),
    Damage("MTU", changed(mtu=9000), ("link {N}: MTU",)),
    # The kernel takes IPv6 off the link.
    Damage("MTU 1000", changed(mtu=1000), ("link {N}: MTU", *IPV6_ROUTES)),
    Damage("bridge", enslaved, ("link {N}: master",)),
    Damage("no ARP", without_arp, ("link {N}: ARP",)),
    Damage("forwarding", written("ipv4/conf/{}/forwarding", 0), ("link {N}: ipv4 forwarding",)),
    Damage("arp_accept", written("ipv4/conf/{}/arp_accept", 1), ("link {N}: ipv4 arp_accept",)),
    Damage("arp_ignore", written("ipv4/conf/{}/arp_ignore", 1), ("link {N}: ipv4 arp_ignore",)),
    Damage(
        "disable_ipv6",
        written("ipv6/conf/{}/disable_ipv6", 1),
        ("link {N}: ipv6 disable_ipv6", *IPV6_ROUTES),
    ),
    Damage(
        "addr_gen_mode",
        written("ipv6/conf/{}/addr_gen_mode", 0),
        ("link {N}: ipv6 addr_gen_mode",),
    ),
    Damage("addresses", without_addresses, IPV6_ROUTES[:1]),
    Damage("routes", without_routes, (IPV4_ROUTE, *IPV6_ROUTES[1:])),
    Damage("rp_filter 0", written("ipv4/conf/{}/rp_filter", 0), ("link {N}: ipv4 rp_filter",)),
    Damage("rp_filter 2", written("ipv4/conf/{}/rp_filter", 2), ("link {N}: ipv4 rp_filter",)),
    # What neither traffic nor isolation depends on is not touched.
    Damage("proxy_arp", written("ipv4/conf/{}/proxy_arp", 1), ()),
]


def ping(pod: Pod, record: Record) -> None:
    """The pod and the host reach each other, in both families."""
    for ip in record.ips:
        family, hop = rtnl.family_of(ip), first_hop(ip.version)
        with socket.socket(family, socket.SOCK_DGRAM) as host:
            host.settimeout(WAIT_S)
            with pod.socket(family, socket.SOCK_DGRAM) as inside:
                scope = f"%{record.if_name}" if hop.version == 6 else ""
                host.bind(("", 0))
                inside.bind((str(ip), 0))
                target = pod.inside(lambda: socket.getaddrinfo(f"{hop}{scope}", 0)[0][4])  # noqa: B023
                inside.sendto(b"ping", (target[0], host.getsockname()[1], *target[2:]))
                _, peer = host.recvfrom(9)
                assert peer[0] == str(ip)
                host.sendto(b"pong", peer)
                assert inside.recvfrom(9)[0] == b"pong"


@pytest.fixture
def bench() -> Iterator[KernelBench]:
    made = KernelBench()
    before = objects()
    yield made
    made.close()
    assert objects() == before


class TestKernelDatapath(DatapathContract):
    """All of the contract, on the kernel."""

    def test_both_ends_are_as_they_should_be(self, bench: KernelBench) -> None:
        path = bench.add_netns()
        record = self.create(bench, path)
        with IPRoute() as witness:
            (link,) = witness.get_links(record.host_ifindex)
            assert link.get("address") == "02:9c:52:fe:6d:0a"
            assert (link.get("mtu"), link.get("group")) == (1400, allocs.LINK_GROUP_WORKLOAD)
            assert link.get("ifalias") == "w1"
            addresses = [
                (a.get("address"), a["flags"]) for a in witness.get_addr(index=link["index"])
            ]
            assert [address for address, _ in addresses] == ["fe80::1"]
            ours = {
                r.get("dst"): r
                for r in witness.get_routes()
                if r["proto"] == allocs.ROUTE_PROTOCOL_WORKLOAD
            }
            own = str(rtnl.link_local(record.mac))
            assert ours.keys() == {"10.9.0.1", "fd00:9::1", own}
            assert ours["10.9.0.1"].get("prefsrc") == "169.254.77.1"

        def look() -> tuple[list[Any], list[Any], list[Any]]:
            with IPRoute() as inner:
                lo, eth0 = inner.get_links()
                links = [
                    lo.get("state"),
                    eth0.get("state"),
                    eth0["index"],
                    eth0.get("mtu"),
                ]
                links += [eth0.get("address"), eth0.get("ifname")]
                return (
                    links,
                    [
                        (a.get("address"), a["prefixlen"])
                        for a in inner.get_addr(index=2)
                        if not str(a.get("address")).startswith("fe80")
                    ],
                    [
                        (r.get("dst"), r.get("gateway"), r.get("prefsrc"))
                        for r in inner.get_routes(family=2, table=254)
                    ],
                )

        links, addresses, routes = bench.pods[path].inside(look)
        assert links == ["up", "up", 2, 1400, "02:00:00:00:00:01", "eth0"]
        assert set(addresses) == {("10.9.0.1", 32), ("fd00:9::1", 128)}
        assert set(routes) == {("169.254.77.1", None, None), (None, "169.254.77.1", "10.9.0.1")}

    def test_a_failure_at_any_step_leaves_nothing(
        self, bench: KernelBench, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Each request in turn is spoilt: the kernel itself refuses it."""
        path = bench.add_netns()
        before, inside = objects(), bench.pods[path].objects()
        real, real_encoded = NetlinkSocket.batch, NetlinkSocket.batch_encoded
        seen: list[Request] = []

        def spoilt(requests: Sequence[Request]) -> list[Request]:
            chosen = list(requests)
            for at, request in enumerate(requests):
                if request not in seen:
                    seen.append(request)
                if seen.index(request) == target:  # and when it is tried again
                    chosen[at] = request._replace(body=request.body[:4])
            return chosen

        def spoiling(sock: NetlinkSocket, requests: list[Request]) -> None:
            real(sock, spoilt(requests))

        def spoiling_encoded(
            sock: NetlinkSocket, batch: Encoded, requests: Callable[[], Sequence[Request]]
        ) -> None:
            assert batch == encoded(requests())
            real_encoded(sock, encoded(spoilt(requests())), requests)

        for target in range(40):
            seen.clear()
            with monkeypatch.context() as patch:
                patch.setattr(NetlinkSocket, "batch", spoiling)
                patch.setattr(NetlinkSocket, "batch_encoded", spoiling_encoded)
                try:
                    self.create(bench, path)
                    break
                except KernelRefused as error:
                    told = str(error)
            assert told.startswith("attach 'w1': ")
            assert "EINVAL" in told
            assert bench.pods[path].objects() == inside, target
            assert objects() == before, target
        assert target == 16  # requests of one attach

    @pytest.mark.parametrize("where", ["outside", "inside"])
    def test_a_check_finds_everything_that_can_be_taken(
        self, bench: KernelBench, where: str
    ) -> None:
        """Each step takes something else; found is what is told of, in words,
        when the namespace may be entered, and with `*` only then.
        """
        path = bench.add_netns()
        record = self.create(bench, path)
        index, peer = record.host_ifindex, record.peer_ifindex
        key = names.key_altname(record)
        own = rtnl.link_local(record.mac)
        steps: dict[str, list[tuple[str, dict[str, Any], set[str]]]] = {
            "outside": [
                ("link", {"group": 9, "index": index}, {"group"}),
                ("link", {"address": "02:00:00:00:00:99", "index": index}, {"MAC"}),
                ("link", {"ifalias": "another", "index": index}, {"alias"}),
                ("altname", {"altname": key, "index": index}, {"alternative names"}),
                ("addr", {"address": "fe80::1", "prefixlen": 128, "index": index}, {"fe80::1"}),
                ("route", {"dst": "10.9.0.1/32", "oif": index, "scope": 253}, {"to 10.9.0.1"}),
                ("addr", {"address": "169.254.77.1", "prefixlen": 32, "index": 1}, {"of lo"}),
                ("route", {"dst": "fd00:9::1/128", "oif": index}, {"to fd00:9::1"}),
                ("route", {"dst": f"{own}/128", "oif": index}, {f"to {own}"}),
                ("link", {"state": "down", "index": index}, {"state"}),
                ("link", {"ifname": "renamed", "index": index}, {"name"}),
            ],
            "inside": [
                ("link", {"address": "02:00:00:00:00:99", "index": peer}, {"MAC"}),
                ("link", {"mtu": 1300, "index": peer}, {"MTU"}),
                ("link", {"state": "down", "index": 1}, {"lo"}),
                ("route", {"dst": "::/0", "oif": peer}, {"to ::/0*"}),
                (
                    "route",
                    {"dst": "169.254.77.1/32", "oif": peer, "scope": 253},
                    {"to 169.254.77.1/32*"},
                ),
                ("addr", {"address": "10.9.0.1", "prefixlen": 32, "index": peer}, {"10.9.0.1"}),
                ("addr", {"address": "fd00:9::1", "prefixlen": 128, "index": peer}, {"fd00:9::1"}),
                ("link", {"state": "down", "index": peer}, {"state"}),
                ("link", {"ifname": "renamed", "index": peer}, {"name"}),
            ],
        }
        told: set[str] = set()
        for verb, chosen, expected in steps[where]:

            def take(verb: str = verb, chosen: dict[str, Any] = chosen) -> None:
                with IPRoute() as other:
                    if verb == "link":
                        other.link("set", **chosen)
                    elif verb == "altname":
                        other.link("property_del", **chosen)
                    else:
                        getattr(other, verb)("del", **chosen)

            if where == "inside":
                bench.pods[path].inside(take)
            else:
                take()
            with bench.datapath.open_netns(path) as netns:
                found = {finding.what for finding in bench.datapath.check(record, netns)}
            from_outside = {finding.what for finding in bench.datapath.check(record, None)}
            assert from_outside <= found
            for word in expected:
                new = {what for what in found - told if word.rstrip("*") in what}
                assert new, (chosen, found - told)
                assert bool(new - from_outside) is word.endswith("*"), (word, new, from_outside)
            told |= found
        bench.datapath.remove([record])
        bench.again()  # puts back the first hop

    def test_unfinished_attaches_are_removed_and_foreign_links_left(
        self, bench: KernelBench
    ) -> None:
        kept = self.create(bench, bench.add_netns())
        fd = open_current()
        mac = allocs.FIRST_HOP_MAC
        ours = names.host_interface("w9", "eth0")
        group = allocs.LINK_GROUP_WORKLOAD

        def veth(name: str, index: int, mac: bytes | None = None) -> Request:
            peer = VethEnd(f"p{index}", index + 1, None)
            return rtnl.new_veth(
                VethEnd(name, index, mac), peer, netns_fd=fd, mtu=1500, group=group
            )

        def altnames(index: int) -> list[str]:
            return list(names.altnames_of(replace(kept, netns_cookie=index, host_ifindex=index)))

        newer = [name.replace("mw2", "mw3") for name in altnames(7300)]
        part = [*altnames(7310), "mw2p.1c8e.h11.tcp80"]
        with NetlinkSocket() as sock:
            sock.batch(
                [
                    veth(ours, 7000, mac),  # killed after the first batch
                    veth("foreign", 7100),
                    veth("wl0123456789abc", 7200),  # our form of name, not our MAC
                    veth("newer", 7300, mac),
                    rtnl.add_link_altnames(7300, "newer", *newer),
                    veth("part", 7310, mac),  # with a part that is unknown
                    rtnl.add_link_altnames(7310, "part", *part),
                    veth("wl0123456789abd", 7500, mac),  # ours but for the group
                    rtnl.set_link_group(7500, "wl0123456789abd", 0),
                    veth("moved", 7600, mac),  # our records, of another index
                    rtnl.add_link_altnames(7600, "moved", *altnames(7601)),
                    rtnl.set_link_up(7600, "moved"),
                    veth("wl0123456789abe", 7700, mac),  # lost one of its records
                    rtnl.add_link_altnames(7700, "wl0123456789abe", altnames(7700)[0]),
                    veth("leaving", 7800, mac),  # a removal had begun
                    rtnl.add_link_altnames(7800, "leaving", *altnames(7800)),
                    rtnl.set_link_group(7800, "leaving", allocs.LINK_GROUPS_REMOVAL[0]),
                ]
            )
        os.close(fd)
        scan = bench.again().scan()
        assert scan.complete == (kept,)
        assert set(scan.half_made) == {ours, "leaving"}
        # Not the peers of all these, of which nothing is ours.
        assert set(scan.foreign) == {
            "foreign",
            "wl0123456789abc",
            "wl0123456789abd",
            "wl0123456789abe",
            "newer",
            "part",
            "moved",
        }
        assert {(one.name, one.newer) for one in scan.held} == {
            ("newer", True),
            ("part", True),
            ("moved", False),
        }
        assert {one.ips for one in scan.held} == {kept.ips}
        assert bench.again().scan().half_made == ()
        with IPRoute() as other:
            for index in (7100, 7200, 7300, 7310, 7500, 7600, 7700):
                other.link("del", index=index)

    @pytest.mark.parametrize("how", ["running", "restarted"])
    @pytest.mark.parametrize("damage", DAMAGES, ids=[damage.name for damage in DAMAGES])
    def test_what_others_do_to_a_link_is_put_right(
        self, bench: KernelBench, damage: Damage, how: str
    ) -> None:
        """By the running service and by the next; nothing of it is touched
        twice, and nothing of the pod beside it.
        """
        Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
        path = bench.add_netns()
        record, other = self.create(bench, path), self.create(bench, bench.add_netns(), **OTHER)
        before = settled("fe80::1", 2)
        inside = settled(str(record.ips[1]), look=bench.pods[path].objects)
        damage.act(record)
        if how == "running":
            repairs = bench.datapath.repair([other, record], always, idle)
        else:
            scan = bench.again().scan()
            assert set(scan.complete) == {record, other}
            assert (scan.foreign, scan.half_made) == ((), ())
            repairs = scan.repairs
        with IPRoute() as witness:
            for bridge in witness.link_lookup(ifname="br0"):
                witness.link("del", index=bridge)
        words = {"N": record.host_interface, "OWN": str(rtnl.link_local(record.mac))}
        expected = [key.format_map(words) for key in damage.keys]
        assert [(one.key, one.error) for one in repairs] == [(key, "") for key in expected]
        assert settled("fe80::1", 2) == before
        assert bench.pods[path].objects() == inside
        with bench.datapath.open_netns(path) as netns:
            assert bench.datapath.check(record, netns) == ()
        assert not bench.datapath.repair([other, record], always, idle)
        ping(bench.pods[path], record)

    @pytest.mark.parametrize("lost", [[0], [1, 2], [3], [0, 1, 2, 3]])
    def test_lost_names_are_put_back(self, bench: KernelBench, lost: Sequence[int]) -> None:
        record = self.create(bench, bench.add_netns())
        altnames = names.altnames_of(record)
        assert len(altnames) == 4
        with IPRoute() as other:
            for number in lost:
                other.link("property_del", index=record.host_ifindex, altname=altnames[number])
        (repair,) = bench.datapath.repair([record], always, idle)
        assert (repair.key, repair.error) == (
            f"link {record.host_interface}: alternative names",
            "",
        )
        assert bench.datapath.check(record, None) == ()
        assert bench.again().scan() == Scan((record,))

    def test_a_route_in_the_place_of_ours_is_replaced(self, bench: KernelBench) -> None:
        record = self.create(bench, bench.add_netns())
        by_another(record)
        (repair,) = bench.datapath.repair([record], always, idle)
        assert (repair.key, repair.error) == (IPV4_ROUTE, "")
        assert bench.datapath.check(record, None) == ()

    @pytest.mark.parametrize(
        ("command", "ip"),
        [
            ("ip route {} blackhole 10.9.0.1 table main", "10.9.0.1"),
            ("ip -6 route {} blackhole fd00:9::1 metric 1", "fd00:9::1"),
            ("ip -6 route {} prohibit fd00:9::1 metric 1", "fd00:9::1"),
            ("ip rule {} prio 0 to 10.9.0.1 blackhole", "10.9.0.1"),
            ("ip -6 rule {} prio 0 to fd00:9::1 unreachable", "fd00:9::1"),
            ("ip address {} 10.9.0.1/32 dev lo", "10.9.0.1"),
            ("ip address {} fd00:9::1/128 dev lo", "fd00:9::1"),
        ],
    )
    def test_what_comes_before_our_routes_is_said(
        self, bench: KernelBench, monkeypatch: pytest.MonkeyPatch, command: str, ip: str
    ) -> None:
        """For as long as it does, of that attachment alone; it is not ours to
        remove. Not at once: it may be over with the next ward's look.
        """
        record = self.create(bench, bench.add_netns())
        other = self.create(bench, bench.add_netns(), **OTHER)
        assert str(record.ips[ip_address(ip).version == 6]) == ip
        before = "prepend" if "10.9.0.1 table" in command else "add"
        subprocess.run(command.format(before).split(), check=True)
        try:
            assert not bench.datapath.repair([other, record], always, idle)
            monkeypatch.setattr(restore, "_DIVERSION_REPORTED_AFTER_S", 0.0)
            for _ in range(2):
                (repair,) = bench.datapath.repair([other, record], always, idle)
                assert repair.key == f"way to {ip}"
                assert "of another program comes first" in repair.error
                assert not repair.left
        finally:
            subprocess.run(command.format("del").split(), check=True)
        assert not bench.datapath.repair([other, record], always, idle)

    def test_a_route_that_another_had_first_is_not_taken(self, bench: KernelBench) -> None:
        """But one that another put in the place of ours is; see by_another."""
        record = self.create(bench, bench.add_netns())
        by_another(record)
        datapath = bench.again()
        for found in (datapath.scan().repairs, datapath.repair([record], always, idle)):
            (repair,) = found
            assert repair.key == IPV4_ROUTE
            assert "EEXIST" in repair.error
        with IPRoute() as other:
            other.route("del", dst="10.9.0.1/32", oif=1, scope=253)
        (repair,) = datapath.repair([record], always, idle)
        assert (repair.key, repair.error) == (IPV4_ROUTE, "")

    def test_what_the_kernel_refuses_is_said_of_each(self, bench: KernelBench) -> None:
        record = self.create(bench, bench.add_netns())
        with IPRoute() as other:
            other.link("set", index=record.host_ifindex, ifname="renamed", mtu=1300)
            # The name is taken, so that cannot be put back; the rest can.
            other.link("add", ifname=record.host_interface, kind="bridge")
        repairs = {one.key: one for one in bench.datapath.repair([record], always, idle)}
        name = repairs.pop(f"link {record.host_interface}: name")
        assert "EEXIST" in name.error
        assert [one.error for one in repairs.values()] == [""]
        with IPRoute() as other:
            other.link("del", ifname=record.host_interface)
        (repair,) = bench.datapath.repair([record], always, idle)
        assert (repair.key, repair.error) == (f"link {record.host_interface}: name", "")

    def test_attachments_of_version_1_are_adopted(self, bench: KernelBench) -> None:
        """As they are: their names stay, and they are found by them."""
        path = bench.add_netns()
        with bench.datapath.open_netns(path) as netns:
            new = record_for(netns, if_name="eth1", number=2, peer=3)
            bench.datapath.create(netns, new, metric=2050)
            old = replace(record_for(netns), version=1, owner="")
        fd = bench.pods[path].fd
        with NetlinkSocket() as sock:
            sock.batch([version1.pair(old, fd), *version1.commit(old)])
        inner = bench.pods[path].inside(NetlinkSocket)
        inner.batch(messages.inside(old, 0, loopback=False))
        inner.close()
        scan = bench.again().scan()
        assert set(scan.complete) == {old, new}
        # It had no host routes, and no reverse path.
        assert [one.error for one in scan.repairs] == [""] * 5
        assert bench.again().scan() == Scan(scan.complete)
        with IPRoute() as witness:
            (link,) = witness.get_links(old.host_ifindex)
            properties = link.get("prop_list")
        assert {name for _, name in properties["attrs"]} == set(version1.altnames(old))
        with bench.datapath.open_netns(path) as netns:
            for record in (old, new):
                assert bench.datapath.check(record, netns) == ()
        ping(bench.pods[path], old)
        bench.datapath.remove([old])
        assert bench.datapath.present() == {new.host_ifindex}
        # The next of that interface is of this version.
        made = self.create(bench, path)
        assert set(bench.again().scan().complete) == {made, new}

    def test_version_1_leaves_what_this_version_makes_alone(self, bench: KernelBench) -> None:
        self.create(bench, bench.add_netns())
        self.create(bench, bench.add_netns(), **OTHER | {"workload_id": "x" * 255})
        with NetlinkSocket() as sock:
            links = [rtnl.parse_link(message) for message in sock.dump(rtnl.dump_links())]
        assert sum(link.group == allocs.LINK_GROUP_WORKLOAD for link in links) == 2
        assert not any(version1.is_ours(link) for link in links)

    def test_a_lost_route_is_put_back(self, bench: KernelBench) -> None:
        record = self.create(bench, bench.add_netns())
        with IPRoute() as other:
            other.route("del", dst="10.9.0.1/32", oif=record.host_ifindex, scope=253)
            other.route("del", dst="fd00:9::1/128", oif=record.host_ifindex)
            other.addr("del", index=record.host_ifindex, address="fe80::1", prefixlen=128)
        datapath = bench.again()
        assert {repair.key for repair in datapath.scan().repairs} == {
            "route 10.9.0.1/32",
            "route fd00:9::1/128",
            f"address fe80::1 of {record.host_interface}",
        }
        assert datapath.scan() == Scan((record,))
        with IPRoute() as witness:
            assert [a.get("address") for a in witness.get_addr(index=record.host_ifindex)] == [
                "fe80::1"
            ]

    def test_the_first_hop_is_put_back_when_somebody_took_it(self, bench: KernelBench) -> None:
        with IPRoute() as other:
            other.addr("del", index=1, address="169.254.77.1", prefixlen=32)
        record = self.create(bench, bench.add_netns())
        assert bench.again().scan().complete == (record,)

    def test_an_answer_that_is_lost_is_undone(
        self, bench: KernelBench, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It is not known then whether the pair was made."""
        path = bench.add_netns()
        before = objects()
        real = NetlinkSocket.batch_encoded

        def losing(
            sock: NetlinkSocket, batch: Encoded, requests: Callable[[], Sequence[Request]]
        ) -> None:
            real(sock, batch, requests)
            if "create veth" in requests()[0].what:
                raise ReplyLost("create veth: receive: ENOBUFS")

        with monkeypatch.context() as patch:
            patch.setattr(NetlinkSocket, "batch_encoded", losing)
            with pytest.raises(KernelRefused, match=errno.errorcode[errno.ENOBUFS]):
                self.create(bench, path)
        assert objects() == before

    def test_no_file_descriptor_and_no_thread_is_left(self, bench: KernelBench) -> None:
        path = bench.add_netns()
        record = self.create(bench, path)
        bench.datapath.remove([record])
        before = (len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task")))
        for _ in range(20):
            record = self.create(bench, path)
            bench.datapath.remove([record])
        assert before == (len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task")))
        assert not Path("/proc/self/task").joinpath(str(os.getpid()), "children").read_text()


def test_closing_under_a_call_does_not_strand_its_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread that does not find home would end this process."""
    datapath = KernelDatapath()
    datapath.open(lambda _: None, lambda: None)
    home = os.stat("/proc/thread-self/ns/net").st_ino

    def closing() -> socket.socket:
        assert os.stat("/proc/thread-self/ns/net").st_ino != home
        datapath.close()
        return open_raw()

    monkeypatch.setattr("osbase.netlink.netns.open_raw", closing)
    with pods(1) as (pod,):
        with datapath.open_netns(pod.path):
            assert os.stat("/proc/thread-self/ns/net").st_ino == home
        with pytest.raises(Unavailable, match="has stopped"), datapath.open_netns(pod.path):
            pass


def test_a_datapath_can_be_opened_again() -> None:
    datapath = KernelDatapath()
    for _ in range(2):
        datapath.open(lambda _: None, lambda: None)
        assert datapath.scan().complete == ()
        datapath.close()


class Switch(NamedTuple):
    """Where IPv6 is switched off, below net/ipv6/conf, inside or outside."""

    where: str
    inside: bool = True


def write_inside(pod: Pod, path: str, value: int) -> None:
    """Files of /proc/sys/net are those of the namespace of the thread."""
    pod.inside(lambda: Path(f"/proc/sys/net/ipv6/conf/{path}").write_text(str(value)))


@pytest.mark.parametrize(
    "switch",
    [Switch("all"), Switch("default"), Switch("default", inside=False)],
    ids=["all", "default", "default of the host"],
)
def test_where_ipv6_is_off_there_is_ipv4_alone_or_nothing(switch: Switch) -> None:
    """By the kernel's refusal, undone; a look finds nothing to mend."""
    engine = Engine(KernelDatapath())
    engine.set_prefixes([ip_network("10.9.0.0/28"), ip_network("fd00:9::/124")])
    engine.start()
    switched = Path(f"/proc/sys/net/ipv6/conf/{switch.where}/disable_ipv6")
    with pods(2) as (pod, other):
        before = objects()
        if switch.inside:
            write_inside(pod, f"{switch.where}/disable_ipv6", 1)
        else:
            switched.write_text("1")
        inside = pod.objects()
        intent = AttachIntent("w1", pod.path, "eth0")
        place = "network namespace" if switch.inside else "host"
        with pytest.raises(KernelRefused, match=rf"EACCES.*the {place} has IPv6.*optional"):
            engine.attach(intent)
        assert (objects(), pod.objects()) == (before, inside)
        assert engine.in_use(ip_network("fd00:9::/124")) == 0
        engine.set_ipv6_optional(True)
        made = engine.attach(intent)
        assert [ip.version for ip in made.ips] == [4]
        assert engine.attach(intent) == made
        switched.write_text("0")
        assert len(engine.attach(AttachIntent("w2", other.path, "eth0")).ips) == 2
        # The first interface of the namespace is still that: no metric.
        for workload_id, one in (("w1", pod), ("w2", other)):
            assert engine.check(workload_id, "eth0", one.path)[0].findings == ()
        assert not engine.repair(always)
        again = Engine(KernelDatapath())
        again.start()
        assert {one.workload_id: one.ips for one in again.list()}["w1"] == made.ips
        again.close()
        engine.set_prefixes([ip_network("fd00:9::/124")])
        engine.detach("w1")
        if switch.inside:
            with pytest.raises(KernelRefused, match="IPv6 is all there is"):
                engine.attach(intent)
        engine.detach("w2")
        assert objects() == before
    engine.close()


def test_a_kernel_without_ipv6_is_asked_nothing_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that is sent is of the family; such a kernel would refuse it."""
    real = os.path.exists
    monkeypatch.setattr(os.path, "exists", lambda path: path != "/proc/sys/net/ipv6" and real(path))
    # And says nothing of it.
    monkeypatch.setattr(rtnl.Link, "ipv6_addresses", False)
    real_dump, real_batch = NetlinkSocket.dump, NetlinkSocket.batch
    real_encoded = NetlinkSocket.batch_encoded

    def mind(requests: Sequence[Request]) -> None:
        assert all(request.body[0] != rtnl.AF_INET6 for request in requests)
        # Of a link, among its settings: the type of the attribute of a family.
        assert all(b"\x0a\x80" not in request.body for request in requests)

    def dump(sock: NetlinkSocket, request: Request) -> list[Message]:
        mind([request])
        return real_dump(sock, request)

    def batch(sock: NetlinkSocket, requests: Sequence[Request]) -> None:
        mind(requests)
        real_batch(sock, requests)

    def batch_encoded(
        sock: NetlinkSocket, batch: Encoded, requests: Callable[[], Sequence[Request]]
    ) -> None:
        mind(requests())
        real_encoded(sock, batch, requests)

    monkeypatch.setattr(NetlinkSocket, "dump", dump)
    monkeypatch.setattr(NetlinkSocket, "batch", batch)
    monkeypatch.setattr(NetlinkSocket, "batch_encoded", batch_encoded)
    engine = Engine(KernelDatapath())
    engine.set_prefixes([ip_network("10.9.0.0/28")])
    engine.start()
    with pods(1) as (pod,):
        intent = AttachIntent("w1", pod.path, "eth0", requested_mac=bytes([2, 0, 0, 0, 0, 1]))
        made = engine.attach(intent)
        assert [ip.version for ip in made.ips] == [4]
        with IPRoute() as other:
            other.link("set", index=made.host_ifindex, ifalias="", state="down")
        assert len(engine.repair(always)) == 3
        assert engine.check("w1", "eth0", pod.path)[0].findings == ()
        engine.close()
        engine = Engine(KernelDatapath())
        engine.set_prefixes([ip_network("10.9.0.0/28"), ip_network("fd00:9::/124")])
        engine.start()
        assert [one.ips for one in engine.list()] == [made.ips]
        with pytest.raises(Unavailable, match="its kernel has no IPv6"):
            engine.status()
        engine.set_ipv6_optional(True)
        engine.status()
        assert engine.attach(intent).ips == made.ips
        engine.detach("w1")
        assert len(engine.attach(intent).ips) == 1
        engine.detach("w1")
    engine.close()


def test_ipv6_that_is_switched_off_later_is_the_pods_own_business() -> None:
    engine = Engine(KernelDatapath())
    engine.set_prefixes([ip_network("10.9.0.0/28"), ip_network("fd00:9::/124")])
    engine.start()
    with pods(1) as (pod,):
        intent = AttachIntent("w1", pod.path, "eth0")
        made = engine.attach(intent)
        write_inside(pod, "eth0/disable_ipv6", 1)
        assert engine.attach(intent) == made
        assert not engine.repair(always)
        (checked,) = engine.check("w1", "eth0", pod.path)
        assert f"address {made.ips[1]} of 'eth0' inside" in {one.what for one in checked.findings}
        engine.detach("w1")
    engine.close()
