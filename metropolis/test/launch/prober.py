# SPDX-License-Identifier: Apache-2.0
"""Ping between all pods continuously: the time until a network is whole again.

    async with Prober(cluster) as prober:
        await cluster.lab.heal()
        seconds = await prober.whole()

On every node, in the network namespace of its pod, `pings` pings the other pods
in both families, and prints a line for each answer. It continues without a
route; it ends with the node.
"""

import asyncio
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from metropolis.test.launch.cluster import Cluster
from metropolis.test.launch.node import Node
from metropolis.test.launch.pings import Answers, Gap, pings
from metropolis.test.launch.reach import Place
from osbase.test.agent.client import AgentGoneError, AgentRestartedError

EVERY_S = 0.5
"""Between pings, seconds."""
_AROUND_S = 2.0  # what a machine without a CPU delays may be lost a little later


@dataclass(frozen=True)
class Pair:
    """Source and target pod."""

    source: str
    target: str
    family: int

    def __str__(self) -> str:
        """As in reports."""
        return f"{self.source}→{self.target} IPv{self.family}"


class Prober:
    """Pings between the pods of a cluster, from entering to leaving the
    context. The pods are those at the entry; call watch() after a change.
    """

    def __init__(self, cluster: Cluster) -> None:
        self.answers: dict[Pair, Answers] = {}
        # By pod, the times in which its machine had no CPU: begin and end.
        self._late: dict[str, list[tuple[float, float]]] = {}
        self._cluster = cluster
        self._news = asyncio.Condition()
        self._tasks: list[asyncio.Task[None]] = []
        self._trouble: Exception | None = None

    async def __aenter__(self) -> Self:
        await self.watch()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._stop()

    async def _stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []

    async def watch(self) -> None:
        """Start over with the present pods."""
        await self._stop()
        self._trouble = None
        places = self._cluster.places
        self.answers = {
            Pair(place.pod.name, other.pod.name, ip.version): Answers()
            for place in places
            for other in places
            if other is not place
            for ip in other.pod.ips
        }
        for place in places:
            node = self._cluster.members[place.node].running
            self._tasks.append(asyncio.create_task(self._follow(node, place, places)))

    async def _follow(self, node: Node, place: Place, places: list[Place]) -> None:
        try:
            await self._read_pings(node, place, places)
        except AgentGoneError, AgentRestartedError:
            pass  # the node is off, or boots
        except Exception as error:
            member = self._cluster.members.get(place.node)
            if member is None or member.node is not node:
                return  # switched off, whatever that looked like
            async with self._news:
                self._trouble = error
                self._news.notify_all()

    async def _read_pings(self, node: Node, place: Place, places: list[Place]) -> None:
        targets = {
            ip: Pair(place.pod.name, other.pod.name, ip.version)
            for other in places
            if other is not place
            for ip in other.pod.ips
        }
        async for batch in pings(node, place.pod, targets, EVERY_S):
            now = time.monotonic()
            for sender, number in batch.answers:
                self.answers[targets[sender]].add(now, number)
            if batch.late_s:
                self._late.setdefault(place.pod.name, []).append((now - batch.late_s, now))
            for line in batch.unsent:
                print(f"{place.pod.name}: a ping was not sent: {line}", flush=True)
            async with self._news:
                self._news.notify_all()

    async def whole(self, limit_s: float = 400.0) -> float:
        """Wait until every pair has answered from now on; return the seconds.

        It waits for two answers: the second is to a ping sent from now on.
        Raises TimeoutError with the pairs that did not answer, and errors of
        the pings: PingsError, CriError, AgentError, NodeError.
        """
        begin = time.monotonic()

        def missing() -> list[Pair]:
            return [pair for pair, answers in self.answers.items() if answers.since(begin) < 2]

        try:
            async with asyncio.timeout(limit_s), self._news:
                await self._news.wait_for(lambda: self._trouble is not None or not missing())
        except TimeoutError:
            names = ", ".join(map(str, missing()))
            raise TimeoutError(f"not whole after {limit_s:g} s: {names}") from None
        if self._trouble is not None:
            raise self._trouble
        return time.monotonic() - begin

    async def silent(self, source: str, target: str, seconds: float = 3.0) -> None:
        """Wait until source gets no answer of target, in both families, for
        `seconds`.
        """
        pairs = [pair for pair in self.answers if (pair.source, pair.target) == (source, target)]
        assert pairs, f"no pair {source}→{target}"
        begin = time.monotonic()
        while True:
            last = max(
                (time_ for pair in pairs for time_ in self.answers[pair].times[-1:]), default=begin
            )
            left = max(last, begin) + seconds - time.monotonic()
            if left <= 0:
                return
            await asyncio.sleep(left)

    def lost(self, since: float, *, excuse: bool = False) -> dict[Pair, int]:
        """Return the pairs that lost pings since then, and how many.

        excuse: except those lost while one of the two machines, or both, had
        no CPU for a second or more. Those are printed.
        """
        counts = {
            pair: sum(
                gap.count
                for gap in answers.gaps(since)
                if not (excuse and self._excused(pair, gap))
            )
            for pair, answers in self.answers.items()
        }
        return {pair: count for pair, count in counts.items() if count}

    def _excused(self, pair: Pair, gap: Gap) -> bool:
        for pod in (pair.source, pair.target):
            for begin, end in self._late.get(pod, ()):
                if begin - _AROUND_S <= gap.end and gap.begin <= end + _AROUND_S:
                    print(
                        f"{pair}: {gap.count} pings lost; {pod} had no CPU for {end - begin:.1f} s",
                        flush=True,
                    )
                    return True
        return False
