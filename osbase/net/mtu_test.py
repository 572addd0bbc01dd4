# SPDX-License-Identifier: Apache-2.0
"""The requests for an MTU, from every state that a process may leave."""

from __future__ import annotations

import pytest

from osbase.net import mtu
from osbase.netlink.link import Link

MARK = "mw-mtu."


def link(size: int, *names: str) -> Link:
    return Link(7, 0, "up0", b"123456", size, None, b"", 0, b"", names)


@pytest.mark.parametrize(
    ("present", "wanted", "words"),
    [
        (link(1500), None, []),
        (link(1500), 1500, []),
        (link(1500), 9000, []),
        (
            link(1500),
            1400,
            ["add alternative names to up0", "set MTU of up0 to 1400"],
        ),
        # Ended between the two, or another made it larger.
        (link(1500, "mw-mtu.1500.7"), 1400, ["set MTU of up0 to 1400"]),
        (link(1400, "mw-mtu.1500.7"), 1400, []),
        (link(1400, "mw-mtu.1500.7"), 1450, ["set MTU of up0 to 1450"]),
        (
            link(1400, "mw-mtu.1500.7"),
            None,
            ["set MTU of up0 to 1500", "remove alternative names of up0"],
        ),
        (
            link(1400, "mw-mtu.1500.7"),
            9000,
            ["set MTU of up0 to 1500", "remove alternative names of up0"],
        ),
        # Ended after the restoration.
        (link(1500, "mw-mtu.1500.7"), None, ["remove alternative names of up0"]),
        # Another link's, and nonsense.
        (link(1400, "mw-mtu.1500.8", "mw-mtu.x.7", "mw-mtu.", "mw-mtu.1.7.7"), None, []),
    ],
)
def test_steps(present: Link, wanted: int | None, words: list[str]) -> None:
    assert [one.what for one in mtu.steps(present, wanted, MARK)] == words


def test_by_hand_only_the_name_goes() -> None:
    steps = mtu.steps(link(1400, "mw-mtu.1500.7"), 1300, MARK, by_hand=True)
    assert [one.what for one in steps] == ["remove alternative names of up0"]
    assert mtu.steps(link(1400), 1300, MARK, by_hand=True) == []
