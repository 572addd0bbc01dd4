# SPDX-License-Identifier: Apache-2.0
"""The data that host and guest exchange. Pure."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, Self


class LinksError(Exception):
    """A measurement is impossible; the text says which one and why."""


class Kind(StrEnum):
    """The compared pairs; the others are compared with veth.

    VETH_1Q is veth created with one queue: by default it is created with one
    for each CPU, and the kernel then disables all but one.
    """

    VETH = "veth"
    VETH_1Q = "veth-1q"
    NETKIT_L2 = "netkit-l2"
    NETKIT_L3 = "netkit-l3"

    @property
    def netkit(self) -> bool:
        return self in (Kind.NETKIT_L2, Kind.NETKIT_L3)


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured in each round, for each kind.

    attaches: pods attached one by one, and removed again: `singles` one by one,
    the rest by their group. transactions: of one TCP_RR. stream_kib: of one
    TCP_STREAM. sysctls: path below /proc/sys/net and value; rules: for nft;
    both are the node's, so that packets take the same path as on a node.
    """

    rounds: int
    attaches: int
    singles: int
    transactions: int
    stream_kib: int
    sysctls: tuple[tuple[str, int | str], ...]
    rules: str

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        found = json.loads(text)
        found["sysctls"] = tuple((path, value) for path, value in found["sysctls"])
        return cls(**found)


@dataclass(frozen=True, slots=True)
class Samples:
    """The values of a kind for a figure in a round; at least one."""

    figure: str
    unit: str
    kind: Kind
    round: int
    values: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Ability:
    """Whether a wanted feature works: "yes", or why not, by kind."""

    what: str
    answers: dict[Kind, str]


@dataclass(frozen=True, slots=True)
class Measured:
    """All results of the guest. versions: by name."""

    versions: dict[str, str]
    samples: tuple[Samples, ...]
    abilities: tuple[Ability, ...]

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        found = json.loads(text)
        return cls(
            versions=found["versions"],
            samples=tuple(_samples(one) for one in found["samples"]),
            abilities=tuple(
                Ability(one["what"], {Kind(kind): how for kind, how in one["answers"].items()})
                for one in found["abilities"]
            ),
        )


def _samples(found: dict[str, Any]) -> Samples:
    values: Sequence[float] = found["values"]
    kind = Kind(found["kind"])
    return Samples(found["figure"], found["unit"], kind, found["round"], tuple(values))
