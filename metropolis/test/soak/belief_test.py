# SPDX-License-Identifier: Apache-2.0
"""The model and a minimal service: the model accepts all its possible histories
and refuses impossible answers.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import grpc
import pytest

from metropolis.test.soak.belief import (
    DETACHED,
    UNKNOWN,
    Answer,
    Belief,
    Broken,
    State,
    after,
    after_all,
    one_more_is_right,
)

OK, FULL, EXISTS = (
    grpc.StatusCode.OK,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.ALREADY_EXISTS,
)
MINE, OTHER = ("10.0.0.1",), ("10.0.0.2",)
ATTACHED = Belief(State.ATTACHED, MINE)


def attach(code: grpc.StatusCode = OK, ips: tuple[str, ...] = MINE) -> Answer:
    return Answer("Attach", code, ips if code is OK else ())


DETACH = Answer("Detach", OK)


def test_an_exists_before_an_ok_whichever_came_back_first() -> None:
    """Two at once; the older attachment's namespace dies between them."""
    for answers in itertools.permutations([attach(), attach(EXISTS)]):
        assert after_all(UNKNOWN, answers) == ATTACHED


@pytest.mark.parametrize(
    ("belief", "answers", "expected"),
    [
        (DETACHED, [attach(), attach()], ATTACHED),
        (DETACHED, [attach(FULL), attach()], ATTACHED),
        (DETACHED, [attach(FULL), attach(FULL)], DETACHED),
        (ATTACHED, [attach(), attach()], ATTACHED),
        (UNKNOWN, [attach(EXISTS), attach(EXISTS)], UNKNOWN),
        (UNKNOWN, [attach(EXISTS), attach(FULL)], DETACHED),
        (ATTACHED, [attach(), DETACH], UNKNOWN),
        (ATTACHED, [attach(ips=OTHER), DETACH], Belief(State.ATTACHED, OTHER)),
        (DETACHED, [attach(), DETACH], UNKNOWN),
        (UNKNOWN, [attach(EXISTS), DETACH], DETACHED),
        (DETACHED, [attach(FULL), DETACH], DETACHED),
        (ATTACHED, [replace(attach(), lost=True), DETACH], UNKNOWN),
    ],
)
def test_orders(belief: Belief, answers: list[Answer], expected: Belief) -> None:
    for some in itertools.permutations(answers):
        assert after_all(belief, some) == expected


@pytest.mark.parametrize(
    ("belief", "answers"),
    [
        (DETACHED, [attach(EXISTS)]),
        (ATTACHED, [attach(EXISTS)]),
        (ATTACHED, [attach(FULL)]),
        (ATTACHED, [attach(ips=OTHER)]),
        (ATTACHED, [Answer("Detach", EXISTS)]),
        (UNKNOWN, [attach(grpc.StatusCode.UNAVAILABLE)]),
        (DETACHED, [attach(), attach(ips=OTHER)]),
        (DETACHED, [attach(EXISTS), attach()]),
        (ATTACHED, [attach(FULL), attach()]),
        (ATTACHED, [attach(EXISTS), DETACH]),
    ],
)
def test_what_no_order_explains_is_broken(belief: Belief, answers: list[Answer]) -> None:
    for some in itertools.permutations(answers):
        with pytest.raises(Broken):
            after_all(belief, some)


@dataclass(frozen=True)
class Service:
    """The service's state of one workload. made: addresses of the attachment,
    if any; dead: its namespace is ending; room: another address is free.
    """

    made: tuple[str, ...] | None
    dead: bool
    room: bool
    served: int = 0

    def serve(self, method: str) -> tuple[Service, Answer]:
        """Execute a call."""
        if method == "Detach":
            return replace(self, made=None, dead=False), DETACH
        if self.made is not None and self.dead:
            return self, attach(EXISTS)
        if self.made is not None:
            return self, attach(ips=self.made)
        if not self.room:
            return self, attach(FULL)
        made = (f"10.0.{self.served}.9",)
        return replace(self, made=made, served=self.served + 1), attach(ips=made)

    def changes(self) -> Iterator[Service]:
        """Yield the spontaneous changes between two calls."""
        yield self
        if self.dead:
            yield replace(self, made=None, dead=False)
        yield replace(self, room=not self.room)


STARTS = [
    (Service(None, dead=False, room=True), DETACHED),
    (Service(None, dead=False, room=False), DETACHED),
    (Service(MINE, dead=False, room=True), ATTACHED),
    (Service(MINE, dead=True, room=True), UNKNOWN),
    (Service(MINE, dead=True, room=False), UNKNOWN),
    (Service(MINE, dead=False, room=False), UNKNOWN),
    (Service(None, dead=False, room=False), UNKNOWN),
]


def histories(service: Service, methods: Sequence[str]) -> Iterator[tuple[Service, list[Answer]]]:
    """Yield the possible results of calls that are served in this order."""
    if not methods:
        yield service, []
        return
    for now in service.changes():
        then, answer = now.serve(methods[0])
        for end, answers in histories(then, methods[1:]):
            yield end, [answer, *answers]


@pytest.mark.parametrize(("service", "belief"), STARTS)
@pytest.mark.parametrize("count", [1, 2, 3])
def test_what_a_service_can_do_is_believed(service: Service, belief: Belief, count: int) -> None:
    seen = 0
    for methods in itertools.product(("Attach", "Detach"), repeat=count):
        for end, answers in histories(service, methods):
            for seen_in in itertools.permutations(answers):
                found = after_all(belief, seen_in)
                seen += 1
                if found.state is State.ATTACHED and not end.dead:
                    assert found.ips == end.made
                if found.state is State.DETACHED:
                    assert end.made is None
    assert seen >= 2 * count


def test_a_lost_call_leaves_nothing_known() -> None:
    lost = Answer("Detach", grpc.StatusCode.UNAVAILABLE, lost=True)
    for belief in (DETACHED, ATTACHED, UNKNOWN):
        assert after(belief, lost) == UNKNOWN


def test_one_more_while_others_may_go() -> None:
    assert one_more_is_right(OK, before=13, left=13, usable=14)
    assert one_more_is_right(FULL, before=14, left=14, usable=14)
    # One's namespace died at that moment.
    assert one_more_is_right(OK, before=14, left=13, usable=14)
    assert one_more_is_right(FULL, before=14, left=13, usable=14)
    assert not one_more_is_right(FULL, before=13, left=13, usable=14)
    assert not one_more_is_right(OK, before=14, left=14, usable=14)
    assert not one_more_is_right(EXISTS, before=14, left=13, usable=14)
