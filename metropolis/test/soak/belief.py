# SPDX-License-Identifier: Apache-2.0
"""What a caller may believe of a workload after the answers to its calls; pure.

    DETACHED ── Attach: OK ──────────> ATTACHED with these addresses
    any      ── Detach: OK ──────────> DETACHED
    any      ── lost, given up ──────> UNKNOWN
    UNKNOWN  ── Attach: OK ──────────> ATTACHED
    UNKNOWN  ── Attach: exhausted ───> DETACHED
    UNKNOWN  ── Attach: exists ──────> UNKNOWN   of before, in a namespace that
                                                 dies

What is not here, is a broken promise. Calls that are under way at the same time
are served in any order, which is not the order of the calls nor of the answers:
they are right when there is an order in which they are.
"""

import enum
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import grpc

_Code = grpc.StatusCode


class Known(enum.Enum):
    """What is known of a workload."""

    DETACHED = enum.auto()
    ATTACHED = enum.auto()
    UNKNOWN = enum.auto()


class Broken(Exception):
    """Answers that no service gives that keeps its promises; says which."""


@dataclass(frozen=True)
class Belief:
    """ips: of an attachment that is known."""

    known: Known
    ips: tuple[str, ...] = ()


DETACHED = Belief(Known.DETACHED)
UNKNOWN = Belief(Known.UNKNOWN)


@dataclass(frozen=True)
class Answer:
    """Of one call. lost: it is not known whether it was served, since the
    service may have died.
    """

    method: str
    code: grpc.StatusCode
    ips: tuple[str, ...] = ()
    lost: bool = False
    details: str = ""


def after(belief: Belief, answer: Answer) -> Belief:
    """The belief after an answer. Raises Broken."""
    if answer.lost:
        return UNKNOWN
    if answer.method == "Detach" and answer.code is _Code.OK:
        return DETACHED
    if answer.method == "Attach":
        if answer.code is _Code.OK:
            if belief.known is Known.ATTACHED and answer.ips != belief.ips:
                raise Broken(f"had {belief.ips}, a retry got {answer.ips}")
            return Belief(Known.ATTACHED, answer.ips)
        if answer.code is _Code.RESOURCE_EXHAUSTED and belief.known is not Known.ATTACHED:
            return DETACHED
        if answer.code is _Code.ALREADY_EXISTS and belief.known is Known.UNKNOWN:
            return UNKNOWN
    raise Broken(f"{answer.method}, {belief.known.name}: {answer.code.name}: {answer.details}")


def after_all(belief: Belief, answers: Sequence[Answer]) -> Belief:
    """The belief after calls at the same time: of all orders that are possible,
    what they have in common. Raises Broken when none is.
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
    """Whether an Attach of one more was answered rightly.

    before, left: how many others were attached right before and after it; of
    these some may go meanwhile, since their namespaces die, and none may come.
    """
    if code is _Code.OK:
        return left < usable
    return code is _Code.RESOURCE_EXHAUSTED and before >= usable
