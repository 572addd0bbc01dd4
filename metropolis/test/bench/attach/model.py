# SPDX-License-Identifier: Apache-2.0
"""Values that the parts of the benchmark hand to each other. Pure."""

import enum
from dataclasses import dataclass


class Op(enum.StrEnum):
    """What is measured: CNI's words for it."""

    ADD = "add"
    DEL = "del"


@dataclass(frozen=True, slots=True)
class Pod:
    """A network namespace to attach. number: unlike all others of a subject,
    for addresses; workload: likewise, as text.
    """

    number: int
    workload: str
    path: str


@dataclass(frozen=True, slots=True)
class Batch:
    """Operations that were done, so many at once.

    each_ns: how long each took; wall_ns: all of them; cpu_ns: processor time of
    whatever serves them, client_cpu_ns: of whoever asks, where they differ.
    """

    each_ns: tuple[int, ...]
    wall_ns: int
    cpu_ns: int
    client_cpu_ns: int = 0
