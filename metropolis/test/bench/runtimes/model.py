# SPDX-License-Identifier: Apache-2.0
"""The data that host and guest exchange. Pure."""

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
    """The compared subjects; the others are compared with OURS."""

    OURS = "ours"
    CNI = "stock + CNI"
    SHIM = "stock + shim"
    HOST = "host network"

    @property
    def runtime(self) -> Runtime:
        return {Subject.CNI: Runtime.CNI, Subject.SHIM: Runtime.SHIM}.get(self, Runtime.OURS)

    @property
    def host_network(self) -> bool:
        """Return whether its pods share the node's network."""
        return self is Subject.HOST


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured in each round, for each subject.

    samples: pods run and removed, one at a time. at_once: how many are then run
    and removed concurrently, `repeats` times. counted: pods whose processes are
    counted, after all rounds. seed: for the order of subjects. warm_up: run one
    pod of each subject before.
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
    """The values of a subject for a figure in a round; at least one."""

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
    """All results of the guest. versions: by name."""

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
