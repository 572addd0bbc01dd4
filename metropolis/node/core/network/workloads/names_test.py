# SPDX-License-Identifier: Apache-2.0
"""What is written on a link is read back, and garbage is not."""

from ipaddress import IPv4Address, IPv6Address

from hypothesis import example, given
from hypothesis import strategies as st

from metropolis.node.core.network.workloads import names
from metropolis.node.core.network.workloads.model import AttachIntent, IPAddress

IPS = st.tuples(st.none() | st.ip_addresses(v=4), st.none() | st.ip_addresses(v=6)).map(
    lambda pair: tuple(ip for ip in pair if ip is not None)
)
IF_NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=15)


@given(
    st.integers(0, 2**64 - 1),
    IF_NAMES.filter(lambda name: len(name.encode()) <= 15),
    st.integers(1, 2**31 - 1),
    st.binary(min_size=6, max_size=6),
    st.binary(min_size=8, max_size=8),
    IPS.filter(bool),
)
@example(2**64 - 1, "x" * 15, 2**31 - 1, b"\xff" * 6, bytes(8), (IPv4Address(0), IPv6Address(0)))
def test_records_are_read_back(
    cookie: int, if_name: str, index: int, mac: bytes, request: bytes, ips: tuple[IPAddress, ...]
) -> None:
    key = names.key_altname(cookie, if_name)
    record = names.record_altname(index, mac, request, ips)
    assert max(len(key.encode()), len(record.encode())) <= 127
    found = names.parse_altnames(["something else", record, key])
    assert found == names.LinkNames(cookie, if_name, index, mac, request, ips)
    assert not names.is_other_version([key, record])
    assert names.parse_altnames([key]) is None
    assert names.parse_altnames([record]) is None
    assert names.parse_altnames([key, record, record]) is None


@given(st.lists(st.text(max_size=130) | st.from_regex(r"mw\d[kr]\..*")))
def test_garbage_is_read_or_not(altnames: list[str]) -> None:
    names.parse_altnames(altnames)
    names.is_other_version(altnames)


def test_a_record_needs_an_address() -> None:
    key = names.key_altname(1, "eth0")
    assert names.parse_altnames([key, names.record_altname(1, bytes(6), bytes(8), ())]) is None


def test_other_versions_are_known_as_such() -> None:
    assert names.is_other_version(["mw2r.whatever"])
    assert names.is_other_version(["mw10k.1.eth0"])
    assert not names.is_other_version(["mw1r.broken", "enp0s3", "mwk."])


@given(st.tuples(st.text(max_size=9), st.text(max_size=9)), st.tuples(st.text(), st.text()))
@example(("ab", "c"), ("a", "bc"))
def test_pairs_have_their_own_interface(one: tuple[str, str], other: tuple[str, str]) -> None:
    first, second = names.host_interface(*one), names.host_interface(*other)
    assert names.is_host_interface(first)
    assert (first == second) is (one == other)


def test_the_digest_tells_requests_apart() -> None:
    four, six = IPv4Address("10.0.0.1"), IPv6Address("fd00::1")
    asked: list[tuple[tuple[IPAddress, ...], bytes | None]] = [
        ((), None), ((four,), None), ((six,), None), ((four, six), None),
        ((), bytes(6)), ((four,), bytes(6)),
    ]  # fmt: skip
    digests = {names.digest(AttachIntent("w", "/n", "e", ips, mac)) for ips, mac in asked}
    assert len(digests) == len(asked)
    swapped = names.digest(AttachIntent("w", "/other", "e", (six, four)))
    assert swapped == names.digest(AttachIntent("w", "/n", "e", (four, six)))
