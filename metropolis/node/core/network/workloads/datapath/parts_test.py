# SPDX-License-Identifier: Apache-2.0
"""The kernel's datapath keeps the contract of parts, in a kernel with a table.

And what is pure of parts and elements: texts, names, the plan of a start.
"""

import subprocess
from collections.abc import Iterator, Sequence
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
SET, MAP = NftSet("inet", "t", "s", ("mark",)), NftSet("inet", "t", "m", ("mark",))


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

SOME = [
    Element(MAP, "tcp . 80", "10.0.0.1 . 8080"),
    Element(SET, "fd00::1"),
    Element(MAP, "udp . 53", "10.0.0.1 . 53"),
]


def test_commands() -> None:
    comments = [elements.comment_of(0x1A, one) for one in SOME]
    assert elements.create_text(0x1A, SOME) == (
        f'create element inet t m {{ tcp . 80 comment "{comments[0]}" : 10.0.0.1 . 8080, '
        f'udp . 53 comment "{comments[2]}" : 10.0.0.1 . 53 }}\n'
        f'create element inet t s {{ fd00::1 comment "{comments[1]}" }}'
    )
    destroy = (
        "destroy element inet t m { tcp . 80, udp . 53 }\ndestroy element inet t s { fd00::1 }"
    )
    assert elements.destroy_text(SOME) == destroy
    found = [
        elements.parse_comment(one.set, comment)
        for one, comment in zip(SOME, comments, strict=True)
    ]
    assert found == [
        Found(one.set, comment, 0x1A, one.key) for one, comment in zip(SOME, comments, strict=True)
    ]
    assert elements.destroy_text([one for one in found if one]) == destroy


def test_a_comment_says_whose_and_of_which_data() -> None:
    one = SOME[0]
    others = [replace(one, data="10.0.0.2 . 8080"), replace(one, key="tcp . 81")]
    comments = {elements.comment_of(1, other) for other in [one, *others]}
    comments.add(elements.comment_of(2, one))
    assert len(comments) == 4
    assert all(comment.startswith("mw2e.") for comment in comments)
    longest = "x" * (128 - len("mw2e.ffffffff.01234567."))
    elements.create_text(0xFFFFFFFF, [Element(SET, longest)])
    assert len(elements.comment_of(0xFFFFFFFF, Element(SET, longest))) == 128


@pytest.mark.parametrize("bad", ["", "a, b", "a }", 'a"', "a\n", "a;b", "x" * 106, "\xe9"])
def test_what_cannot_be_written(bad: str) -> None:
    with pytest.raises(ValueError, match="cannot be written"):
        elements.create_text(1, [Element(SET, bad)])
    if bad and len(bad) < 99:
        with pytest.raises(ValueError, match="cannot be written"):
            elements.create_text(1, [Element(MAP, "80", bad)])


@pytest.mark.parametrize(
    "comment", ["", "x", "mw2e", "mw2e.1.2.3", "mw1e.1.01234567.80", "mw2e.1.01234567.80}"]
)
def test_comments_of_others(comment: str) -> None:
    assert elements.parse_comment(SET, comment) is None


@pytest.mark.parametrize(
    ("lines", "key"),
    [
        (["Error: no"], ""),
        (["Error: no", "create element inet t s { 1, 2 }", " " * 26 + "^"], "1"),
        (["Error: no", "create element inet t s { 1, 2 }", " " * 29 + "^"], "2"),
        (["Error: no", 'create element inet t s { 1 . 2 comment "x" }', " " * 26 + "^^^"], "1 . 2"),
        (["Error: no", "create element inet t s { 1, 2 }", "^" * 34], ""),
        (["", "^", "^"], ""),
    ],
)
def test_which_key_was_refused(lines: Sequence[str], key: str) -> None:
    assert elements.refused_key("\n".join(lines)) == key
