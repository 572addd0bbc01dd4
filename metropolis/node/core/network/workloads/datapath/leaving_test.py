# SPDX-License-Identifier: Apache-2.0
"""Leaving links that others changed, as the engine and a restart meet them."""

import subprocess
from ipaddress import ip_network

import pytest

from metropolis.node import allocs
from metropolis.node.core.network.workloads.datapath.interface import Record
from metropolis.node.core.network.workloads.datapath.veth import KernelDatapath
from metropolis.node.core.network.workloads.engine.engine import Engine
from metropolis.node.core.network.workloads.model import AttachIntent
from metropolis.node.core.network.workloads.testing.contract import OTHER, create
from metropolis.node.core.network.workloads.testing.kernel_bench import KernelBench
from metropolis.node.core.network.workloads.testing.lab import objects, pods
from osbase.test.namespaces import sh

IN, OUT = allocs.REMOVAL_BLOCKS
PASS = ("bytecode", "1,6 0 0 0")


@pytest.fixture
def made(bench: KernelBench) -> tuple[Record, Record]:
    return create(bench, bench.add_netns()), create(bench, bench.add_netns(), **OTHER)


@pytest.mark.parametrize("qdisc", ["clsact", "ingress"])
def test_the_engine_then_removes_it_at_once(qdisc: str) -> None:
    engine = Engine(KernelDatapath())
    engine.start()
    before = objects()
    engine.set_prefixes([ip_network("10.9.0.0/24"), ip_network("fd00:9::/120")])
    with pods(2) as (pod, other):
        made = engine.attach(AttachIntent("w1", pod.path, "eth0"))
        engine.attach(AttachIntent("w2", other.path, "eth0"))
        sh(f"tc qdisc add dev {made.host_interface} {qdisc}")
        engine.collect(lambda *_: False)
        assert objects() == before
        engine.attach(AttachIntent("w1", pod.path, "eth0"))
        engine.detach("w1", until_gone=True)
    engine.close()
    assert objects() == before


def test_others_filters_in_our_blocks_stay(bench: KernelBench, made: tuple[Record, Record]) -> None:
    """What drops all comes first, and is put back for the next link."""
    bench.datapath.cut_off(made[:1])
    for block in (IN, OUT):
        subprocess.run(
            ["tc", "filter", "add", "block", str(block), "pref", "7", "bpf", "da", *PASS],
            check=True,
        )
        sh(f"tc filter del block {block} pref 1")
    bench.datapath.cut_off(made[1:])
    for block in (IN, OUT):
        shown = sh(f"tc filter show block {block}")
        assert "pref 1 bpf chain 0 handle 0x1 direct-action" in shown


@pytest.mark.parametrize(
    "change",
    ["link set {} down", "link set {} group 0", "link set {} name other"],
)
def test_what_others_change_before_it_is_removed(
    bench: KernelBench, made: tuple[Record, Record], change: str
) -> None:
    """A restart still finds that it is leaving, and removes it."""
    bench.datapath.cut_off(made[:1])
    sh(f"ip {change.format(made[0].host_interface)}")
    again = bench.again()
    scan = again.scan()
    assert scan.complete == made[1:]
    assert [one.host_ifindex for one in scan.leaving] == [made[0].host_ifindex]
    again.remove(scan.leaving)
    assert again.present() == {made[1].host_ifindex}
