# SPDX-License-Identifier: Apache-2.0
"""The kernel's datapath keeps the contract, and more.

Runs in a network namespace of its own, as its root.
"""

import errno
import os
import queue
import socket
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from pyroute2 import IPRoute

from metropolis.node import allocs
from metropolis.node.core.network.workloads import checks, names
from metropolis.node.core.network.workloads.datapath import Datapath, Record
from metropolis.node.core.network.workloads.errors import KernelRefused, Unavailable
from metropolis.node.core.network.workloads.kernel import KernelDatapath
from metropolis.node.core.network.workloads.testing.contract import DatapathContract
from metropolis.node.core.network.workloads.testing.lab import Pod, objects, pods
from osbase.netlink import rtnl
from osbase.netlink.errors import ReplyLost
from osbase.netlink.message import Request
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
        key = names.key_altname(record.netns_cookie, record.if_name)
        kept = names.record_altname(index, record.mac, record.request, record.ips)
        with NetlinkSocket() as sock:
            sock.batch(
                [
                    rtnl.new_veth(host, peer, netns_fd=pod.fd, mtu=record.mtu, group=group),
                    rtnl.set_link_alias(index, name, record.workload_id, ipv6=True),
                    rtnl.add_link_altnames(index, name, key, kept),
                    rtnl.set_link_up(index, name),
                ]
            )

    def close(self) -> None:
        self.opened[0].remove(self.opened[0].scan().complete)
        for datapath in self.opened:
            datapath.close()
        for pod in self.pods.values():
            pod.close()


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
            own = str(checks.link_local(record.mac))
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
        key = names.key_altname(record.netns_cookie, "eth0")
        own = checks.link_local(record.mac)
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

        record = names.record_altname(7300, mac, bytes(8), kept.ips)
        elsewhere = names.record_altname(7601, mac, bytes(8), kept.ips)
        with NetlinkSocket() as sock:
            sock.batch(
                [
                    veth(ours, 7000, mac),  # killed after the first batch
                    veth("foreign", 7100),
                    veth("wl0123456789abc", 7200),  # our form of name, not our MAC
                    veth("newer", 7300, mac),
                    rtnl.add_link_altnames(7300, "newer", record.replace("mw1", "mw2")),
                    veth("wl0123456789abd", 7500, mac),  # ours but for the group
                    rtnl.set_link_group(7500, "wl0123456789abd", 0),
                    veth("moved", 7600, mac),  # our records, of another index
                    rtnl.add_link_altnames(7600, "moved", names.key_altname(9, "eth8"), elsewhere),
                    rtnl.set_link_up(7600, "moved"),
                    veth("down", 7400, mac),
                    rtnl.add_link_altnames(
                        7400, "down", names.key_altname(9, "eth9"), record.replace("1c84", "1ce8")
                    ),
                ]
            )
        os.close(fd)
        scan = bench.again().scan()
        assert scan.complete == (kept,)
        assert set(scan.half_made) == {ours, "down"}
        # Not the peers of all these, of which nothing is ours.
        assert set(scan.foreign) == {
            "foreign",
            "wl0123456789abc",
            "wl0123456789abd",
            "newer",
            "moved",
        }
        assert bench.again().scan().half_made == ()
        with IPRoute() as other:
            for index in (7100, 7200, 7300, 7500, 7600):
                other.link("del", index=index)

    def test_a_lost_route_is_put_back(self, bench: KernelBench) -> None:
        record = self.create(bench, bench.add_netns())
        with IPRoute() as other:
            other.route("del", dst="10.9.0.1/32", oif=record.host_ifindex, scope=253)
            other.route("del", dst="fd00:9::1/128", oif=record.host_ifindex)
            other.addr("del", index=record.host_ifindex, address="fe80::1", prefixlen=128)
        datapath = bench.again()
        assert datapath.scan().repaired == 1
        assert datapath.scan().repaired == 0
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
