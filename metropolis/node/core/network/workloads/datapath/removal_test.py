# SPDX-License-Identifier: Apache-2.0
"""Removals that meet other programs on the host."""

import errno
import json
import socket
import time
from collections.abc import Callable, Sequence
from ipaddress import ip_address

import pytest

from metropolis.node import allocs
from metropolis.node.core.network.workloads.datapath.interface import Record
from metropolis.node.core.network.workloads.errors import KernelRefused
from metropolis.node.core.network.workloads.testing.contract import create
from metropolis.node.core.network.workloads.testing.kernel_bench import KernelBench
from metropolis.node.core.network.workloads.testing.lab import WAIT_S
from osbase.netlink.errors import BatchError, RequestError
from osbase.netlink.message import Request
from osbase.netlink.tcx import Tcx
from osbase.netlink.transport import NetlinkSocket
from osbase.test.namespaces import sh

BRIEF_S = 0.5  # for what must not come


def of(record: Record) -> list[str]:
    """Return the names of the links that have a record's index."""
    links = json.loads(sh("ip -j link show"))
    return [one["ifname"] for one in links if one["ifindex"] == record.host_ifindex]


def hide(record: Record) -> None:
    """Take all from a link by which it can be known."""
    (link,) = json.loads(sh(f"ip -j link show dev {record.host_interface}"))
    for name in link["altnames"]:
        sh(f"ip link property del dev {record.host_interface} altname {name}")
    sh(f"ip link set dev {record.host_interface} alias other")
    sh(f"ip link set dev {record.host_interface} name other group 7")


def rename(record: Record) -> None:
    sh(f"ip link set dev {record.host_interface} name other")


def take_names(record: Record) -> None:
    hide(record)
    sh(f"ip link set dev other name {record.host_interface}")


def move(record: Record) -> None:
    sh(f"ip link set dev {record.host_interface} group 7 down")


def put_back(record: Record) -> None:
    """As a program does that takes its own filters away."""
    sh(f"tc qdisc del dev {record.host_interface} clsact")


@pytest.mark.parametrize("change", [hide, rename, take_names, move, put_back])
def test_what_others_do_to_a_link_that_is_cut_off(
    bench: KernelBench, change: Callable[[Record], None]
) -> None:
    """It is deleted all the same, since its addresses are free afterwards."""
    record = create(bench, bench.add_netns())
    bench.datapath.cut_off([record])
    change(record)
    bench.datapath.remove([record])
    assert of(record) == []


def test_a_link_in_the_group_that_cannot_be_deleted(bench: KernelBench) -> None:
    """It refuses the deletion of the whole group."""
    records = [create(bench, bench.add_netns(), workload_id=f"w{n}", number=n) for n in (1, 2)]
    sh(f"ip link set lo group {allocs.LINK_GROUP_REMOVAL}")
    try:
        bench.datapath.cut_off(records)
        bench.datapath.remove(records)
    finally:
        sh("ip link set lo group 0")
    assert [of(record) for record in records] == [[], []]


@pytest.mark.parametrize("kind", ["clsact", "ingress"])
def test_filters_of_others(bench: KernelBench, kind: str) -> None:
    """The call removes the link then; others' filters are never replaced."""
    records = [create(bench, bench.add_netns(), workload_id=f"w{n}", number=n) for n in (1, 2)]
    sh(f"tc qdisc add dev {records[0].host_interface} {kind}")
    with pytest.raises(KernelRefused, match="EEXIST"):
        bench.datapath.cut_off(records)
    bench.datapath.remove(records)
    assert [of(record) for record in records] == [[], []]


def test_a_tcx_program_of_others(bench: KernelBench, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would run before our filters, and end their run."""
    record = create(bench, bench.add_netns())
    monkeypatch.setattr(Tcx, "is_on", lambda _, index: index == record.host_ifindex)
    with pytest.raises(KernelRefused, match="tcx"):
        bench.datapath.cut_off([record])


def test_filters_that_others_took_from_the_blocks(bench: KernelBench) -> None:
    """The next removal puts them back."""
    records = [create(bench, bench.add_netns(), workload_id=f"w{n}", number=n) for n in (1, 2)]
    bench.datapath.cut_off(records[:1])
    for block in allocs.REMOVAL_BLOCKS:
        sh(f"tc filter del block {block}")
    bench.datapath.cut_off(records[1:])
    for block in allocs.REMOVAL_BLOCKS:
        assert "bpf" in sh(f"tc filter show block {block}")
    bench.datapath.remove(records)


@pytest.mark.parametrize("dies", [True, False])
def test_links_that_die_while_they_are_cut_off(
    bench: KernelBench, monkeypatch: pytest.MonkeyPatch, dies: bool
) -> None:
    """The last one takes the blocks with it; with no link that is no error."""
    record = create(bench, bench.add_netns())

    def batch(_: NetlinkSocket, requests: Sequence[Request], **more: object) -> None:
        if dies:
            sh(f"ip link del {record.host_interface}")
        raise BatchError(
            [RequestError(at, 44, requests[at].what, errno.EINVAL, "") for at in (1, 2)]
        )

    with monkeypatch.context() as patched:
        patched.setattr(NetlinkSocket, "batch", batch)
        if dies:
            bench.datapath.cut_off([record])
        else:
            with pytest.raises(KernelRefused, match="EINVAL"):
                bench.datapath.cut_off([record])
    bench.datapath.remove([record])


def test_what_waits_in_a_queue(bench: KernelBench) -> None:
    """A queueing discipline has taken it before the filters were there."""
    path = bench.add_netns()
    record = create(bench, path)
    name, address = record.host_interface, str(ip_address(record.ips[0]))
    sh(f"tc qdisc add dev {name} root tbf rate 80kbit burst 2k latency 60s")
    with (
        bench.pods[path].socket(socket.AF_INET, socket.SOCK_DGRAM) as taker,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender,
    ):
        taker.bind((address, 0))
        sender.connect(taker.getsockname())
        deadline = time.monotonic() + WAIT_S
        while not json.loads(sh(f"tc -s -j qdisc show dev {name} root"))[0]["qlen"]:
            sender.send(bytes(500))
            assert time.monotonic() < deadline
        for _ in range(50):
            sender.send(bytes(500))
        bench.datapath.cut_off([record])
        taker.setblocking(False)
        try:
            while True:
                taker.recv(1000)
        except BlockingIOError:
            pass
        taker.settimeout(BRIEF_S)
        with pytest.raises(TimeoutError):
            taker.recv(1000)
    bench.datapath.remove([record])
