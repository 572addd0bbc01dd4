# SPDX-License-Identifier: Apache-2.0
"""The kernel's own rules and others, as ip(8) makes them."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from ipaddress import ip_address, ip_network

import pytest

from osbase.ip import AF_INET, AF_INET6, family_of
from osbase.netlink import fibrules
from osbase.netlink.errors import BatchError, ProtocolError
from osbase.netlink.message import Message
from osbase.netlink.transport import NetlinkSocket

DEFAULT = {
    AF_INET: {(0, 255), (32766, 254), (32767, 253)},
    AF_INET6: {(0, 255), (32766, 254)},
}
VERSION = {AF_INET: 4, AF_INET6: 6}


def ip(family: int, command: str) -> None:
    subprocess.run(["ip", f"-{VERSION[family]}", *command.split()], check=True)


@pytest.fixture
def sock() -> Iterator[NetlinkSocket]:
    with NetlinkSocket() as opened:
        yield opened


def everything(sock: NetlinkSocket, family: int) -> set[tuple[int, int]]:
    """Return priority and table of rules for all packets."""
    rules = map(fibrules.parse_rule, sock.dump(fibrules.dump_rules(family)))
    return {(rule.priority, rule.table) for rule in rules if rule.everything}


@pytest.mark.parametrize("family", [AF_INET, AF_INET6])
def test_the_kernels_own_are_known_and_made_again(sock: NetlinkSocket, family: int) -> None:
    assert everything(sock, family) == DEFAULT[family]
    for priority, table in sorted(DEFAULT[family]):
        ip(family, f"rule del pref {priority}")
        assert everything(sock, family) == DEFAULT[family] - {(priority, table)}
        sock.batch([fibrules.add_rule(family, table, priority)])
        assert everything(sock, family) == DEFAULT[family]
        with pytest.raises(BatchError, match="EEXIST"):
            sock.batch([fibrules.add_rule(family, table, priority)])


@pytest.mark.parametrize("family", [AF_INET, AF_INET6])
@pytest.mark.parametrize(
    "rule",
    [
        "from {net} lookup main",
        "to {net} lookup main",
        "fwmark 7 lookup main",
        "iif lo lookup main",
        "oif lo lookup main",
        "not from {net} lookup main",
        "ipproto tcp lookup main",
        "lookup main suppress_prefixlength 0",
        "prohibit",
        "goto 32766",
    ],
)
def test_rules_for_some_packets_are_not_the_kernels_own(
    sock: NetlinkSocket, family: int, rule: str
) -> None:
    net = "192.0.2.0/24" if family == AF_INET else "2001:db8::/64"
    ip(family, f"rule add pref 100 {rule.format(net=net)}")
    assert everything(sock, family) == DEFAULT[family]
    ip(family, "rule del pref 100")


def test_large_tables(sock: NetlinkSocket) -> None:
    ip(AF_INET, "rule add pref 100 lookup 70000")
    assert (100, 70000) in everything(sock, AF_INET)
    ip(AF_INET, "rule del pref 100")


@pytest.mark.parametrize("body", [b"", bytes(11)])
def test_garbage(body: bytes) -> None:
    with pytest.raises(ProtocolError):
        fibrules.parse_rule(Message(fibrules.RTM_NEWRULE, 0, 0, 0, body))
    with pytest.raises(ProtocolError):
        fibrules.parse_rule(Message(24, 0, 0, 0, bytes(12)))


@pytest.mark.parametrize("source", ["192.0.2.1", "2001:db8::1"])
def test_a_rule_for_an_address(sock: NetlinkSocket, source: str) -> None:
    address = ip_address(source)
    family, table = family_of(address), 0x4D000003

    def found() -> list[fibrules.Rule]:
        rules = map(fibrules.parse_rule, sock.dump(fibrules.dump_rules(family)))
        return [rule for rule in rules if rule.source is not None]

    add = fibrules.add_source_rule(address, table, 32000, 77)
    sock.batch([add])
    assert found() == [fibrules.Rule(32000, table, False, ip_network(source))]
    with pytest.raises(BatchError, match="EEXIST"):
        sock.batch([add])
    for wrong in ((family, address, table + 1), (family, address + 1, table)):
        with pytest.raises(BatchError, match="ENOENT"):
            sock.batch([fibrules.del_source_rule(*wrong, 32000, 77)])
    sock.batch([fibrules.del_source_rule(family, address, table, 32000, 77)])
    assert not found()
    sock.batch([add, fibrules.del_source_rule(family, None, table, 32000, 77)])
    assert not found()
