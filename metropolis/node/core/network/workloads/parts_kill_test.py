# SPDX-License-Identifier: Apache-2.0
"""What can happen at every point at which an attachment with a part is half
made: SIGKILL, the end of the namespace, an answer that is lost.

As kill_test, which has the points within a send and those of the whole service:
here they are around each send.
"""

import contextlib
import itertools
from collections.abc import Callable, Iterator

import pytest

from metropolis.node.core.network.workloads.datapath.veth import KernelDatapath
from metropolis.node.core.network.workloads.engine.engine import Engine
from metropolis.node.core.network.workloads.errors import WorkloadError
from metropolis.node.core.network.workloads.model import AttachIntent
from metropolis.node.core.network.workloads.testing.lab import objects, settled
from metropolis.node.core.network.workloads.testing.parts_host import (
    BLUE_RED,
    PREFIXES,
    KernelHost,
    always,
    attach,
    awaited,
    kernel_host,
    started,
)
from metropolis.node.core.network.workloads.testing.points import do_at, killed_at
from metropolis.node.core.network.workloads.testing.toy_part import COLOUR
from osbase.netlink.errors import ReplyLost

PARTS = (COLOUR,)


@pytest.fixture
def kernel() -> Iterator[KernelHost]:
    with kernel_host() as made:
        yield made


@pytest.mark.parametrize("attaching", [True, False])
def test_killed_at_every_point(kernel: KernelHost, attaching: bool) -> None:
    """The start after it finds the attachment whole, or nothing of it."""
    path = kernel.add_netns()
    intent = AttachIntent("w1", path, "eth0", parts=BLUE_RED)
    left: set[tuple[bool, bool]] = set()

    def act(engine: Engine) -> None:
        if attaching:
            engine.attach(intent)
        else:
            engine.detach("w1", until_gone=True)

    def prepare() -> None:
        if attaching:
            kernel.engine.detach("w1", until_gone=True)
        else:
            kernel.engine.attach(intent)
            settled("fe80::1")
        kernel.engine.close()

    prepare()
    nothing = settled("::1")
    for point in itertools.count(1):
        killed = killed_at(point, act, PARTS)
        linked, keys = objects() != nothing, kernel.keys()
        assert keys in (set(), {"1", "3"})
        left.add((linked, bool(keys)))
        # One that recovers is killed, too.
        for again in itertools.count(1):
            if not killed_at(again, lambda _: None, PARTS):
                break
            if point % 5:  # all of them at some, one at others
                break
        kernel.restart()
        found = kernel.engine.list()
        kernel.engine.settle()
        assert kernel.keys() == ({"1", "3"} if found else set())
        for checked in kernel.engine.check("w1") if found else ():
            assert checked.findings == ()
        act(kernel.engine)
        assert kernel.keys() == ({"1", "3"} if attaching else set())
        prepare()
        if not killed:
            break
    assert point > (8 if attaching else 6)
    # Elements without a commit, of an attach; a commit without elements, of a
    # removal; and before and after.
    assert len(left) >= 3
    kernel.engine = started(KernelDatapath((COLOUR,)))


_CALLS: dict[str, Callable[[KernelHost, str], object]] = {
    "attach": lambda kernel, path: attach(kernel, path, BLUE_RED),
    "detach": lambda kernel, _: kernel.engine.detach("w1", until_gone=True),
    "repair": lambda kernel, _: kernel.engine.repair(always),
    "collect": lambda kernel, _: kernel.engine.collect(lambda _, __: False),
}


@pytest.mark.parametrize("call", _CALLS)
def test_the_namespace_ends_at_every_point(
    kernel: KernelHost, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However the call ends, nothing is left, and nothing is taken."""
    nothing = objects()
    alive: list[str] = []
    for point in itertools.count(1):
        path = prepared(kernel, call)
        alive.append(path)
        with monkeypatch.context() as patch, contextlib.suppress(WorkloadError):
            do_at(patch, point, lambda _: kernel.kill_netns(alive.pop()))
            _CALLS[call](kernel, path)
        passed = bool(alive)
        if passed:
            kernel.kill_netns(alive.pop())
        assert awaited(lambda: kernel.engine.in_use(PREFIXES[0]) == 0)
        assert awaited(lambda: objects() == nothing)
        assert kernel.keys() == set()
        if passed:
            break
    assert point > 2


@pytest.mark.parametrize("call", _CALLS)
def test_an_answer_is_lost_at_every_point(
    kernel: KernelHost, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The request was carried out or not. An attach leaves nothing; all that a
    call leaves is known, and removed by a Detach.
    """
    nothing = objects()
    lost: list[type] = []

    def lose(kind: type) -> None:
        lost.append(kind)
        raise ReplyLost("lost")

    for point in itertools.count(1):
        lost.clear()
        path = prepared(kernel, call)
        with monkeypatch.context() as patch:
            do_at(patch, point, lose)
            try:
                _CALLS[call](kernel, path)
            except WorkloadError:
                if call == "attach":
                    assert (objects(), kernel.keys()) == (nothing, set())
                    assert kernel.engine.in_use(PREFIXES[0]) == 0
        kernel.engine.detach("w1", until_gone=True)
        assert (objects(), kernel.keys()) == (nothing, set())
        assert kernel.engine.in_use(PREFIXES[0]) == 0
        kernel.kill_netns(path)
        if not lost:
            break
    assert point > 2


def prepared(kernel: KernelHost, call: str) -> str:
    """Return the path of a namespace, attached unless the call does it."""
    path = kernel.add_netns()
    if call != "attach":
        attach(kernel, path, BLUE_RED)
    if call == "repair":
        kernel.take_key("1")
    return path
