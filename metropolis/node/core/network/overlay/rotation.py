# SPDX-License-Identifier: Apache-2.0
"""The life of a WireGuard key, replaced without losing connections. Pure.

    STEADY    --WANTED-->    ANNOUNCED   the next key is made, and announced
    ANNOUNCED --PUBLISHED--> GRACE       the store has the announcement
    GRACE     --ELAPSED-->   COMMITTED   all nodes know the next key: it is
                                         published as the node's key
    COMMITTED --PUBLISHED--> STEADY      the store has it: the kernel gets it

The store is etcd; the record is the node's, with its keys. A peer accepts a
handshake only from keys that it knows: so the next key is announced first, and
other nodes add a second peer for it, without allowed IPs. A node accepts a
packet only from the peer whose allowed IPs have its source: so when this node
changes its key, other nodes have to move the allowed IPs at the same moment.
They do so when they see the record change. This node sees that at about the
same time, and then changes its key: the difference between the two is the gap.

Why not change the key first and then publish it: an obstacle to writing the
record, such as a store without a majority, would cut the node off as long as it
lasts. This way nothing changes until the record is written.

Each step is stored on disk before it is published or done, and is done again
after a crash: GRACE starts again, since its beginning is not stored. In STEADY
the kernel gets the stored key.

Both ends of a pair may rotate at once. The end that acts last, by changing its
key or by moving the other's allowed IPs, begins a handshake; by then each end
knows the other's key: see handshakes.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field, replace
from typing import Final

from metropolis.node.core.network.overlay.mesh import Identity


class Stage(enum.Enum):
    """The stage of a rotation that a node is in."""

    STEADY = "steady"
    ANNOUNCED = "announced"
    GRACE = "grace"
    COMMITTED = "committed"


class Event(enum.Enum):
    """An event that changes the stage."""

    WANTED = "wanted"
    PUBLISHED = "published"
    ELAPSED = "elapsed"


TRANSITIONS: Final = {
    (Stage.STEADY, Event.WANTED): Stage.ANNOUNCED,
    (Stage.ANNOUNCED, Event.PUBLISHED): Stage.GRACE,
    (Stage.GRACE, Event.ELAPSED): Stage.COMMITTED,
    (Stage.COMMITTED, Event.PUBLISHED): Stage.STEADY,
}


@dataclass(frozen=True)
class KeyPair:
    """32 bytes each. repr() omits the private key."""

    private: bytes = field(repr=False)
    public: bytes


@dataclass(frozen=True)
class State:
    """pair: the kernel's key. epoch: its number. made_s: when it began to be
    used, seconds since 1970. next_pair, next_epoch: its successor; None, 0 in
    STEADY.
    """

    pair: KeyPair
    epoch: int
    made_s: int
    stage: Stage = Stage.STEADY
    next_pair: KeyPair | None = None
    next_epoch: int = 0

    def __post_init__(self) -> None:
        """Raise ValueError for an impossible state."""
        if (self.stage is Stage.STEADY) != (self.next_pair is None):
            raise ValueError(f"stage {self.stage.value}, but the next key says otherwise")
        if self.epoch < 0 or (self.next_pair and self.next_epoch <= self.epoch):
            raise ValueError(f"epoch {self.epoch}, next {self.next_epoch}")


@dataclass(frozen=True)
class Surroundings:
    """The inputs of the next step. published: the identity in the store; None:
    none yet. wanted_epoch: an operator wants a key with this number or a later
    one. now_s: seconds since 1970. rotation_s: the age at which a key is
    replaced; None: never. graced: the grace period is over.
    """

    published: Identity | None
    wanted_epoch: int
    now_s: int
    rotation_s: float | None
    graced: bool


def identity(state: State) -> Identity:
    """Return the keys to publish in this state."""
    match state.stage, state.next_pair:
        case Stage.ANNOUNCED | Stage.GRACE, KeyPair() as coming:
            return Identity(state.pair.public, state.epoch, coming.public)
        case Stage.COMMITTED, KeyPair() as coming:
            return Identity(coming.public, state.next_epoch, switching=True)
    return Identity(state.pair.public, state.epoch)


def due(state: State, around: Surroundings) -> Event | None:
    """Return the event that is due; None: there is none."""
    published = around.published == identity(state)
    if state.stage is Stage.STEADY:
        # Not before the store has the present key: it may be away.
        age = around.now_s - state.made_s
        old = around.rotation_s is not None and age >= around.rotation_s
        return Event.WANTED if published and (around.wanted_epoch > state.epoch or old) else None
    if state.stage is Stage.GRACE:
        return Event.ELAPSED if around.graced else None
    return Event.PUBLISHED if published else None


def step(state: State, event: Event, *, fresh: KeyPair, wanted_epoch: int, now_s: int) -> State:
    """Return the next state. fresh: a new key, used if a rotation begins.
    Raises KeyError for an event that is not possible in this stage.
    """
    stage = TRANSITIONS[state.stage, event]
    if stage is Stage.ANNOUNCED:
        epoch = max(state.epoch + 1, wanted_epoch)
        return replace(state, stage=stage, next_pair=fresh, next_epoch=epoch)
    if stage is Stage.STEADY:
        assert state.next_pair is not None, "State checks it"
        return State(state.next_pair, state.next_epoch, now_s)
    return replace(state, stage=stage)
