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
    """Pings ended that should go on."""


@dataclass
class Answers:
    """When answers came, seconds of the monotonic clock, and the numbers of the
    pings that they answer.
    """

    times: list[float] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)

    def add(self, when: float, number: int) -> None:
        """Note an answer, the latest."""
        self.times.append(when)
        self.numbers.append(number)

    def since(self, when: float) -> int:
        """Return how many came after that."""
        return len(self.times) - bisect.bisect_right(self.times, when)

    def lost(self, since: float = 0.0) -> int:
        """Return how many pings between the answers after `since`, and the one
        before, have not been answered.
        """
        first = max(0, bisect.bisect_right(self.times, since) - 1)
        numbers = set(self.numbers[first:])
        return max(numbers) - min(numbers) + 1 - len(numbers) if numbers else 0


async def pings(
    node: Node, pod: Pod, targets: Iterable[IPAddress], every_s: float
) -> AsyncIterator[list[tuple[IPAddress, int]]]:
    """Ping from a pod; yield senders and numbers of answers as they come.

    Raises PingsError, CriError and AgentError when it cannot go on.
    """
    _, netns = await node.cri.sandbox_process(pod.id)
    source = await asyncio.to_thread(_ECHO.read_text)
    # -I -S: it needs nothing of the node's, and so starts sooner.
    python = ["python3", "-I", "-S", "-c", source, str(every_s), *map(str, targets)]
    async with node.agent.exec(["ip", "netns", "exec", Path(netns).name, *python]) as process:
        rest = b""
        while data := await process.read():
            *lines, rest = (rest + data).split(b"\n")
            fields = [line.decode().split() for line in lines]
            yield [(ip_address(sender), int(number)) for sender, number in fields]
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
            for sender, number in batch:
                answers[sender].add(time.monotonic(), number)

    async with asyncio.TaskGroup() as group:
        noting = group.create_task(note())
        yield answers
        noting.cancel()
