# SPDX-License-Identifier: Apache-2.0
"""What a start and the reconciler's looks do with links, on the kernel."""

import os
import socket
import struct
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest
from pyroute2 import IPRoute

from metropolis.node import allocs
from metropolis.node.core.network.workloads.datapath import messages, names, restore
from metropolis.node.core.network.workloads.datapath.host import Host
from metropolis.node.core.network.workloads.datapath.interface import Record, Scan
from metropolis.node.core.network.workloads.model import first_hop
from metropolis.node.core.network.workloads.testing import version1
from metropolis.node.core.network.workloads.testing.contract import (
    OTHER,
    WAIT_S,
    always,
    create,
    idle,
    record_for,
)
from metropolis.node.core.network.workloads.testing.kernel_bench import KernelBench
from metropolis.node.core.network.workloads.testing.lab import Pod, settled
from osbase.ip import family_of, link_local
from osbase.netlink.altnames import add_link_altnames
from osbase.netlink.ifla import IFF_NOARP, RTM_NEWLINK
from osbase.netlink.link import Link, dump_links, parse_link, set_link_group, set_link_up
from osbase.netlink.message import Request
from osbase.netlink.netns import open_current
from osbase.netlink.route import RTPROT_BOOT, Route, replace_route
from osbase.netlink.transport import NetlinkSocket
from osbase.netlink.veth import VethEnd, new_veth


@dataclass(frozen=True)
class Damage:
    """Damage to the host's end of an attachment, and the repairs."""

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
    body = struct.pack("=BxHiII", 0, 0, record.host_ifindex, IFF_NOARP, IFF_NOARP)
    with NetlinkSocket() as sock:
        sock.batch([Request(RTM_NEWLINK, 0, body, "set ARP off")])


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
    """As by `ip route replace`, with good intent."""
    with NetlinkSocket() as sock:
        ip, lo = ip_network(record.ips[0]), 1
        sock.batch([replace_route(Route(ip, lo, RTPROT_BOOT), "lo")])


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
    # Settings that neither traffic nor isolation needs are not touched.
    Damage("proxy_arp", written("ipv4/conf/{}/proxy_arp", 1), ()),
]


def ping(pod: Pod, record: Record) -> None:
    """The pod and the host reach each other, in both families."""
    for ip in record.ips:
        family, hop = family_of(ip), first_hop(ip.version)
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


def test_unfinished_attaches_are_removed_and_foreign_links_left(bench: KernelBench) -> None:
    kept = create(bench, bench.add_netns())
    fd = open_current()
    mac = allocs.FIRST_HOP_MAC
    ours = names.host_interface("w9", "eth0")
    group = allocs.LINK_GROUP_WORKLOAD

    def veth(name: str, index: int, mac: bytes | None = None) -> Request:
        peer = VethEnd(f"p{index}", index + 1, None)
        return new_veth(VethEnd(name, index, mac), peer, netns_fd=fd, mtu=1500, group=group)

    def altnames(index: int) -> list[str]:
        return list(names.altnames_of(replace(kept, netns_cookie=index, host_ifindex=index)))

    newer = [name.replace("mw3", "mw4") for name in altnames(7300)]
    part = [*altnames(7310), "mw2p.1c8e.h11.tcp80"]
    with NetlinkSocket() as sock:
        sock.batch(
            [
                veth(ours, 7000, mac),  # killed after the first batch
                veth("foreign", 7100),
                veth("wl0123456789abc", 7200),  # our form of name, not our MAC
                veth("newer", 7300, mac),
                add_link_altnames(7300, "newer", *newer),
                veth("part", 7310, mac),  # with a part that is unknown
                add_link_altnames(7310, "part", *part),
                veth("wl0123456789abd", 7500, mac),  # ours but for the group
                set_link_group(7500, "wl0123456789abd", 0),
                veth("moved", 7600, mac),  # our records, of another index
                add_link_altnames(7600, "moved", *altnames(7601)),
                set_link_up(7600, "moved"),
                veth("wl0123456789abe", 7700, mac),  # lost one of its records
                add_link_altnames(7700, "wl0123456789abe", altnames(7700)[0]),
                veth("leaving", 7800, mac),  # a removal had begun
                add_link_altnames(7800, "leaving", *altnames(7800)),
                set_link_group(7800, "leaving", allocs.LINK_GROUP_REMOVAL),
            ]
        )
    os.close(fd)
    scan = bench.again().scan()
    assert scan.complete == (kept,)
    assert set(scan.half_made) == {ours}
    assert scan.duplicates == ("leaving",)  # it has the addresses of `kept`
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
    bench: KernelBench, damage: Damage, how: str
) -> None:
    """By the running service and by the next one; no part is touched twice, and
    the pod beside it not at all.
    """
    Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
    path = bench.add_netns()
    record, other = create(bench, path), create(bench, bench.add_netns(), **OTHER)
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
    words = {"N": record.host_interface, "OWN": str(link_local(record.mac))}
    expected = [key.format_map(words) for key in damage.keys]
    assert [(one.key, one.error) for one in repairs] == [(key, "") for key in expected]
    assert settled("fe80::1", 2) == before
    assert bench.pods[path].objects() == inside
    with bench.datapath.open_netns(path) as netns:
        assert bench.datapath.check(record, netns) == ()
    assert not bench.datapath.repair([other, record], always, idle)
    ping(bench.pods[path], record)


@pytest.mark.parametrize(("then", "missing"), [("1", 0), ("0", 0), ("1", 1)])
def test_forwarding_that_the_host_lacked_meanwhile(
    bench: KernelBench, monkeypatch: pytest.MonkeyPatch, then: str, missing: int
) -> None:
    """Links that are seen without it because the host lacks it are not put
    back, whether the host has it again or not; a link that lacks it alone is.
    """
    host = Path("/proc/sys/net/ipv4/ip_forward")
    host.write_text("1")
    records = [create(bench, bench.add_netns()), create(bench, bench.add_netns(), **OTHER)]
    links = Host.links

    def amid(self: Host) -> list[Link]:
        host.write_text("0")
        seen = links(self)
        host.write_text(then)
        for record in records[:missing]:
            written(f"ipv4/conf/{record.host_interface}/forwarding", 0)(record)
        return seen

    with monkeypatch.context() as patched:
        patched.setattr(Host, "links", amid)
        repairs = bench.datapath.repair(records, always, idle)
    host.write_text("1")
    lacking = [f"link {one.host_interface}: ipv4 forwarding" for one in records[:missing]]
    assert [one.key for one in repairs] == lacking


@pytest.mark.parametrize("lost", [[0], [1, 2], [3], [0, 1, 2, 3]])
def test_lost_names_are_put_back(bench: KernelBench, lost: Sequence[int]) -> None:
    record = create(bench, bench.add_netns())
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


def test_a_route_in_the_place_of_ours_is_replaced(bench: KernelBench) -> None:
    record = create(bench, bench.add_netns())
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
    bench: KernelBench, monkeypatch: pytest.MonkeyPatch, command: str, ip: str
) -> None:
    """For as long as it lasts, for that attachment alone; it is not removed.
    Not at once: it may be over with the next ward's look.
    """
    record = create(bench, bench.add_netns())
    other = create(bench, bench.add_netns(), **OTHER)
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


def test_a_route_that_another_had_first_is_not_taken(bench: KernelBench) -> None:
    """But one that another put in the place of ours is; see by_another."""
    record = create(bench, bench.add_netns())
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


def test_what_the_kernel_refuses_is_said_of_each(bench: KernelBench) -> None:
    record = create(bench, bench.add_netns())
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


def test_attachments_of_version_1_are_adopted(bench: KernelBench) -> None:
    """They keep their names, and are found by them."""
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
    made = create(bench, path)
    assert set(bench.again().scan().complete) == {made, new}


def test_attachments_of_version_2_are_adopted(bench: KernelBench) -> None:
    path = bench.add_netns()
    with bench.datapath.open_netns(path) as netns:
        old = replace(record_for(netns), version=2)
        bench.datapath.create(netns, old, metric=0)
    new = create(bench, bench.add_netns(), **OTHER)
    before = settled("fe80::1", 2)
    assert bench.again().scan() == Scan((old, new))
    assert settled("fe80::1", 2) == before
    ping(bench.pods[path], old)
    bench.datapath.remove([old])
    made = create(bench, path)
    assert set(bench.again().scan().complete) == {made, new}


def test_version_1_leaves_what_this_version_makes_alone(bench: KernelBench) -> None:
    create(bench, bench.add_netns())
    create(bench, bench.add_netns(), **OTHER | {"workload_id": "x" * 255})
    with NetlinkSocket() as sock:
        links = [parse_link(message) for message in sock.dump(dump_links())]
    assert sum(link.group == allocs.LINK_GROUP_WORKLOAD for link in links) == 2
    assert not any(version1.is_ours(link) for link in links)


def test_a_lost_route_is_put_back(bench: KernelBench) -> None:
    record = create(bench, bench.add_netns())
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


def test_the_first_hop_is_put_back_when_somebody_took_it(bench: KernelBench) -> None:
    with IPRoute() as other:
        other.addr("del", index=1, address="169.254.77.1", prefixlen=32)
    record = create(bench, bench.add_netns())
    assert bench.again().scan().complete == (record,)
