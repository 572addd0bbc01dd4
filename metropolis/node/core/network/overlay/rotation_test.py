# SPDX-License-Identifier: Apache-2.0
"""The life of a key: every step, and a crash between any two."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metropolis.node.core.network.overlay import keys, rotation
from metropolis.node.core.network.overlay.mesh import Identity
from metropolis.node.core.network.overlay.rotation import (
    TRANSITIONS,
    Event,
    KeyPair,
    Stage,
    State,
    Surroundings,
)

FIRST, SECOND = keys.generate(), keys.generate()
START = State(FIRST, 3, 1000)


def around(
    published: Identity | None, *, wanted: int = 3, now_s: int = 1000, graced: bool = False
) -> Surroundings:
    return Surroundings(published, wanted, now_s, 600, graced)


def test_a_whole_rotation() -> None:
    state, seen = START, []
    for expected in (Event.WANTED, Event.PUBLISHED, Event.ELAPSED, Event.PUBLISHED):
        reported = rotation.identity(state)
        assert rotation.due(state, around(reported, wanted=4, graced=True)) is expected
        state = rotation.step(state, expected, fresh=SECOND, wanted_epoch=4, now_s=2000)
        seen.append(rotation.identity(state))
    assert seen == [
        Identity(FIRST.public, 3, SECOND.public),
        Identity(FIRST.public, 3, SECOND.public),
        Identity(SECOND.public, 4, switching=True),
        Identity(SECOND.public, 4),
    ]
    assert state == State(SECOND, 4, 2000)
    assert rotation.due(state, around(seen[-1], wanted=4, now_s=2000)) is None


def test_what_begins_one() -> None:
    reported = rotation.identity(START)
    assert rotation.due(START, around(reported)) is None
    assert rotation.due(START, around(reported, wanted=4)) is Event.WANTED
    assert rotation.due(START, around(reported, now_s=1600)) is Event.WANTED
    # The cluster is away, or knows another key.
    assert rotation.due(START, around(None, wanted=4, now_s=1600)) is None
    assert rotation.due(START, around(Identity(SECOND.public), wanted=4)) is None


def test_an_epoch_far_ahead_is_reached_at_once() -> None:
    state = rotation.step(START, Event.WANTED, fresh=SECOND, wanted_epoch=9, now_s=0)
    assert state.next_epoch == 9


def test_what_does_not_belong_there() -> None:
    for stage in Stage:
        following = None if stage is Stage.STEADY else SECOND
        state = State(FIRST, 3, 1000, stage, following, 4 if following else 0)
        for event in Event:
            if (stage, event) not in TRANSITIONS:
                with pytest.raises(KeyError):
                    rotation.step(state, event, fresh=SECOND, wanted_epoch=4, now_s=0)


def test_what_cannot_be() -> None:
    with pytest.raises(ValueError, match="stage steady"):
        State(FIRST, 0, 0, Stage.STEADY, SECOND, 1)
    with pytest.raises(ValueError, match="stage grace"):
        State(FIRST, 0, 0, Stage.GRACE)
    with pytest.raises(ValueError, match="epoch 3, next 3"):
        State(FIRST, 3, 0, Stage.GRACE, SECOND, 3)


def test_private_keys_are_in_no_text() -> None:
    assert repr(FIRST.private) not in repr(START)


class World:
    """A node whose process may end at any step, and the cluster's store.

    At each step the kernel's key is checked: all nodes that read the
    store accept handshakes from it, or have until now.
    """

    def __init__(self) -> None:
        self.fresh = iter(keys.pair_of(keys.clamp(bytes([n] * 32))) for n in range(1, 250))
        first = next(self.fresh)
        self.disk = keys.encode(State(first, 0, 0))
        self.kernel: KeyPair = first
        self.reported: Identity | None = None
        self.store: list[Identity] = []
        self.announced: set[bytes] = set()
        self.wanted = 0
        self.boot()

    def boot(self) -> None:
        self.state = keys.decode(self.disk)
        self.use(self.state.pair)
        self.reported = rotation.identity(self.state)
        self.graced = False

    def use(self, pair: KeyPair) -> None:
        if pair != self.kernel:
            assert self.store[-1].public_key == pair.public
            assert pair.public in self.announced
            self.kernel = pair

    def publish(self) -> None:
        if self.reported is not None and (not self.store or self.store[-1] != self.reported):
            self.store.append(self.reported)

    def wait(self) -> None:
        """All watchers have read the store's content."""
        if self.store and self.store[-1].next_public_key is not None:
            self.announced.add(self.store[-1].next_public_key)
        self.graced = True

    def move(self, *, crash_after_store: bool, now_s: int = 0) -> None:
        published = self.store[-1] if self.store else None
        event = rotation.due(
            self.state, Surroundings(published, self.wanted, now_s, None, self.graced)
        )
        if event is None:
            return
        new = rotation.step(
            self.state, event, fresh=next(self.fresh), wanted_epoch=self.wanted, now_s=now_s
        )
        self.disk = keys.encode(new)
        if crash_after_store:
            self.boot()
            return
        self.state = new
        if new.stage is Stage.GRACE:
            self.graced = False
        if new.stage is Stage.STEADY:
            self.use(new.pair)
        self.reported = rotation.identity(new)


STEPS = st.lists(st.sampled_from(["publish", "wait", "move", "crash", "boot", "want"]), max_size=60)


@given(STEPS)
def test_a_crash_anywhere_leads_to_the_same_end(steps: list[str]) -> None:
    """No key is used before it was announced, received and published; and when
    everything works again, the rotation that was wanted ends.
    """
    world = World()
    for name in steps:
        match name:
            case "move" | "crash":
                world.move(crash_after_store=name == "crash")
            case "want":
                world.wanted = min(world.wanted + 1, 20)
            case _:
                getattr(world, name)()
    for _ in range(10):
        world.publish()
        world.wait()
        world.move(crash_after_store=False)
    assert world.state.stage is Stage.STEADY
    assert world.state.epoch >= world.wanted
    assert world.store[-1] == rotation.identity(world.state) == world.reported
    assert world.kernel == world.state.pair
