# SPDX-License-Identifier: Apache-2.0
"""What a caller may conclude about a workload from its answers; pure.

    DETACHED ── Attach: OK ──────────> ATTACHED with these addresses
    any      ── Detach: OK ──────────> DETACHED
    any      ── lost, given up ──────> UNKNOWN
    UNKNOWN  ── Attach: OK ──────────> ATTACHED
    UNKNOWN  ── Attach: exhausted ───> DETACHED
    UNKNOWN  ── Attach: exists ──────> UNKNOWN   an older attachment, in a
                                                 namespace that dies

Any other transition is a broken promise. Concurrent calls are served in any
order, not in that of the calls or of the answers: their answers are correct if
they are correct in some order.
"""

import enum
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import grpc

_Code = grpc.StatusCode


class State(enum.Enum):
    """The state of a workload, as far as the caller knows it."""

    DETACHED = enum.auto()
    ATTACHED = enum.auto()
    UNKNOWN = enum.auto()


class Broken(Exception):
    """The answers break the service's promises; the text has them."""


@dataclass(frozen=True)
class Belief:
    """A caller's belief. ips: addresses of a known attachment."""

    state: State
    ips: tuple[str, ...] = ()


DETACHED = Belief(State.DETACHED)
UNKNOWN = Belief(State.UNKNOWN)


@dataclass(frozen=True)
class Answer:
    """The answer of one call. lost: the caller cannot know whether it was
    served, since the service may have died.
    """

    method: str
    code: grpc.StatusCode
    ips: tuple[str, ...] = ()
    lost: bool = False
    details: str = ""


def after(belief: Belief, answer: Answer) -> Belief:
    """Return the belief after an answer. Raises Broken."""
    if answer.lost:
        return UNKNOWN
    if answer.method == "Detach" and answer.code is _Code.OK:
        return DETACHED
    if answer.method == "Attach":
        if answer.code is _Code.OK:
            if belief.state is State.ATTACHED and answer.ips != belief.ips:
                raise Broken(f"had {belief.ips}, a retry got {answer.ips}")
            return Belief(State.ATTACHED, answer.ips)
        if answer.code is _Code.RESOURCE_EXHAUSTED and belief.state is not State.ATTACHED:
            return DETACHED
        if answer.code is _Code.ALREADY_EXISTS and belief.state is State.UNKNOWN:
            return UNKNOWN
    raise Broken(f"{answer.method}, {belief.state.name}: {answer.code.name}: {answer.details}")


def after_all(belief: Belief, answers: Sequence[Answer]) -> Belief:
    """Return the belief after concurrent calls: the common part of all possible
    orders. Raises Broken when no order is possible.
    """
    found: set[Belief] = set()
    broken: Broken | None = None
    for order in itertools.permutations(answers):
        try:
            found.add(_after_each(belief, order))
        except Broken as error:
            broken = broken or error
    if not found:
        raise broken or Broken("no answer")
    return found.pop() if len(found) == 1 else UNKNOWN


def _after_each(belief: Belief, answers: Iterable[Answer]) -> Belief:
    for answer in answers:
        belief = after(belief, answer)
    return belief


def one_more_is_right(code: grpc.StatusCode, before: int, left: int, usable: int) -> bool:
    """Return whether the answer to one more Attach is correct.

    before, left: how many others were attached right before and after it. Some
    may be removed meanwhile, since their namespaces die; none may be added.
    """
    if code is _Code.OK:
        return left < usable
    return code is _Code.RESOURCE_EXHAUSTED and before >= usable
