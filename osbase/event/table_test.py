# SPDX-License-Identifier: Apache-2.0
"""Tables of newest values: watchers see each change once, and only changes."""

from __future__ import annotations

import asyncio
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from osbase import event


async def test_a_new_watcher_sees_everything_then_only_changes() -> None:
    """Existing values are changes for a watcher that has seen nothing."""
    table = event.Table[str, int]("t")
    table.replace({"a": 1, "b": 2})
    with table.watch() as watcher:
        assert await watcher.get() == {"a": 1, "b": 2}
        table.set("b", 3)
        table.delete("a")
        table.set("c", 4)
        table.delete("nobody")
        assert await watcher.get() == {"b": 3, "a": None, "c": 4}
        assert watcher.take() == {}


async def test_equal_is_no_change() -> None:
    """Setting the same list again wakes no watcher."""
    table = event.Table[str, int]("t")
    table.set("a", 1)
    with table.watch() as watcher:
        await watcher.get()
        table.set("a", 1)
        table.replace({"a": 1})
        assert watcher.take() == {}


async def test_get_waits_and_another_thread_wakes_it() -> None:
    """Producers may be on any thread."""
    table = event.Table[str, int]("t")
    with table.watch() as watcher:
        getting = asyncio.create_task(watcher.get())
        await asyncio.sleep(0)
        assert not getting.done()
        with pytest.raises(RuntimeError):
            await watcher.get()
        setting = threading.Thread(target=table.set, args=("a", 1))
        setting.start()
        assert await asyncio.wait_for(getting, 10) == {"a": 1}
        setting.join()


async def test_cancelled_get_loses_nothing() -> None:
    """The next get returns the change."""
    table = event.Table[str, int]("t")
    with table.watch() as watcher:
        getting = asyncio.create_task(watcher.get())
        await asyncio.sleep(0)
        table.set("a", 1)
        getting.cancel()
        await asyncio.gather(getting, return_exceptions=True)
        assert await watcher.get() == {"a": 1}


def test_a_closed_watcher_is_forgotten() -> None:
    """Otherwise its pending changes would grow without limit."""
    table = event.Table[str, int]("t")
    watcher = table.watch()
    watcher.close()
    watcher.close()
    table.set("a", 1)
    assert watcher.take() == {}


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("set"), st.integers(0, 3), st.integers(0, 2)),
            st.tuples(st.just("delete"), st.integers(0, 3), st.none()),
            st.tuples(
                st.just("replace"), st.dictionaries(st.integers(0, 3), st.integers(0, 2)), st.none()
            ),
            st.tuples(st.just("take"), st.none(), st.none()),
        )
    )
)
def test_who_applies_all_changes_has_the_table(steps: list[tuple[str, object, object]]) -> None:
    """This holds for any changes between two reads."""
    table = event.Table[object, object]("t")
    mine: dict[object, object] = {}
    with table.watch() as watcher:
        for what, key, value in [*steps, ("take", None, None)]:
            if what == "set":
                table.set(key, value)
            elif what == "delete":
                table.delete(key)
            elif what == "replace":
                assert isinstance(key, dict)
                table.replace(key)
            else:
                for name, new in watcher.take().items():
                    if new is None:
                        mine.pop(name, None)
                    else:
                        mine[name] = new
                assert mine == table.copy()
