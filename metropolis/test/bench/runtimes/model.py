# SPDX-License-Identifier: Apache-2.0
"""What host and guest of the comparison of runtimes tell each other. Pure."""

import json
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Self


class Runtime(StrEnum):
    """The containerds that run side by side."""

    OURS = "ours"
    CNI = "cni"
    SHIM = "shim"


class Subject(StrEnum):
    """What is compared; OURS is what the others are held against."""

    OURS = "ours"
    CNI = "stock + CNI"
    SHIM = "stock + shim"
    HOST = "host network"

    @property
    def runtime(self) -> Runtime:
        return {Subject.CNI: Runtime.CNI, Subject.SHIM: Runtime.SHIM}.get(self, Runtime.OURS)

    @property
    def host_network(self) -> bool:
        """Whether its pods have the node's network, and none of their own."""
        return self is Subject.HOST


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured in each round, for each subject.

    samples: pods run and removed, one at a time. at_once: so many are then run
    at once, and removed at once, `repeats` times. counted: pods whose processes
    are counted, after all rounds. seed: of the order of subjects. warm_up: one
    pod each comes and goes before.
    """

    rounds: int
    samples: int
    at_once: tuple[int, ...]
    repeats: int
    counted: int
    seed: int
    warm_up: bool = True

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        found = json.loads(text)
        found["at_once"] = tuple(found["at_once"])
        return cls(**found)


@dataclass(frozen=True, slots=True)
class Samples:
    """What one subject gave for one figure in one round; at least one value."""

    figure: str
    unit: str
    subject: Subject
    round: int
    values: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Programs:
    """How often each program was executed for one pod, by name of its file."""

    figure: str
    subject: Subject
    executed: dict[str, float]


@dataclass(frozen=True, slots=True)
class Measured:
    """All that the guest has found out. versions: by name."""

    versions: dict[str, str]
    samples: tuple[Samples, ...]
    programs: tuple[Programs, ...]

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        found = json.loads(text)
        return cls(
            versions=found["versions"],
            samples=tuple(
                Samples(
                    one["figure"],
                    one["unit"],
                    Subject(one["subject"]),
                    one["round"],
                    tuple(one["values"]),
                )
                for one in found["samples"]
            ),
            programs=tuple(
                Programs(one["figure"], Subject(one["subject"]), one["executed"])
                for one in found["programs"]
            ),
        )
