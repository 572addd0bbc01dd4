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


MANY_PORTS = 1000
"""Host ports of one pod that is there to have many."""
_FIRST_PORT = 10_000
_PORTS = 50_000
_FIRST_OF_MANY = 60_000


def host_ports(pod: Pod, count: int) -> list[tuple[int, int]]:
    """Return pairs of ports, the host's and the pod's, which no other pod of a
    subject has at the same time. They are not successive, but for MANY_PORTS.
    """
    if count == MANY_PORTS:
        first = _FIRST_OF_MANY + MANY_PORTS * pod.number
        return [(first + n, 1 + n) for n in range(count)]
    first = 2 * pod.number * count % _PORTS
    return [(_FIRST_PORT + first + 2 * n, 80 + n) for n in range(count)]


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
