# SPDX-License-Identifier: Apache-2.0
"""The kernel's datapath keeps the contract of parts, in a kernel with a table.

And what is pure of parts and elements: texts, names, the plan of a start.
"""

import subprocess
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv4Address

import pytest

from metropolis.node.core.network.workloads.datapath import elements, names, plan
from metropolis.node.core.network.workloads.datapath.elements import Element, Found, NftSet
from metropolis.node.core.network.workloads.datapath.interface import Held, Record
from metropolis.node.core.network.workloads.datapath.parts import Parts
from metropolis.node.core.network.workloads.model import PartText
from metropolis.node.core.network.workloads.parts import TEXT_MAX
from metropolis.node.core.network.workloads.testing.kernel_bench import KernelBench
from metropolis.node.core.network.workloads.testing.lab import objects
from metropolis.node.core.network.workloads.testing.parts_contract import PartsContract
from metropolis.node.core.network.workloads.testing.toy_part import COLOUR, TABLE
from osbase.netlink.link import Link

ONE = Record(
    workload_id="w1",
    if_name="eth0",
    netns_cookie=7,
    host_interface=names.host_interface("w1", "eth0"),
    host_ifindex=5001,
    peer_ifindex=2,
    mac=b"\x02abcde",
    mtu=1400,
    ips=(IPv4Address("10.9.0.1"),),
    request=bytes(8),
    owner="api",
    parts=(("c", "blue,red"),),
)
PARTS = Parts((COLOUR,))
SET = NftSet("inet", "t", "s", ("ipv6_addr",))
MAP = NftSet("inet", "t", "m", ("inet_proto", "inet_service"), ("ipv4_addr", "inet_service"))
ELEMENT = Element(
    MAP, elements.pack(MAP.key, "tcp . 80"), elements.pack(MAP.data, "10.0.0.1 . 8080")
)


@pytest.fixture
def parts_bench() -> Iterator[KernelBench]:
    subprocess.run(["nft", TABLE], check=True)
    made = KernelBench((COLOUR,))
    before = objects()
    yield made
    made.close()
    assert objects() == before
    assert made.keys() <= {"3"}, "what a test added"
    subprocess.run(["nft", "flush ruleset"], check=True)


class TestKernelParts(PartsContract):
    """All of the contract of parts, on the kernel."""


# ---- Names ------------------------------------------------------------------


@pytest.mark.parametrize(
    "parts",
    [
        (("c", "blue"),),
        (("c", "x"), ("d", "y" * names.PIECE_MAX), ("z", "z" * (names.PIECE_MAX + 1))),
        (("a", "tcp 80>8080." * 81), ("h", " " * TEXT_MAX)),
    ],
    ids=["one", "three", "longest"],
)
def test_parts_are_read_back(parts: tuple[PartText, ...]) -> None:
    one = replace(ONE, parts=parts)
    altnames = names.altnames_of(one)
    assert all(len(name) <= 127 for name in altnames)
    assert altnames[-1] == names.record_altname(one)
    found = names.parse_altnames(reversed(altnames))
    assert found is not None
    assert (found.parts, found.workload_id, found.owner) == (parts, "w1", "api")
    letters = [letter for letter, _ in parts]
    assert not names.is_newer(altnames, letters)
    for letter in letters:
        assert names.is_newer(altnames, [other for other in letters if other != letter])


def test_a_text_is_as_long_as_nine_names() -> None:
    assert TEXT_MAX == 9 * names.PIECE_MAX
    assert len(names.part_altnames(0xFFFFFFFF, "c", "x" * TEXT_MAX)) == 9
    for text in ("", "x" * (TEXT_MAX + 1), "\n"):
        with pytest.raises(ValueError, match=f"must be 1 to {TEXT_MAX}"):
            names.part_altnames(1, "c", text)


def test_a_text_that_lacks_a_piece_is_lost() -> None:
    one = replace(ONE, parts=(("c", "x" * 300), ("d", "y")))
    altnames = names.altnames_of(one)
    for lost in (name for name in altnames if ".c" in name):
        found = names.parse_altnames(name for name in altnames if name != lost)
        assert found is not None
        assert found.parts == (("d", "y"),)


# ---- Plan -------------------------------------------------------------------


def link_of(one: Record) -> Link:
    return Link(
        ifindex=one.host_ifindex,
        flags=1,
        name=one.host_interface,
        mac=b"\x02\x9c\x52\xfe\x6d\x0a",
        mtu=one.mtu,
        peer=one.peer_ifindex,
        alias=one.workload_id.encode(),
        group=8,
        kind=b"veth",
        altnames=names.altnames_of(one),
    )


@pytest.mark.parametrize(
    ("text", "parts"),
    [("blue,red", Parts()), ("purple", PARTS), ("red,blue", PARTS)],
    ids=["an unknown letter", "an unknown text", "another order"],
)
def test_what_is_not_understood_is_a_newer_version_s(text: str, parts: Parts) -> None:
    link = link_of(replace(ONE, parts=(("c", text),)))
    held = Held(link.name, link.ifindex, ONE.ips, newer=True)
    planned = plan.plan([link], set(), parts)
    assert planned == plan.Plan((), held=(held,), foreign=(link.name,))


def test_what_is_understood_is_adopted() -> None:
    assert plan.plan([link_of(ONE)], set(), PARTS) == plan.Plan((ONE,))


# ---- Elements ---------------------------------------------------------------


def test_comments() -> None:
    for one in (ELEMENT, Element(SET, elements.pack(SET.key, "fd00::1"))):
        comment = elements.comment_of(0x1A, one)
        assert elements.parse_comment(one.set, comment) == Found(one.set, comment, 0x1A, one.key)


@pytest.mark.parametrize(
    ("types", "text", "packed"),
    [
        (("inet_proto", "inet_service"), "tcp . 80", "06000000 00500000"),
        (("ipv4_addr", "inet_proto", "inet_service"), "192.0.2.7 . udp . 65535",
         "c0000207 11000000 ffff0000"),
        (("ipv6_addr", "inet_service"), "fd00::1 . 1", "fd000000000000000000000000000001 00010000"),
        (("inet_proto",), "sctp", "84"),
        (("inet_service",), "80", "0050"),
        (("ipv4_addr", "ipv4_addr"), "10.0.0.1 . 10.0.0.1", "0a0000010a000001"),
    ],
)  # fmt: skip
def test_keys(types: tuple[str, ...], text: str, packed: str) -> None:
    assert elements.pack(types, text) == bytes.fromhex(packed)
    assert elements.unpack(types, bytes.fromhex(packed)) == text


@pytest.mark.parametrize("packed", ["", "06", "0600000000500000ff", "060000000050"])
def test_a_key_of_another_length_is_shown_in_hex(packed: str) -> None:
    assert elements.unpack(("inet_proto", "inet_service"), bytes.fromhex(packed)) == packed


@pytest.mark.parametrize(
    ("types", "text"),
    [
        (("inet_proto", "inet_service"), "tcp"),
        (("inet_service",), "tcp . 80"),
        (("inet_service",), "65536"),
        (("inet_service",), "-1"),
        (("inet_proto",), "icmp"),
        (("ipv4_addr",), "fd00::1"),
        (("ipv6_addr",), "10.0.0.1"),
        (("mark",), ""),
    ],
)
def test_what_is_no_key(types: tuple[str, ...], text: str) -> None:
    with pytest.raises(ValueError, match="is no "):
        elements.pack(types, text)


def test_a_comment_says_whose_and_of_which_data() -> None:
    one = ELEMENT
    others = [
        replace(one, data=elements.pack(MAP.data, "10.0.0.2 . 8080")),
        replace(one, key=elements.pack(MAP.key, "tcp . 81")),
    ]
    comments = {elements.comment_of(1, other) for other in [one, *others]}
    comments.add(elements.comment_of(2, one))
    assert len(comments) == 4
    assert all(comment.startswith("mw2e.") for comment in comments)


@pytest.mark.parametrize(
    "comment",
    [
        "",
        "x",
        "mw2e",
        "mw2e.1.2.3",
        "mw1e.1.01234567.80",
        "mw2e.1.01234567.80}",
        "mw2e.1.01234567.8",
    ],
)
def test_comments_of_others(comment: str) -> None:
    assert elements.parse_comment(SET, comment) is None
