# SPDX-License-Identifier: Apache-2.0
"""Announcements that neighbours receive, from us and from the kernel.

this namespace: up0 ----- veth ----- far0: namespace "far"
"""

from __future__ import annotations

import errno
import json
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

import pytest

from osbase.ip import IPAddress
from osbase.net import announce
from osbase.netlink import netns

LIMIT_S = 30
MAC = bytes.fromhex("020000000007")
IPV4, IPV6 = IPv4Address("192.0.2.7"), IPv6Address("2001:db8::7")
_ETH_P_ALL = 3


def sh(command: str) -> str:
    """Run a command; returns its output."""
    done = subprocess.run(command.split(), check=True, capture_output=True, text=True, timeout=30)
    return done.stdout


def announced(frame: bytes) -> IPAddress | None:
    """Return the address that a frame announces at MAC, if any."""
    kind = int.from_bytes(frame[12:14])
    if kind == 0x0806 and frame[22:28] == MAC and frame[28:32] == frame[38:42]:
        return IPv4Address(frame[28:32])
    if kind == 0x86DD and frame[20] == 58 and frame[54] == 136 and frame[58] & 0x20:
        return IPv6Address(frame[62:78])
    return None


@pytest.fixture
def far() -> Iterator[socket.socket]:
    """Make the link, with both addresses; yield a socket at its other end."""
    sh("ip netns add far")
    sh("ip link add up0 address 02:00:00:00:00:07 type veth peer name far0 netns far")
    sh("nsenter --net=/run/netns/far ip link set far0 up")
    home, there = netns.open_current(), netns.open_path("/run/netns/far")
    with netns.Inside(there, home):
        heard = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL))
        heard.bind(("far0", _ETH_P_ALL))
    os.close(home)
    os.close(there)
    heard.settimeout(LIMIT_S)
    yield heard
    heard.close()
    sh("ip link del up0")  # before its namespace, which would do it in time
    sh("ip netns del far")


def hears(far: socket.socket) -> list[IPAddress]:
    """Return what was announced until now; our last frame marks the end."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as end:
        end.bind(("up0", 0))
        end.send(b"\xff" * 6 + MAC + b"\x88\xb5" + b"end".ljust(46, b"\0"))
    found: list[IPAddress] = []
    while True:
        try:
            frame = far.recv(2048)
        except OSError as error:
            if error.errno != errno.ENETDOWN:  # reported once, after the link went down
                raise
            continue
        if frame[12:14] == b"\x88\xb5":
            return found
        address = announced(frame)
        if address is not None:
            found.append(address)


def up() -> None:
    """Set the link up, and wait until it can be used."""
    sh("ip link set up0 up")
    deadline = time.monotonic() + LIMIT_S
    while json.loads(sh("ip -json link show up0"))[0]["operstate"] != "UP":
        assert time.monotonic() < deadline


def neighbours(family: int) -> dict[str, str]:
    """Return the neighbour table of the other end."""
    listed = json.loads(sh(f"nsenter --net=/run/netns/far ip -json -{family} neigh show dev far0"))
    return {one["dst"]: one.get("lladdr", "") for one in listed}


def test_neighbours_believe_it(far: socket.socket) -> None:
    """In a real kernel's tables, the addresses change to our MAC."""
    up()
    for address in (IPV4, IPV6):
        # Stale: the kernel locks an entry for a second against a change.
        sh(
            f"nsenter --net=/run/netns/far ip neigh add {address} "
            "lladdr 02:00:00:00:00:99 dev far0 nud stale"
        )
    deadline = time.monotonic() + LIMIT_S
    while True:
        announce.send("up0", MAC, [IPV4, IPV6], router=False)
        assert hears(far) == [IPV4, IPV6]
        tables = neighbours(4) | neighbours(6)
        if tables[str(IPV4)] == tables[str(IPV6)] == "02:00:00:00:00:07":
            break
        assert time.monotonic() < deadline, tables


def test_what_the_kernel_announces_by_itself(far: socket.socket) -> None:
    """The reason for this module: with both settings on, the kernel announces
    neither an added IPv4 address nor a carrier that returns.
    """
    Path("/proc/sys/net/ipv4/conf/up0/arp_notify").write_text("1")
    Path("/proc/sys/net/ipv6/conf/up0/ndisc_notify").write_text("1")
    up()
    hears(far)
    sh(f"ip address add {IPV4}/24 dev up0")
    sh(f"ip address add {IPV6}/64 dev up0 nodad")
    added = hears(far)
    sh("nsenter --net=/run/netns/far ip link set far0 down")
    sh("nsenter --net=/run/netns/far ip link set far0 up")
    up()
    returned = hears(far)
    sh("ip link set up0 down")
    up()
    set_up = hears(far)
    print(f"added {added}, carrier returned {returned}, set up {set_up}")
    assert IPV4 not in added
    assert IPV4 not in returned
    assert IPV4 in set_up


def test_a_link_that_is_down_or_gone(far: socket.socket) -> None:
    """A link that is down drops frames, a missing one is an error."""
    announce.send("up0", MAC, [IPV4, IPV6], router=True)
    with pytest.raises(OSError, match="No such device"):
        announce.send("up9", MAC, [IPV4], router=True)


@pytest.mark.parametrize("text", ["192.0.2.7", "2001:db8::7"])
def test_frames(text: str) -> None:
    """Lengths are as the headers say; the router flag is as requested."""
    address = ip_address(text)
    for router in (False, True):
        frame = announce.frame(MAC, address, router=router)
        assert frame[6:12] == MAC
        assert announced(frame) == address
        if address.version == 6:
            assert int.from_bytes(frame[18:20]) == len(frame) - 54
            assert bool(frame[58] & 0x80) is router
