# SPDX-License-Identifier: Apache-2.0
"""Values: written ones are read back, any wrong one is refused."""

from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metropolis.node.core.curator import keys, records
from metropolis.node.core.curator.keys import Key, Kind
from metropolis.node.core.curator.records import (
    ClusterConfig,
    Member,
    PodNetwork,
    Record,
    RecordError,
)
from metropolis.node.core.curator.spec import curator_pb2 as pb

CONFIG = ClusterConfig(
    (PodNetwork(ip_network("10.200.0.0/16"), 24), PodNetwork(ip_network("fd00:200::/48"), 64))
)
RECORD = Record(
    "web-1", b"k" * 32, b"n" * 32, 3, IPv4Address("192.0.2.1"), 51820,
    (ip_network("10.200.3.0/24"),), "1.0",
)  # fmt: skip


def test_what_is_written_is_read() -> None:
    assert records.decode_cluster(records.encode_cluster(CONFIG)) == CONFIG
    assert records.decode_record(records.encode_record(RECORD)) == RECORD
    assert records.decode_claim(records.encode_claim("a")) == "a"
    assert records.decode_claim(records.encode_claim("")) == ""
    member = Member(True, 7, RECORD.prefixes)
    assert records.decode_member(records.encode_member(member)) == member


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"node_id": "UP"}, 'node_id "UP" names no node'),
        ({"node_id": ""}, 'node_id "" names no node'),
        ({"public_key": b"x" * 31}, "public_key has 31 bytes, not 32"),
        ({"public_key": bytes(32)}, "public_key is zero"),
        ({"next_public_key": b"x"}, "next_public_key has 1 bytes"),
        ({"next_public_key": b"k" * 32}, "next_public_key is public_key"),
        ({"port": 0}, "wireguard_port 0 is not"),
        ({"port": 65536}, "wireguard_port 65536 is not"),
        ({"address": IPv4Address("255.255.255.255")}, "cannot be sent to"),
        ({"address": IPv4Address("0.1.2.3")}, "cannot be sent to"),
        ({"address": IPv4Address("127.9.9.9")}, "cannot be sent to"),
        ({"address": IPv4Address("239.0.0.1")}, "cannot be sent to"),
        ({"address": IPv6Address("::1")}, "cannot be sent to"),
        ({"address": IPv6Address("::")}, "cannot be sent to"),
        ({"address": IPv6Address("fe80::1")}, "cannot be sent to"),
        ({"address": IPv6Address("ff02::1")}, "cannot be sent to"),
        ({"address": IPv6Address("::ffff:192.0.2.1")}, "cannot be sent to"),
        ({"prefixes": RECORD.prefixes * 2}, "has a prefix twice"),
        ({"version": "x" * 129}, "software_version"),
        ({"version": "a\nb"}, "software_version"),
    ],
)
def test_a_wrong_record_is_refused(changes: dict[str, object], said: str) -> None:
    data = records.encode_record(replace(RECORD, **changes))  # type: ignore[arg-type]
    with pytest.raises(RecordError, match=said):
        records.decode_record(data)


@pytest.mark.parametrize(
    ("prefix", "length", "said"),
    [
        ("10.0.0.0/8", 31, "not between /8 and /30"),
        ("10.0.0.0/8", 7, "not between /8 and /30"),
        ("fd00::/48", 127, "not between /48 and /126"),
        ("10.0.0.1/8", 24, "without host bits"),
        ("10.0.0.0/08", 24, "is not a prefix|should be written"),
        ("FD00::/48", 64, 'should be written "fd00::/48"'),
        ("0.0.0.0/0", 8, "is everything"),
        ("224.0.0.0/8", 24, "multicast"),
        ("127.0.0.0/8", 24, "loopback"),
        ("169.254.77.0/24", 28, "link-local"),
        ("168.0.0.0/7", 24, "first hop"),
        ("x" * 100, 24, "is not a prefix"),
    ],
)
def test_a_wrong_network_is_refused(prefix: str, length: int, said: str) -> None:
    message = pb.ClusterConfig()
    message.pod_network.add(prefix=prefix, node_prefix_length=length)
    with pytest.raises(RecordError, match=said):
        records.decode_cluster(message.SerializeToString())


def test_a_cluster_is_refused_as_a_whole() -> None:
    for networks, mtu, said in (
        ([], 0, "has 0 pod networks"),
        (["10.0.0.0/16"] * 2, 0, "overlap"),
        (["10.0.0.0/16"], 1279, "mtu 1279"),
    ):
        message = pb.ClusterConfig(mtu=mtu)
        for network in networks:
            message.pod_network.add(prefix=network, node_prefix_length=24)
        with pytest.raises(RecordError, match=said):
            records.decode_cluster(message.SerializeToString())


def test_an_address_of_pods_is_no_underlay() -> None:
    with pytest.raises(RecordError, match=r"is inside pod network 10\.200\.0\.0/16"):
        records.check_address(IPv4Address("10.200.255.1"), CONFIG)
    records.check_address(IPv4Address("10.201.0.1"), CONFIG)


@given(st.integers(0, 1 << 70), st.sampled_from(CONFIG.networks))
def test_prefixes_are_numbered(index: int, network: PodNetwork) -> None:
    prefix = network.nth(index % network.size)
    assert network.gives(prefix)
    assert CONFIG.gives(prefix)
    assert records.decode_claim(records.encode_claim("a")) == "a"
    assert keys.parse(keys.claim(prefix)) == Key(Kind.CLAIM, str(prefix), prefix)


@given(st.binary(max_size=200))
def test_garbage_is_refused_in_a_line(data: bytes) -> None:
    for decode in (
        records.decode_cluster,
        records.decode_member,
        records.decode_claim,
        records.decode_record,
    ):
        try:
            decode(data)
        except RecordError as error:
            assert str(error).isprintable()
            assert len(str(error)) < 200


@given(st.binary(max_size=60).map(lambda data: keys.ROOT + data) | st.binary(max_size=30))
def test_there_is_one_key_for_a_thing(data: bytes) -> None:
    key = keys.parse(data)
    if key is not None:
        made = {
            Kind.CLUSTER: lambda: keys.CLUSTER,
            Kind.MEMBER: lambda: keys.member(key.name),
            Kind.NODE: lambda: keys.node(key.name),
            Kind.CLAIM: lambda: keys.claim(ip_network(key.name)),
        }[key.kind]()
        assert made == data


@pytest.mark.parametrize(
    "key",
    [
        b"clusters", b"cluster/", b"members/", b"members/A", b"nodes/a/b", b"claims/10.0.0.0",
        b"claims/10.0.0.1/24", b"claims/10.0.0.0/024", b"claims/FD00::/64", b"claims/fd00::%a/64",
        b"nodes/\xff", b"",
    ],
)  # fmt: skip
def test_other_keys_name_nothing(key: bytes) -> None:
    assert keys.parse(keys.ROOT + key) is None


def test_a_range_ends_after_its_last_key() -> None:
    assert keys.end(b"/a/") == b"/a0"
    assert b"/a/" < b"/a/\xff\xff" < keys.end(b"/a/")


def test_quoted_is_short_and_printable() -> None:
    assert records.quoted("a\n\x7f\u00e9") == '"a\\x0a\\x7f\\xe9"'
    assert len(records.quoted("x" * 1000)) < 50
    assert ip_address("192.0.2.1") == RECORD.address
