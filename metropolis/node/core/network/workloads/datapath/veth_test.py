# SPDX-License-Identifier: Apache-2.0
"""The kernel's datapath keeps the contract, and more.

Runs in a network namespace of its own, as its root.
"""

import errno
import os
import socket
from collections.abc import Callable, Container, Sequence
from pathlib import Path
from typing import Any

import pytest
from pyroute2 import IPRoute

from metropolis.node import allocs
from metropolis.node.core.network.workloads.datapath import names
from metropolis.node.core.network.workloads.datapath.veth import KernelDatapath
from metropolis.node.core.network.workloads.errors import KernelRefused, Unavailable
from metropolis.node.core.network.workloads.testing.contract import (
    DatapathContract,
    create,
)
from metropolis.node.core.network.workloads.testing.kernel_bench import KernelBench
from metropolis.node.core.network.workloads.testing.lab import objects, pods
from osbase.ip import link_local
from osbase.netlink.errors import ReplyLost
from osbase.netlink.message import Request
from osbase.netlink.template import Encoded, encoded
from osbase.netlink.transport import NetlinkSocket, open_raw


class TestKernelDatapath(DatapathContract):
    """The whole contract, on the kernel."""

    def test_both_ends_are_as_they_should_be(self, bench: KernelBench) -> None:
        path = bench.add_netns()
        record = create(bench, path)
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
            own = str(link_local(record.mac))
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

        def spoiling(
            sock: NetlinkSocket, requests: Sequence[Request], *, tolerate: Container[int] = ()
        ) -> None:
            real(sock, spoilt(requests), tolerate=tolerate)

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
                    create(bench, path)
                    break
                except KernelRefused as error:
                    reported = str(error)
            assert reported.startswith("attach 'w1': ")
            assert "EINVAL" in reported
            assert bench.pods[path].objects() == inside, target
            assert objects() == before, target
        assert target == 19  # requests of one attach

    @pytest.mark.parametrize("where", ["outside", "inside"])
    def test_a_check_finds_everything_that_can_be_taken(
        self, bench: KernelBench, where: str
    ) -> None:
        """Each step takes something else; found lists the reported differences,
        if the namespace may be entered, and those with `*` only then.
        """
        path = bench.add_netns()
        record = create(bench, path)
        index, peer = record.host_ifindex, record.peer_ifindex
        key = names.key_altname(record)
        own = link_local(record.mac)
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
        reported: set[str] = set()
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
                new = {what for what in found - reported if word.rstrip("*") in what}
                assert new, (chosen, found - reported)
                assert bool(new - from_outside) is word.endswith("*"), (word, new, from_outside)
            reported |= found
        bench.datapath.remove([record])
        bench.again()  # this restores the first hop

    def test_an_answer_that_is_lost_is_undone(
        self, bench: KernelBench, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It is unknown then whether the pair was made."""
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
                create(bench, path)
        assert objects() == before

    def test_no_file_descriptor_and_no_thread_is_left(self, bench: KernelBench) -> None:
        path = bench.add_netns()
        record = create(bench, path)
        bench.datapath.remove([record])
        before = (len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task")))
        for _ in range(20):
            record = create(bench, path)
            bench.datapath.remove([record])
        assert before == (len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task")))
        assert not Path("/proc/self/task").joinpath(str(os.getpid()), "children").read_text()


def test_closing_under_a_call_does_not_strand_its_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread that cannot return to the host would end this process."""
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
