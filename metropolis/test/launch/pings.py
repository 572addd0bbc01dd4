# SPDX-License-Identifier: Apache-2.0
"""Pings from a pod, answer by answer.

    async with pinging(node, pod, [ip, ...], every_s=0.2) as answers:
        ...
    assert answers[ip].lost() == 0

echo.py runs on the node, in the network namespace of the pod.
"""

import asyncio
import bisect
import contextlib
import itertools
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path

from metropolis.test.launch.cri import Pod
from metropolis.test.launch.node import Node
from osbase.ip import IPAddress

_ECHO = Path(__file__).with_name("echo.py")


class PingsError(Exception):
    """Pings ended unexpectedly."""


@dataclass(frozen=True)
class Gap:
    """Unanswered pings between two answered ones. begin, end: times of those
    answers, seconds of the monotonic clock.
    """

    begin: float
    end: float
    count: int


@dataclass
class Answers:
    """Times of answers, seconds of the monotonic clock, and numbers of their
    pings.
    """

    times: list[float] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)

    def add(self, when: float, number: int) -> None:
        """Note an answer, the latest."""
        self.times.append(when)
        self.numbers.append(number)

    def since(self, when: float) -> int:
        """Return the number of answers after `when`."""
        return len(self.times) - bisect.bisect_right(self.times, when)

    def gaps(self, since: float = 0.0) -> list[Gap]:
        """Return the gaps between the answers after `since`, and the one
        before.
        """
        first = max(0, bisect.bisect_right(self.times, since) - 1)
        answered = sorted(zip(self.numbers[first:], self.times[first:], strict=True))
        return [
            Gap(begin, end, later - number - 1)
            for (number, begin), (later, end) in itertools.pairwise(answered)
            if later - number > 1
        ]

    def lost(self, since: float = 0.0) -> int:
        """Return how many pings are in the gaps."""
        return sum(gap.count for gap in self.gaps(since))


@dataclass(frozen=True)
class Batch:
    """Output of pings that arrived at once. answers: senders and numbers.
    late_s: how much too late the pod's process ran. unsent: errors.
    """

    answers: tuple[tuple[IPAddress, int], ...] = ()
    late_s: float = 0.0
    unsent: tuple[str, ...] = ()


def parse(lines: Iterable[bytes]) -> Batch:
    """Parse lines of echo.py."""
    answers: list[tuple[IPAddress, int]] = []
    unsent: list[str] = []
    late_s = 0.0
    for line in map(bytes.decode, lines):
        first, _, rest = line.partition(" ")
        if first == "late":
            late_s = max(late_s, float(rest))
        elif first.endswith(":"):
            unsent.append(line)
        else:
            answers.append((ip_address(first), int(rest)))
    return Batch(tuple(answers), late_s, tuple(unsent))


async def pings(
    node: Node, pod: Pod, targets: Iterable[IPAddress], every_s: float
) -> AsyncIterator[Batch]:
    """Ping from a pod; yield batches of its output.

    Raises PingsError, CriError and AgentError when it cannot go on.
    """
    _, netns = await node.cri.sandbox_process(pod.id)
    source = await asyncio.to_thread(_ECHO.read_text)
    # -I -S: it needs no packages of the node, and so starts sooner.
    python = ["python3", "-I", "-S", "-c", source, str(every_s), *map(str, targets)]
    async with node.agent.exec(["ip", "netns", "exec", Path(netns).name, *python]) as process:
        rest = b""
        while data := await process.read():
            *lines, rest = (rest + data).split(b"\n")
            yield parse(lines)
        said = (await process.read_all(1)).decode(errors="replace").strip()
        raise PingsError(f"{pod.name}: pings ended: status {await process.wait()}: {said}")


@contextlib.asynccontextmanager
async def pinging(
    node: Node, pod: Pod, targets: Sequence[IPAddress], every_s: float
) -> AsyncIterator[dict[IPAddress, Answers]]:
    """Ping from a pod until the block is left. Raises as pings() does."""
    answers = {target: Answers() for target in targets}

    async def note() -> None:
        async for batch in pings(node, pod, targets, every_s):
            for sender, number in batch.answers:
                answers[sender].add(time.monotonic(), number)

    async with asyncio.TaskGroup() as group:
        noting = group.create_task(note())
        yield answers
        noting.cancel()
