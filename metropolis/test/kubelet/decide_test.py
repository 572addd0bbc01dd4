# SPDX-License-Identifier: Apache-2.0
"""The decisions about a pod."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metropolis.test.kubelet.decide import (
    Decision,
    Ran,
    Sandbox,
    decide,
    garbage,
    restart_delay_s,
)
from metropolis.test.kubelet.manifest import Container, Pod

POD = Pod("web", (Container("a", "x"), Container("b", "x")))
READY = Sandbox("s0", 0, 10, ready=True, hash=POD.hash, host_network=False, address=True)
A = Ran("c0", "a", "s0", 0, running=True)
B = Ran("c1", "b", "s0", 0, running=True)


def starts(decision: Decision) -> dict[str, int]:
    return {one.container.name: one.attempt for one in decision.start}


def test_a_new_pod() -> None:
    found = decide(POD, [], [])
    assert (found.attempt, found.stop, starts(found)) == (0, (), {"a": 0, "b": 0})


def test_a_pod_that_runs() -> None:
    assert decide(POD, [READY], [A, B]) == Decision(keep="s0")


def test_a_sandbox_without_its_containers() -> None:
    found = decide(POD, [READY], [A])
    assert (found.keep, starts(found)) == ("s0", {"b": 0})


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        (replace(READY, ready=False), "its sandbox has ended"),
        (replace(READY, hash="x"), "its manifest is another one"),
        (replace(READY, host_network=True), "its network is another one"),
        (replace(READY, address=False), "its sandbox has no address"),
    ],
)
def test_a_changed_sandbox(changed: Sandbox, why: str) -> None:
    old = replace(READY, id="old", attempt=-1, made=1, ready=False)
    found = decide(POD, [old, changed], [A, B])
    assert (found.stop, found.why, found.attempt) == (("s0", "old"), why, 1)
    assert starts(found) == {"a": 1, "b": 1}


def test_two_sandboxes_are_ready() -> None:
    found = decide(POD, [READY, replace(READY, id="s1", attempt=1)], [A, B])
    assert (found.stop, found.attempt) == (("s1", "s0"), 2)


@pytest.mark.parametrize(
    ("policy", "status", "want"),
    [
        ("Always", 0, {"a": 1}), ("Always", 1, {"a": 1}), ("OnFailure", 0, {}),
        ("OnFailure", 1, {"a": 1}), ("Never", 0, {}), ("Never", 1, {}),
    ],
)  # fmt: skip
def test_restart_policies(policy: str, status: int, want: dict[str, int]) -> None:
    pod = replace(POD, restart_policy=policy)
    ready = replace(READY, hash=pod.hash)
    found = decide(pod, [ready], [replace(A, running=False, status=status), B])
    assert starts(found) == want
    assert found.keep == "s0"
    # Without its sandbox, too; the other container was killed.
    found = decide(pod, [replace(ready, ready=False)], [replace(A, running=False, status=status)])
    assert starts(found) == {"b": 0} | want


def test_a_pod_that_has_done_its_work_gets_no_sandbox() -> None:
    pod = replace(POD, restart_policy="Never")
    ended = [replace(one, running=False, status=0) for one in (A, B)]
    found = decide(pod, [replace(READY, ready=False)], ended)
    assert (found.attempt, found.stop, found.start) == (None, (), ())


def test_delays() -> None:
    assert [restart_delay_s(count) for count in (0, 1, 2, 3, 9, 99)] == [0, 10, 20, 40, 300, 300]


def test_garbage() -> None:
    def one(ident: str, attempt: int, *, ready: bool = False) -> Sandbox:
        return replace(READY, id=ident, attempt=attempt, made=attempt, ready=ready)

    known = {
        "u1": [one("b", 1), one("a", 0), one("c", 2)],
        "u2": [one("d", 5), one("e", 6, ready=True)],
    }
    assert garbage(known, frozenset({"u1"}), frozenset()) == ["a", "b", "d"]
    assert garbage(known, frozenset(), frozenset({"a"})) == ["b", "c", "d"]


_SANDBOXES = st.lists(
    st.builds(
        Sandbox, st.uuids().map(str), st.integers(0, 4), st.integers(0, 9), st.booleans(),
        st.sampled_from([POD.hash, "x"]), st.booleans(), st.booleans(),
    ), max_size=4,
)  # fmt: skip
_RAN = st.lists(
    st.builds(
        Ran, st.uuids().map(str), st.sampled_from("ab"), st.sampled_from("st"), st.integers(0, 4),
        st.booleans(), st.integers(0, 1),
    ), max_size=4,
)  # fmt: skip


@given(_SANDBOXES, _RAN, st.sampled_from(["Always", "OnFailure", "Never"]))
def test_whatever_there_is(sandboxes: list[Sandbox], ran: list[Ran], policy: str) -> None:
    pod = replace(POD, restart_policy=policy)
    found = decide(pod, sandboxes, ran)
    known = {one.id for one in sandboxes}
    # One sandbox at most, and none that is used is stopped.
    assert (found.attempt is None) or not found.keep
    assert found.keep not in found.stop
    assert set(found.stop) <= known
    assert (found.keep or next(iter(known), "")) in known or not known
    # A new attempt has a number of its own, and all that may be ready ends.
    if found.attempt is not None:
        assert found.attempt > max((one.attempt for one in sandboxes), default=-1)
        assert set(found.stop) == known
        assert found.start
    for start in found.start:
        same = [one for one in ran if one.name == start.container.name]
        assert start.attempt > max((one.attempt for one in same), default=-1)
