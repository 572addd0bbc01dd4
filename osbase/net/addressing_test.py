# SPDX-License-Identifier: Apache-2.0
"""Addresses and routes of a link, in a fresh network namespace."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from ipaddress import ip_address, ip_interface, ip_network

import pytest

from osbase.net import addressing
from osbase.net.addressing import Address, Addressing, Route
from osbase.netlink.errors import BatchError
from osbase.netlink.link import set_link_mtu
from osbase.netlink.transport import NetlinkSocket

OWNER = 76
METRIC = 100


def sh(command: str) -> str:
    """Run a command; returns its output."""
    done = subprocess.run(command.split(), check=True, capture_output=True, text=True, timeout=30)
    return done.stdout


@pytest.fixture
def sock() -> Iterator[NetlinkSocket]:
    """Yield a socket. The link `up0` is up, and has foreign addresses."""
    sh("sysctl -q -w net.ipv4.conf.all.promote_secondaries=1")
    sh("ip link add up0 index 77 type veth peer name up1")
    sh("ip link set up1 up")
    sh("ip link set up0 up")
    sh("ip address add 198.51.100.7/24 dev up0")
    sh("ip route add 203.0.113.0/24 via 198.51.100.1 proto static")
    try:
        with NetlinkSocket() as opened:
            yield opened
    finally:
        sh("ip link del up0")


def apply(sock: NetlinkSocket, wanted: Addressing) -> None:
    """Apply as the uplink does."""
    addressing.apply(sock, 77, "up0", wanted, protocol=OWNER, metric=METRIC)


def addresses() -> set[str]:
    """Return the addresses that ip(8) lists, without link-local ones."""
    return {
        f"{found['local']}/{found['prefixlen']}"
        for entry in json.loads(sh("ip -json address show dev up0 scope global"))
        for found in entry.get("addr_info", [])
        if "local" in found  # ip(8) lists filtered addresses as empty
    }


def routes() -> set[str]:
    """Return our routes as ip(8) lists them."""
    text = sh(f"ip route show proto {OWNER}") + sh(f"ip -6 route show proto {OWNER}")
    return {line.partition(" dev")[0] for line in text.splitlines()}


def lifetime() -> int:
    """Return the seconds that 192.0.2.50 is valid; it must exist once."""
    (entry,) = json.loads(sh("ip -json address show dev up0 to 192.0.2.50"))
    (seconds,) = [found["valid_life_time"] for found in entry["addr_info"] if found]
    return int(seconds)


def lease(address: str, router: str, valid_s: int = 100) -> Addressing:
    """Return an address and a default route through its router."""
    interface = ip_interface(address)
    default = Route(ip_network("0.0.0.0/0"), ip_address(router), interface.ip)
    return Addressing((Address(interface, valid_s),), (default,))


def test_apply_renew_change_and_remove(sock: NetlinkSocket) -> None:
    """Foreign addresses and routes stay through all steps."""
    foreign = {"198.51.100.7/24"}
    for _ in range(2):
        apply(sock, lease("192.0.2.50/24", "192.0.2.1"))
        assert addresses() == {"192.0.2.50/24"} | foreign
        assert routes() == {"default via 192.0.2.1"}
    # In the same subnet: only the older address is removed.
    apply(sock, lease("192.0.2.60/24", "192.0.2.2"))
    assert addresses() == {"192.0.2.60/24"} | foreign
    assert routes() == {"default via 192.0.2.2"}
    assert "src 192.0.2.60" in sh("ip route get 9.9.9.9")
    apply(sock, Addressing())
    assert addresses() == foreign
    assert routes() == set()
    assert "203.0.113.0/24" in sh("ip route show proto static")


def test_both_families_and_routes_on_the_link(sock: NetlinkSocket) -> None:
    """A gateway has its own route; an IPv6 address is usable at once."""
    own = ip_interface("10.0.0.9/32")
    wanted = Addressing(
        (Address(own), Address(ip_interface("2001:db8::7/64"))),
        (
            Route(ip_network("0.0.0.0/0"), ip_address("10.0.0.1"), own.ip),
            Route(ip_network("10.0.0.1/32"), None, own.ip),
            Route(ip_network("::/0"), ip_address("2001:db8::1")),
        ),
    )
    apply(sock, wanted)
    assert routes() == {"default via 10.0.0.1", "10.0.0.1", "default via 2001:db8::1"}
    assert "tentative" not in sh("ip -6 address show dev up0 scope global")
    apply(sock, wanted)
    assert len(routes()) == 3
    apply(sock, Addressing())
    assert routes() == set()


def test_address_ends_by_itself(sock: NetlinkSocket) -> None:
    """The kernel removes it, though no process does."""
    apply(sock, lease("192.0.2.50/24", "192.0.2.1", valid_s=77))
    assert 60 < lifetime() <= 77
    # Renewed: its time starts again, and it is still one address.
    apply(sock, lease("192.0.2.50/24", "192.0.2.1", valid_s=1000))
    assert lifetime() > 900


def test_what_a_former_run_left_is_found(sock: NetlinkSocket) -> None:
    """It is found by our number, over another socket."""
    apply(sock, lease("192.0.2.50/24", "192.0.2.1"))
    with NetlinkSocket() as other:
        assert addressing.current_addresses(other, 77, OWNER) == {ip_interface("192.0.2.50/24")}
        apply(other, Addressing())
    assert addressing.current_addresses(sock, 77, OWNER) == set()


def test_refusals_name_object_and_errno(sock: NetlinkSocket) -> None:
    """A gateway is not on a link; a link does not exist."""
    bad = Addressing((), (Route(ip_network("0.0.0.0/0"), ip_address("10.9.9.9")),))
    with pytest.raises(
        BatchError, match=r"add route 0\.0\.0\.0/0 via 10\.9\.9\.9 dev up0: ENETUNR"
    ):
        apply(sock, bad)
    with pytest.raises(BatchError, match=r"add address 192\.0\.2\.5/24 to up9: ENODEV"):
        addressing.apply(
            sock, 9999, "up9", lease("192.0.2.5/24", "192.0.2.1"), protocol=OWNER, metric=METRIC
        )


def test_loopback_address_and_mtu(sock: NetlinkSocket) -> None:
    """Both requests may be repeated."""
    for _ in range(2):
        sock.batch([addressing.add_loopback_address(ip_address("169.254.77.1"))])
        sock.batch([set_link_mtu(77, "up0", 1400)])
    assert "169.254.77.1/32" in sh("ip address show dev lo")
    assert "mtu 1400" in sh("ip link show up0")
