# SPDX-License-Identifier: Apache-2.0
"""Newest-value events: what watchers see, with setters on any thread."""

from __future__ import annotations

import asyncio
import threading

import pytest

from osbase import event


async def test_first_get_returns_what_was_set_before() -> None:
    """A late watcher gets the current value at once."""
    value = event.Value[int]("v")
    value.set(1)
    value.set(2)
    assert await value.watch().get() == 2


async def test_get_waits_for_the_first_set() -> None:
    """Without a value there is nothing to return."""
    value = event.Value[int]("v")
    getting = asyncio.create_task(value.watch().get())
    await asyncio.sleep(0)
    assert not getting.done()
    value.set(7)
    assert await getting == 7


async def test_values_between_are_missed_but_never_the_newest() -> None:
    """A slow watcher works on the newest only."""
    value = event.Value[int]("v")
    watcher = value.watch()
    value.set(1)
    assert await watcher.get() == 1
    for number in range(2, 100):
        value.set(number)
    assert watcher.changed()
    assert await watcher.get() == 99
    assert not watcher.changed()


async def test_setting_an_equal_value_is_a_change() -> None:
    """The watcher decides whether a difference matters."""
    value = event.Value[int]("v")
    watcher = value.watch()
    value.set(1)
    await watcher.get()
    value.set(1)
    assert await watcher.get() == 1


async def test_none_is_a_value() -> None:
    """Value[X | None] can be set to None."""
    value = event.Value[int | None]("v")
    value.set(None)
    assert value.peek() is None
    assert await value.watch().get() is None


async def test_where_skips_and_returns_the_newest_that_matches() -> None:
    """Values that do not match count as seen once a later one matched."""
    value = event.Value[int]("v")
    watcher = value.watch()
    getting = asyncio.create_task(watcher.get(lambda number: number % 2 == 0))
    for number in (1, 3):
        value.set(number)
        await asyncio.sleep(0)
    assert not getting.done()
    value.set(4)
    assert await getting == 4


async def test_cancelled_get_has_seen_nothing() -> None:
    """After a cancelled wait with a condition, the value is still new."""
    value = event.Value[int]("v")
    watcher = value.watch()
    value.set(1)
    getting = asyncio.create_task(watcher.get(lambda number: number > 1))
    await asyncio.sleep(0)
    getting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await getting
    assert await watcher.get() == 1


async def test_waiting_leaves_nothing_behind() -> None:
    """A thousand cancelled waits leave no future in the value."""
    value = event.Value[int]("v")
    for _ in range(1000):
        waiting = asyncio.create_task(value.watch().get())
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
    assert not value._waiting


async def test_two_tasks_on_one_watcher_are_refused() -> None:
    """Each would steal the other's values."""
    value = event.Value[int]("v")
    watcher = value.watch()
    first = asyncio.create_task(watcher.get())
    await asyncio.sleep(0)
    with pytest.raises(RuntimeError, match="two tasks"):
        await watcher.get()
    value.set(1)
    assert await first == 1


async def test_set_from_other_threads_wakes() -> None:
    """All watchers see the last of many sets by several threads."""
    value = event.Value[int]("v")
    seen: list[list[int]] = [[], [], []]

    async def follow(into: list[int]) -> None:
        async for number in value.watch():
            into.append(number)
            if number == -1:
                return

    following = [asyncio.create_task(follow(into)) for into in seen]

    def set_many() -> None:
        for number in range(1000):
            value.set(number)

    threads = [threading.Thread(target=set_many) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        await asyncio.to_thread(thread.join)
    await asyncio.to_thread(value.set, -1)
    async with asyncio.timeout(10):
        await asyncio.gather(*following)
    assert all(into[-1] == -1 for into in seen)


def test_set_survives_a_loop_that_ended() -> None:
    """A watcher's loop may have ended; its future must not break the setter."""
    value = event.Value[int]("v")

    async def forsake() -> None:
        loop = asyncio.get_running_loop()
        value._waiting[loop.create_future()] = loop

    asyncio.run(forsake())
    value.set(1)
    assert value.peek() == 1


def test_peek_without_a_value_names_it() -> None:
    """The error says which value has not been set."""
    with pytest.raises(LookupError, match="prefixes has no value yet"):
        event.Value[int]("prefixes").peek()


def test_peek_with_a_default() -> None:
    value = event.Value[int | None]("prefixes")
    assert value.peek(7) == 7
    assert value.peek(None) is None
    value.set(None)
    assert value.peek(7) is None
