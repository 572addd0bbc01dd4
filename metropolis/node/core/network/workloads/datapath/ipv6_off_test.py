# SPDX-License-Identifier: Apache-2.0
"""Where IPv6 is switched off, in a namespace or in the kernel."""

import os
from collections.abc import Callable, Container, Sequence
from ipaddress import ip_network
from pathlib import Path
from typing import NamedTuple

import pytest
from pyroute2 import IPRoute

from metropolis.node.core.network.workloads.datapath.veth import KernelDatapath
from metropolis.node.core.network.workloads.engine.engine import Engine
from metropolis.node.core.network.workloads.errors import KernelRefused, Unavailable
from metropolis.node.core.network.workloads.model import AttachIntent
from metropolis.node.core.network.workloads.testing.contract import (
    always,
)
from metropolis.node.core.network.workloads.testing.lab import Pod, objects, pods
from osbase.ip import AF_INET6
from osbase.netlink.link import Link
from osbase.netlink.message import Message, Request
from osbase.netlink.template import Encoded
from osbase.netlink.transport import NetlinkSocket


class Switch(NamedTuple):
    """What switches it off, below net/ipv6/conf, inside or outside."""

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
    """The kernel refuses, the attach is undone; a look finds no damage."""
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
        engine.settle()
        assert objects() == before
    engine.close()


def test_a_kernel_without_ipv6_is_asked_nothing_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """No message is of the family; such a kernel would refuse it."""
    real = os.path.exists
    monkeypatch.setattr(os.path, "exists", lambda path: path != "/proc/sys/net/ipv6" and real(path))
    # And says nothing of it.
    monkeypatch.setattr(Link, "ipv6_addresses", False)
    real_dump, real_batch = NetlinkSocket.dump, NetlinkSocket.batch
    real_encoded = NetlinkSocket.batch_encoded

    def mind(requests: Sequence[Request]) -> None:
        assert all(request.body[0] != AF_INET6 for request in requests)
        # The type of the attribute of a family, among the settings of a link.
        assert all(b"\x0a\x80" not in request.body for request in requests)

    def dump(sock: NetlinkSocket, request: Request) -> list[Message]:
        mind([request])
        return real_dump(sock, request)

    def batch(
        sock: NetlinkSocket, requests: Sequence[Request], *, tolerate: Container[int] = ()
    ) -> None:
        mind(requests)
        real_batch(sock, requests, tolerate=tolerate)

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
