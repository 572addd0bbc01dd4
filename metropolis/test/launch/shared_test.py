# SPDX-License-Identifier: Apache-2.0
"""When objects are made, and in which order they end."""

import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager

import pytest

from metropolis.test.launch.shared import MOST, Shared, SharedError

type Make = Callable[[], AbstractAsyncContextManager[str]]


def maker(said: list[str], name: str) -> Make:
    @contextlib.asynccontextmanager
    async def make() -> AsyncIterator[str]:
        said.append(f"+{name}")
        yield name
        said.append(f"-{name}")

    return make


async def test_one_is_made_for_a_key() -> None:
    said: list[str] = []
    shared = Shared()
    for _ in range(2):
        assert await shared.get(("a", 1), maker(said, "a")) == "a"
    assert said == ["+a"]
    assert await shared.get(("a", 2), maker(said, "b")) == "b"
    assert said == ["+a", "-a", "+b"]
    await shared.close()
    await shared.close()
    assert said == ["+a", "-a", "+b", "-b"]
    # Also for the same key.
    await shared.get(("a", 2), maker(said, "c"))
    assert (said[-1], shared.made) == ("+c", 3)
    await shared.close()


async def test_parts_end_first_and_are_made_again() -> None:
    said: list[str] = []
    shared = Shared()
    one, two = maker(said, "one"), maker(said, "two")
    await shared.get("a", maker(said, "a"))
    for make in (one, two, one):
        await shared.part(make)
    assert said == ["+a", "+one", "+two"]
    await shared.end_parts()
    assert said[3:] == ["-two", "-one"]
    assert await shared.part(one) == "one"
    await shared.get("b", maker(said, "b"))
    assert said[5:] == ["+one", "-one", "-a", "+b"]
    await shared.close()


async def test_a_part_that_does_not_end_ends_the_rest() -> None:
    said: list[str] = []
    shared = Shared()

    @contextlib.asynccontextmanager
    async def bad() -> AsyncIterator[None]:
        yield
        raise OSError("bad")

    await shared.get("a", maker(said, "a"))
    await shared.part(bad)
    with pytest.raises(OSError, match="bad"):
        await shared.close()
    assert said == ["+a", "-a"]
    await shared.get("a", maker(said, "again"))
    assert said[-1] == "+again"
    await shared.close()


async def test_what_cannot_be_made_is_tried_again_but_not_for_ever() -> None:
    tried = 0

    @contextlib.asynccontextmanager
    async def bad() -> AsyncIterator[None]:
        nonlocal tried
        tried += 1
        if tried > 0:
            raise OSError("bad")
        yield

    shared = Shared()
    for _ in range(MOST):
        with pytest.raises(OSError, match="bad"):
            await shared.get("a", bad)
    with pytest.raises(SharedError, match="used up"):
        await shared.get("a", bad)
    assert tried == MOST
