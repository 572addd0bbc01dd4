# SPDX-License-Identifier: Apache-2.0
"""Names written on a link are read back, and garbage is not."""

from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address
from random import Random

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from metropolis.node.core.network.workloads.datapath import names
from metropolis.node.core.network.workloads.datapath.interface import Record
from metropolis.node.core.network.workloads.model import AttachIntent, IPAddress
from metropolis.node.core.network.workloads.testing import version1

IPS = st.tuples(st.none() | st.ip_addresses(v=4), st.none() | st.ip_addresses(v=6)).map(
    lambda pair: tuple(ip for ip in pair if ip is not None)
)
IF_NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=15)


TEXTS = st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1, max_size=255)
RECORDS = st.builds(
    Record,
    workload_id=TEXTS,
    if_name=IF_NAMES.filter(lambda name: len(name.encode()) <= 15),
    netns_cookie=st.integers(0, 2**64 - 1),
    host_interface=st.just("wl0"),
    host_ifindex=st.integers(1, 2**31 - 1),
    peer_ifindex=st.just(2),
    mac=st.binary(min_size=6, max_size=6),
    mtu=st.integers(1, 2**31 - 1),
    ips=IPS.filter(bool),
    request=st.binary(min_size=8, max_size=8),
    owner=st.just("") | TEXTS,
)
ONE = Record(
    workload_id="w" * 255,
    if_name="x" * 15,
    netns_cookie=2**64 - 1,
    host_interface="wl0",
    host_ifindex=2**31 - 1,
    peer_ifindex=2,
    mac=b"\xff" * 6,
    mtu=2**31 - 1,
    ips=(IPv4Address(0), IPv6Address(0)),
    request=bytes(8),
    owner="o" * 255,
)


@given(RECORDS)
@example(ONE)
def test_records_are_read_back(one: Record) -> None:
    altnames = list(names.altnames_of(one))
    assert max(len(name.encode()) for name in altnames) <= 127
    found = names.parse_altnames(["something else", *reversed(altnames)])
    assert found == names.LinkNames(
        netns_cookie=one.netns_cookie,
        if_name=one.if_name,
        ifindex=one.host_ifindex,
        mac=one.mac,
        request=one.request,
        ips=one.ips,
        workload_id=one.workload_id,
        owner=one.owner,
        mtu=one.mtu,
    )
    assert not names.is_newer(altnames)
    assert names.bears_record(altnames)
    assert names.addresses_in(altnames) == one.ips
    for lost in (altnames[:1], altnames[1:], altnames[:-1], [*altnames, altnames[-1]]):
        assert names.parse_altnames(lost) is None


@given(RECORDS)
@example(ONE)
def test_records_of_version_1_are_read_and_written(one: Record) -> None:
    old = replace(one, version=1, owner="")
    altnames = version1.altnames(old)
    assert names.altnames_of(old) == altnames
    found = names.parse_altnames(altnames)
    assert found == names.LinkNames(
        netns_cookie=old.netns_cookie,
        if_name=old.if_name,
        ifindex=old.host_ifindex,
        mac=old.mac,
        request=old.request,
        ips=old.ips,
        version=1,
    )
    assert not names.is_newer(altnames)
    assert names.addresses_in(altnames) == old.ips
    # One of each version is none of either.
    new = names.altnames_of(one)
    assert names.parse_altnames([altnames[0], new[-1]]) is None
    assert names.parse_altnames([new[0], altnames[1]]) is None


@given(RECORDS, st.randoms())
def test_a_part_that_is_not_whole_is_absent(one: Record, random: Random) -> None:
    altnames = list(names.altnames_of(one))
    parts = [name for name in altnames if name.startswith("mw2p.")]
    altnames.remove(lost := random.choice(parts))
    found = names.parse_altnames(altnames)
    assert found is not None
    of_id = lost.split(".")[2].startswith("i")
    assert found.workload_id == ("" if of_id else one.workload_id)
    assert found.owner == (one.owner if of_id else "")
    # A piece of another link's is none of this one's.
    index = f".{one.host_ifindex:x}."
    forged = lost.replace(index, f".{one.host_ifindex ^ 1:x}.", 1)
    assert names.parse_altnames([*altnames, forged]) == found


@given(st.lists(st.text(max_size=130) | st.from_regex(r"mw\d[a-z]\..*")))
def test_garbage_is_read_or_not(altnames: list[str]) -> None:
    names.parse_altnames(altnames)
    names.is_newer(altnames)
    names.bears_record(altnames)
    names.addresses_in(altnames)


def test_a_record_needs_an_address() -> None:
    assert names.parse_altnames(names.altnames_of(replace(ONE, ips=()))) is None


@pytest.mark.parametrize("text", ["", "x" * 256, "\n", "ö"])
def test_what_is_no_text_is_neither_written_nor_read(text: str) -> None:
    with pytest.raises(ValueError, match="must be 1 to 255 of printable ASCII"):
        names.part_altnames(1, "i", text)
    altnames = names.altnames_of(replace(ONE, workload_id="w"))
    prefix = names.part_prefix(ONE.host_ifindex, "i")
    forged = [f"{prefix}{text}" if name == f"{prefix}w" else name for name in altnames]
    assert forged != list(altnames)
    found = names.parse_altnames(forged)
    assert found is not None
    assert found.workload_id == ""


@given(RECORDS)
@example(ONE)
def test_records_of_version_2_are_read_and_written(one: Record) -> None:
    old = replace(one, version=2)
    altnames = list(names.altnames_of(old))
    assert altnames[0] == f"mw2k.{one.netns_cookie:016x}.{one.if_name}"
    assert altnames[-1].startswith(f"mw2r.{one.host_ifindex:x}.")
    new = names.altnames_of(one)
    assert altnames[1:-1] == list(new[1:-1])  # the texts
    found, as_new = names.parse_altnames(altnames), names.parse_altnames(new)
    assert found is not None
    assert as_new is not None
    assert found == replace(as_new, version=2)
    assert not names.is_newer(altnames)
    assert names.addresses_in(altnames) == old.ips
    assert names.parse_altnames([altnames[0], *new[1:]]) is None


@given(st.sets(st.integers(0, 2**40), min_size=2, max_size=9), st.sampled_from(["eth0", "e"]))
def test_the_kernel_s_hash_tells_keys_apart(cookies: set[int], if_name: str) -> None:
    """It is of the first 16 bytes."""
    keys = [names.key_altname(replace(ONE, netns_cookie=n, if_name=if_name)) for n in cookies]
    assert len({key[:16] for key in keys}) == len(cookies)


def test_what_newer_versions_make_is_known_as_such() -> None:
    for newer in (
        "mw4r.whatever",
        "mw10k.1.eth0",
        "mw4p.1.i11.x",
        "mw3p.1.i11.x",  # texts are of version 2
        "mw4x.",
        "mw3x.",  # of this version, of a kind that it does not know
        "mw2p.1.h11.tcp 80",  # of a part that it does not know
        "mw2p.1.i1.x",
        "mw2r.1.020000000001.0000000000000000.0a000001..5dc.more",
        "mw2k.1.eth0",
        "mw3k.1.eth0",
        "mw3r.1.020000000001.0000000000000000.0a000001..5dc.more",
    ):
        assert names.is_newer([newer]), newer
        assert names.is_newer([*names.altnames_of(ONE), newer]), newer
    for known in ("mw1r.broken", "enp0s3", "mwk.", "mw2", "xmw3r.", "mw-1r."):
        assert not names.is_newer([known]), known
        assert not names.is_newer([*names.altnames_of(ONE), known]), known


def test_addresses_of_newer_records_are_known_where_they_stand() -> None:
    newer = [name.replace("mw3", "mw7") + ".more" for name in names.altnames_of(ONE)]
    assert names.addresses_in(newer) == ONE.ips
    assert names.addresses_in(["mw7r.1.2.3", "mw7r.1.2.3.zz.4.5", "mw7r"]) == ()


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
    digests = {AttachIntent("w", "/n", "e", ips, mac).digest() for ips, mac in asked}
    assert len(digests) == len(asked)
    swapped = AttachIntent("w", "/other", "e", (six, four)).digest()
    assert swapped == AttachIntent("w", "/n", "e", (four, six)).digest()
