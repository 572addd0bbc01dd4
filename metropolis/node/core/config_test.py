# SPDX-License-Identifier: Apache-2.0
"""The node's configuration: files in, values or named problems out."""

from __future__ import annotations

import re
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metropolis.node.core.config import (
    AccessMode,
    Cluster,
    ConfigError,
    Network,
    NodeAccess,
    NodeConfig,
    Ports,
    load,
    parse,
)

GOOD = b"""
network {
  uplink { dhcp4 {} }
  pod_prefix: "10.192.0.0/24"
  pod_prefix: "fd00:10:192::/112"
  reserved_address: "10.192.0.1"
  mtu: 1400
}
"""


def test_good() -> None:
    """Every field is read."""
    network = parse(GOOD, "node.textproto").network
    assert network.uplink is not None
    assert network.uplink.dhcp4 is not None
    assert network.pods.prefixes == (ip_network("10.192.0.0/24"), ip_network("fd00:10:192::/112"))
    assert network.pods.reserved == {ip_address("10.192.0.1")}
    assert network.mtu == 1400


def test_empty_is_a_node_without_uplink_or_prefixes() -> None:
    """Without prefixes it is valid: a cluster supplies them later."""
    assert parse(b"", "f") == NodeConfig()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('pod_prefix: "10.0.0.1/24"', 'pod_prefix[0]: "10.0.0.1/24" has host bits set; the '
         'prefix is "10.0.0.0/24"'),
        ('pod_prefix: "fd00::1/112"', "has host bits set"),
        ('pod_prefix: "10.0.0.0"', "has no prefix length"),
        ('pod_prefix: "banana"', 'pod_prefix[0]: "banana" is not a prefix'),
        ('pod_prefix: "10.0.0.0/40"', "is not a prefix"),
        ('pod_prefix: "fd00::%eth0/64"', 'pod_prefix[0]: "fd00::%eth0/64" is not a prefix'),
        ('pod_prefix: "10.0.0.0/8" pod_prefix: "10.9.0.0/24"',
         'pod_prefix[1]: "10.9.0.0/24" overlaps "10.0.0.0/8"'),
        ('pod_prefix: "0.0.0.0/0"', "contains the first hop"),
        ('pod_prefix: "fe80::/64"', "link-local"),
        ('pod_prefix: "224.0.0.0/8"', "multicast"),
        ('reserved_address: "10.0.0.1"', 'reserved_address[0]: "10.0.0.1" is in none'),
        ('pod_prefix: "10.0.0.0/24" reserved_address: "10.0.0.x"', "is not an IPv4 or IPv6"),
        ('pod_prefix: "10.0.0.0/24" reserved_address: "10.0.0.1" reserved_address: "10.0.0.1"',
         "is there twice"),
        ("mtu: 1000", "network.mtu: 1000 is not between 1280 and 65535"),
        ('node_access { mode: "some" }', 'mode: "some" is not one of nothing, listed, all'),
        ('node_access { port: "1/tcp" }', 'goes with mode "listed", not with "nothing"'),
        ('node_access { mode: "listed" port: "0/tcp" }', 'port[0]: "0/tcp" is not "PORT/PROTOCOL"'),
        ('node_access { mode: "listed" port: "9-1/udp" }', '"9-1/udp" is not'),
        ('node_access { mode: "listed" port: "1-65536/udp" }', '"1-65536/udp" is not'),
        ('node_access { mode: "listed" port: "53" }', '"53" is not'),
        ('node_access { mode: "listed" port: "53/icmp" }', "1 to 65535, protocols tcp, udp, sctp"),
        ('node_access { mode: "listed" ' + 'port: "1/tcp" ' * 65 + "}", "65 entries; at most 64"),
        ('forwarded_destination: "metadata"', 'forwarded_destination[0]: "metadata" is no address'),
        ('forwarded_destination: "169.254.1.1/16"', 'the prefix is "169.254.0.0/16"'),
        ('forwarded_destination: "fe80::1%eth0"', "is no address or prefix"),
        ('ipv6: "maybe"', 'network.ipv6: "maybe" is not "required" or "optional"'),
        ('ntp_server: "10.1"', 'ntp_server[0]: "10.1" is no address and no host name'),
        ('ntp_server: "0.0.0.0"', "is no address and no host name"),
        ('ntp_server: "a b"', "is no address and no host name"),
        ('ntp_server: "fe80::1%eth0"', "is no address and no host name"),
        ('ntp_server: ""', "is no address and no host name"),
        ('ntp_server: "x\\nserver y"', "is no address and no host name"),
        ('ntp_server: "a" ' * 9, "network.ntp_server: has 9 entries; at most 8"),
        ("new_flows_per_second: 1000001", "is more than 1000000"),
        ('uplink { name: "no way" }', 'network.uplink.name: "no way"'),
    ],
)  # fmt: skip
def test_problems_name_file_field_and_value(text: str, message: str) -> None:
    """Errors name line and column, so that they are found in the file."""
    with pytest.raises(ConfigError) as caught:
        parse(f"network {{ {text} }}".encode(), "node.textproto")
    assert re.search(r"node.textproto:1:[0-9]+: network\.", str(caught.value))
    assert message in str(caught.value)


def test_all_problems_at_once() -> None:
    """Each fault has a line."""
    with pytest.raises(ConfigError) as caught:
        parse(b'network { mtu: 1 pod_prefix: "x" reserved_address: "y" }', "f")
    assert len(str(caught.value).splitlines()) == 3


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"network {\n  uplnk {}\n}", "f:2:3: "),
        (b'network {\n pod_prefix: "a\n}', "f:2:"),
        (b"network {", "f:1:"),
        (b"\n\n\xff", "f:3: not UTF-8"),
        (b"network { mtu: -1 }", "f:1:"),
        (b"network {" * 5000, "f:"),
    ],
)
def test_syntax_errors_name_the_place(data: bytes, message: str) -> None:
    """The error names file, line and column."""
    with pytest.raises(ConfigError) as caught:
        parse(data, "f")
    assert message in str(caught.value)


@given(st.binary(max_size=200))
def test_any_bytes_are_survived(data: bytes) -> None:
    """Garbage is a ConfigError, or happens to be valid."""
    try:
        parse(data, "f")
    except ConfigError as error:
        assert str(error).startswith("f:")


def test_files(tmp_path: Path) -> None:
    """A file that is missing, a directory, too long, good."""
    with pytest.raises(ConfigError, match="none: No such file"):
        load(str(tmp_path / "none"))
    with pytest.raises(ConfigError, match="Is a directory"):
        load(str(tmp_path))
    file = tmp_path / "node.textproto"
    file.write_bytes(b"#" * (1 << 21))
    with pytest.raises(ConfigError, match="over"):
        load(str(file))
    file.write_bytes(GOOD)
    assert load(str(file)).network.mtu == 1400


def _network(text: str) -> Network:
    return parse(b"network { %s }" % text.encode(), "f").network


def test_what_pods_may_reach() -> None:
    """Pods reach nothing by default; else the list, or all."""
    assert _network("").node_access == NodeAccess(AccessMode.NOTHING)
    assert _network('node_access { mode: "all" }').node_access == NodeAccess(AccessMode.ALL)
    ports = 'port: "10250/tcp" port: "53/udp" port: "30000-32767/sctp" port: "53/udp"'
    assert _network(f'node_access {{ mode: "listed" {ports} }}').node_access == NodeAccess(
        AccessMode.LISTED,
        (Ports("sctp", 30000, 32767), Ports("tcp", 10250, 10250), Ports("udp", 53, 53)),
    )
    wanted = ("169.254.169.254", "fd00:ec2::/64")
    listed = " ".join(f'forwarded_destination: "{one}"' for one in wanted)
    assert _network(listed).forwarded == tuple(map(ip_network, wanted))
    assert not _network("").routed_pods
    assert _network("routed_pods: true").routed_pods


def test_waits_and_limits() -> None:
    """An absent field has its default; 0 seconds means no wait."""
    plain = _network("")
    assert (plain.ipv6_optional, plain.names_wait_s, plain.new_flows_per_second) == (
        False,
        30.0,
        1000,
    )
    said = _network('ipv6: "optional" names_wait_s: 0 new_flows_per_second: 7')
    assert (said.ipv6_optional, said.names_wait_s, said.new_flows_per_second) == (True, 0.0, 7)
    assert not _network('ipv6: "required"').ipv6_optional


def test_time_servers() -> None:
    wanted = ("192.0.2.1", "2001:db8::7", "ntp.example.org", "0.pool.ntp.org.")
    listed = " ".join(f'ntp_server: "{one}"' for one in (*wanted, wanted[0]))
    assert _network(listed).ntp_servers == wanted


def test_an_uplink_within_the_pod_prefix_is_no_reason_not_to_start() -> None:
    """The gate refuses the prefix, not the parser; Status reports it."""
    text = 'uplink { static { address: "10.0.0.9/24" } } pod_prefix: "10.0.0.0/16"'
    assert _network(text).pods.prefixes == (ip_network("10.0.0.0/16"),)


CLUSTER = """
cluster {
  node_id: "node-1"
  etcd_endpoint: "etcd.test"
  etcd_endpoint: "[2001:DB8::7]:2400"
  %s
}
"""


def test_cluster() -> None:
    """A node of a cluster gets its prefixes from the cluster."""
    cluster = parse((CLUSTER % "key_rotation_hours: 2").encode(), "f").cluster
    assert cluster == Cluster(
        "node-1", ("etcd.test:2379", "[2001:db8::7]:2400"), key_rotation_s=7200.0
    )
    cluster = parse((CLUSTER % 'underlay_address: "192.0.2.7"').encode(), "f").cluster
    assert cluster is not None
    assert cluster.underlay_address == ip_address("192.0.2.7")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('cluster { etcd_endpoint: "a" }', 'cluster.node_id: "" is not 1 to 63'),
        ('cluster { node_id: "A" etcd_endpoint: "a" }', 'cluster.node_id: "A" is not'),
        ('cluster { node_id: "-a" etcd_endpoint: "a" }', "cluster.node_id"),
        ('cluster { node_id: "a/../b" etcd_endpoint: "a" }', "cluster.node_id"),
        ('cluster { node_id: "a" }', "cluster.etcd_endpoint: is missing"),
        ('cluster { node_id: "a" etcd_endpoint: "https://a" }', "no scheme"),
        ('cluster { node_id: "a" etcd_endpoint: "a:0" }', "cluster.etcd_endpoint[0]"),
        ('cluster { node_id: "a" etcd_endpoint: "a:65536" }', "cluster.etcd_endpoint[0]"),
        ('cluster { node_id: "a" etcd_endpoint: "[::x]" }', "cluster.etcd_endpoint[0]"),
        ('cluster { node_id: "a" etcd_endpoint: "::1" }', "cluster.etcd_endpoint[0]"),
        ('cluster { node_id: "a" etcd_endpoint: "a" etcd_endpoint: "a:2379" }', "twice"),
        (CLUSTER % 'key_file: "key.pem"', 'cluster.key_file: "key.pem" is not an absolute'),
        (CLUSTER % 'underlay_address: "fe80::1"', "cannot be reached by other nodes"),
        (CLUSTER % 'underlay_address: "nonsense"', "cluster.underlay_address"),
        ('network { mtu: 1400 }' + CLUSTER % "", "network.mtu: comes from the cluster"),
        ('network { pod_prefix: "10.0.0.0/24" }' + CLUSTER % "", "comes from the cluster"),
    ],
)  # fmt: skip
def test_problems_of_a_cluster(text: str, message: str) -> None:
    """Each fault is found, and named."""
    with pytest.raises(ConfigError) as caught:
        parse(text.encode(), "f")
    assert message in str(caught.value)
