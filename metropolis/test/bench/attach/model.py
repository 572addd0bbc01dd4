# SPDX-License-Identifier: Apache-2.0
"""Values that the parts of the benchmark exchange. Pure."""

import enum
from dataclasses import dataclass


class Op(enum.StrEnum):
    """The measured operation, named as in CNI; of ours, also an ADD and its DEL
    as one operation.
    """

    ADD = "add"
    DEL = "del"
    CYCLE = "cycle"


@dataclass(frozen=True, slots=True)
class Pod:
    """A network namespace to attach. number: unique in a subject, for
    addresses; workload: a unique text.
    """

    number: int
    workload: str
    path: str


@dataclass(frozen=True, slots=True)
class Batch:
    """The times of a batch of operations.

    each_ns: the time of each; wall_ns: of all together; cpu_ns: processor time
    of the server; client_cpu_ns: of the client, if it is another process.
    """

    each_ns: tuple[int, ...]
    wall_ns: int
    cpu_ns: int
    client_cpu_ns: int = 0
