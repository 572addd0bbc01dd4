# SPDX-License-Identifier: Apache-2.0
"""Text of others, made printable."""

import pytest
from hypothesis import given
from hypothesis import strategies as some

from osbase.text import printable


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ""),
        ("web-1 é 漢", "web-1 é 漢"),
        ("a\nb\tc", "a\\nb\\tc"),
        ("\x1b[31m", "\\x1b[31m"),
        ("\u202e", "\\u202e"),
        ("\ud800", "\\ud800"),
    ],
)
def test_control_characters_are_escaped(text: str, expected: str) -> None:
    assert printable(text) == expected


@given(some.text())
def test_it_is_one_printable_line(text: str) -> None:
    assert printable(text).isprintable()
