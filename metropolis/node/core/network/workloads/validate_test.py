# SPDX-License-Identifier: Apache-2.0
"""Requests are checked before anything is changed."""

from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metropolis.node.core.network.workloads import validate
from metropolis.node.core.network.workloads.errors import InvalidArgument
from metropolis.node.core.network.workloads.model import AttachIntent


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("", "must not be empty"),
        ("x" * 16, "must have at most 15 bytes, has 16"),
        ("ä" * 8, "must have at most 15 bytes, has 16"),
        ("a/b", "must not contain '/'"),
        ("a\nb", r"must not contain '\\n'"),
        ("a b", "must not contain ' '"),
        ("a:b", "must not contain ':'"),
        ("a\0b", r"must not contain '\\x00'"),
        ("eth%d", "must not contain '%'"),
        ("à", "must not contain the byte 0xa0"),
        (".", "is reserved"),
        ("..", "is reserved"),
        ("all", "is reserved"),
        ("default", "is reserved"),
    ],
)
def test_bad_interface_names(name: str, why: str) -> None:
    with pytest.raises(InvalidArgument, match=f"^if_name .*: {why}$"):
        validate.check_if_name(name)


@pytest.mark.parametrize("name", ["e", "eth0", "x" * 15, "...", "ö", "a\x01", "vlan.100", "-"])
def test_good_interface_names(name: str) -> None:
    validate.check_if_name(name)


@pytest.mark.parametrize(
    ("workload_id", "why"),
    [
        ("", "must not be empty"),
        ("x" * 256, "must have at most 255 characters"),
        ("ü", "must be printable ASCII"),
        ("a\n", "must be printable ASCII"),
        ("a\0", "must be printable ASCII"),
    ],
)
def test_bad_workload_ids(workload_id: str, why: str) -> None:
    with pytest.raises(InvalidArgument, match=f"^workload_id .*: {why}$"):
        validate.check_workload_id(workload_id)


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("", "must not be empty"),
        ("proc/1/ns/net", "must be an absolute path"),
        ("/" + "x" * 5000, "must have at most 4095 bytes"),
        ("/a\0b", "must not contain a NUL"),
    ],
)
def test_bad_paths(path: str, why: str) -> None:
    with pytest.raises(InvalidArgument, match=rf"^netns\.netns_path .*: {why}$") as caught:
        validate.check_netns_path(path)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    ("mac", "why"),
    [
        (b"", "must have 6 bytes, has 0"),
        (bytes(7), "must have 6 bytes, has 7"),
        (b"\x01\0\0\0\0\1", "must be a unicast"),
        (b"\xff" * 6, "must be a unicast"),
        (bytes(6), "must be a unicast"),
    ],
)
def test_bad_macs(mac: bytes, why: str) -> None:
    with pytest.raises(InvalidArgument, match=f"^requested_mac .*: {why}"):
        validate.check_mac(mac)


def test_addresses_are_parsed_ipv4_first() -> None:
    packed = [ip_address("fd00::7").packed, ip_address("10.0.0.7").packed]
    assert validate.parse_ips(packed) == (ip_address("10.0.0.7"), ip_address("fd00::7"))


def test_bad_addresses() -> None:
    with pytest.raises(InvalidArgument, match="requested_ip b'abc': must have 4 or 16 bytes"):
        validate.parse_ips([b"abc"])
    with pytest.raises(InvalidArgument, match=r"requested_ip 10.0.0.2: a second IPv4 address"):
        validate.parse_ips([bytes([10, 0, 0, 1]), bytes([10, 0, 0, 2])])


@given(st.text(), st.text(), st.text(), st.lists(st.binary(max_size=20)), st.binary(max_size=9))
def test_anything_is_accepted_or_refused(
    workload_id: str, path: str, if_name: str, ips: list[bytes], mac: bytes
) -> None:
    try:
        parsed = validate.parse_ips(ips)
        validate.check_attach(AttachIntent(workload_id, path, if_name, parsed, mac or None))
        validate.check_detach(workload_id, path, if_name)
    except InvalidArgument as error:
        reported = str(error)
    else:
        return
    assert reported.isascii()
    assert len(reported) < 500


def test_detach_needs_only_the_id() -> None:
    validate.check_detach("w", "", "")
    with pytest.raises(InvalidArgument, match="if_name"):
        validate.check_detach("w", "", "a/b")
