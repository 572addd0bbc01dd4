# SPDX-License-Identifier: Apache-2.0
"""Commits by others are distinguished from ours at any time."""

from __future__ import annotations

import itertools
import subprocess
import threading
from collections.abc import Iterator

import pytest

from osbase.nftables import Nftables, NftablesError
from osbase.nftables.guard import Guard

TABLE = "table inet t { chain c { ip saddr 192.0.2.1 drop; }; }"
ANEW = f"table inet t; delete table inet t; {TABLE}"


@pytest.fixture
def nft() -> Iterator[Nftables]:
    with Nftables() as context:
        yield context
        context.apply("flush ruleset")


@pytest.fixture
def guard(nft: Nftables) -> Guard:
    """Return the guard of a committed table."""
    made = Guard("t")
    made.commit(lambda: nft.apply(ANEW))
    return made


def test_nothing_is_known_before_a_commit() -> None:
    assert Guard("t").differences() == ["table t was not committed, or not alone"]


def test_a_commit_that_fails(nft: Nftables, guard: Guard) -> None:
    with pytest.raises(NftablesError):
        guard.commit(lambda: nft.apply("add rule inet absent c drop"))
    assert guard.differences() != []


def test_changes_are_seen_and_put_back(nft: Nftables, guard: Guard) -> None:
    for _ in range(3):
        assert guard.differences() == []
        subprocess.run(["nft", "flush ruleset"], check=True)
        assert "inet table t is gone" in guard.differences()
        assert "inet table t is gone" in guard.differences()
        guard.commit(lambda: nft.apply(ANEW))
    assert guard.differences() == []


def test_others_may_commit_what_they_like(guard: Guard) -> None:
    for _ in range(3):
        subprocess.run(["nft", "add table ip other; delete table ip other"], check=True)
        assert guard.differences() == []


def test_what_others_commit_meanwhile_is_not_taken_for_ones_own(nft: Nftables) -> None:
    """Between the commit and the look at it: it is committed again."""
    times: list[int] = []

    def commit() -> None:
        nft.apply(ANEW)
        times.append(1)
        if len(times) < 3:
            subprocess.run(["nft", "flush chain inet t c"], check=True)

    guard = Guard("t")
    guard.commit(commit)
    assert len(times) == 3
    assert guard.differences() == []
    assert (
        "192.0.2.1"
        in subprocess.run(
            ["nft", "list", "ruleset"], check=True, capture_output=True, text=True
        ).stdout
    )


def look(guard: Guard) -> tuple[list[str], bool]:
    """Return the differences, and whether the guard is then doubtful."""
    return guard.differences(), guard.doubtful


def test_never_alone(nft: Nftables) -> None:
    """Damage is still found; once others stop, the digest is sure."""
    numbers = itertools.count()
    busy = True

    def commit() -> None:
        nft.apply(ANEW)
        if busy:
            subprocess.run(["nft", f"add table ip other{next(numbers)}"], check=True)

    guard = Guard("t")
    guard.commit(commit)
    assert look(guard) == ([], False)
    subprocess.run(["nft", "delete table inet t"], check=True)
    assert "inet table t is gone" in guard.differences()
    guard.commit(commit)
    assert [look(guard) for _ in range(2)] == [([], False), ([], True)]
    busy = False
    guard.commit(commit)
    assert [look(guard) for _ in range(2)] == [([], False), ([], False)]


@pytest.mark.parametrize("text", ["add rule inet t c accept", "add chain inet t c{}"])
def test_never_alone_in_the_table(nft: Nftables, text: str) -> None:
    """Then there is no digest, and differences say so."""
    numbers = itertools.count()

    def commit() -> None:
        nft.apply(ANEW)
        subprocess.run(["nft", text.format(next(numbers))], check=True)

    guard = Guard("t")
    guard.commit(commit)
    if guard.differences() == [] == guard.differences():
        assert guard.doubtful
        guard.commit(commit)
    assert guard.differences() == ["table t was not committed, or not alone"]


def test_beside_a_busy_neighbour(nft: Nftables, guard: Guard) -> None:
    """Another program commits without a pause: only real differences count."""
    stop = threading.Event()

    def busy() -> None:
        with Nftables() as other:
            while not stop.is_set():
                other.apply("table ip other { chain c { drop; }; }; delete table ip other")

    neighbour = threading.Thread(target=busy)
    neighbour.start()
    try:
        for _ in range(20):
            assert guard.differences() == []
        subprocess.run(["nft", "flush chain inet t c"], check=True)
        assert guard.differences() == ["inet chain t c differs"]
    finally:
        stop.set()
        neighbour.join()


UPDATE = "add chain inet t c; flush chain inet t c; add rule inet t c ip saddr 192.0.2.2 drop"
AFTER = ANEW.replace("192.0.2.1", "192.0.2.2")


@pytest.mark.parametrize(
    "command",
    ["flush ruleset", "flush chain inet t c", "add chain inet t more", "add table ip t", ""],
)
@pytest.mark.parametrize("when", ["before", "between", "after"])
def test_what_an_update_replaces_is_said(
    nft: Nftables, guard: Guard, command: str, when: str
) -> None:
    """Others come before the look, between it and the update, or after that."""
    others = [command] if command else []

    def they() -> None:
        while others:
            subprocess.run(["nft", others.pop()], check=True)

    def update() -> bool:
        if when == "between":
            they()
        try:
            nft.apply(UPDATE)
        except NftablesError:
            return False
        if when == "after":
            they()
        return True

    if when == "before":
        they()
    replaced = guard.commit(lambda: nft.apply(f"table ip t; delete table ip t; {AFTER}"), update)
    # A change right before the update is not seen if the update removes it.
    if (command, when) != ("flush chain inet t c", "between"):
        assert bool(replaced) == bool(command)
    assert guard.differences() == []
    listed = subprocess.run(["nft", "list ruleset"], check=True, capture_output=True, text=True)
    assert "192.0.2.2" in listed.stdout
    assert "more" not in listed.stdout
    assert "table ip t" not in listed.stdout
