# SPDX-License-Identifier: Apache-2.0
"""The host's end of guest: sends requests, and knows the node's clock.

    async with probing(agent, port) as probe:
        await probe.synchronise()
        trace = await probe.events()

The clocks differ by an offset. Each exchange gives bounds of it: the guest
answers between the host's question and the receipt. The shortest exchange gives
the tightest bounds, half its length to either side.
"""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from metropolis.test.bench.common.errors import BenchError
from metropolis.test.bench.scale import guest
from metropolis.test.bench.scale.model import Usage
from metropolis.test.bench.scale.trace import Parser, Trace
from osbase.test.agent.client import Agent, Process

_SOURCE: Final = Path(guest.__file__)
_PLACE: Final = "/tmp/scale_guest.py"
_EXCHANGES: Final = 40
_START_S: Final = 60.0
_POLL_S: Final = 0.1


@dataclass(frozen=True)
class Offset:
    """Seconds to add to the host's monotonic clock to get the node's; error_s
    is the largest error.
    """

    seconds: float
    error_s: float


def offset(exchanges: Iterable[tuple[float, float, float]]) -> Offset:
    """Return the offset. exchanges: times of question, guest's answer, receipt.
    Raises ValueError without any.
    """
    asked, answer, received = min(exchanges, key=lambda one: one[2] - one[0])
    return Offset(answer - (asked + received) / 2, (received - asked) / 2)


class Probe:
    """Use probing()."""

    def __init__(self, process: Process) -> None:
        self.offset = Offset(0.0, float("inf"))
        self.process = 0
        self._guest = process
        self._buffer = b""
        self._parser = Parser()

    async def _ask(self, what: str) -> dict[str, Any]:
        await self._guest.write(f"{what}\n".encode())
        while b"\n" not in self._buffer:
            part = await self._guest.read(0)
            if not part:
                said = (await self._guest.read_all(1)).decode(errors="replace").strip()
                raise BenchError(f"the program on the node ended: {said or 'without a word'}")
            self._buffer += part
        line, _, self._buffer = self._buffer.partition(b"\n")
        found: dict[str, Any] = json.loads(line)
        return found

    async def synchronise(self) -> Offset:
        """Compare the clocks again."""
        exchanges = []
        for _ in range(_EXCHANGES):
            asked = time.monotonic()
            answer = (await self._ask("ping"))["now_s"]
            exchanges.append((asked, float(answer), time.monotonic()))
        self.offset = offset(exchanges)
        return self.offset

    def node_clock(self, host_s: float) -> float:
        """Return the node's clock at a time of the host's."""
        return host_s + self.offset.seconds

    async def usage(self) -> Usage:
        """Return node core's usage once it runs. Later events are of this
        process.
        """
        async with asyncio.timeout(_START_S):
            while True:
                answer = await self._ask("usage")
                if answer["process"]:
                    break
                await asyncio.sleep(_POLL_S)
        found = Usage(**answer)
        self.process = found.process
        return found

    async def events(self) -> Trace:
        """Return events since the last call. Raises TraceError, BenchError."""
        lines = (await self._ask("events"))["lines"]
        return self._parser.feed(lines, self.process)


@contextlib.asynccontextmanager
async def probing(agent: Agent, port: int) -> AsyncIterator[Probe]:
    """Begin to observe. port: etcd's. Raises AgentError, BenchError."""
    await agent.write_file(_PLACE, _SOURCE.read_bytes())
    async with agent.exec(["python3", "-I", "-S", _PLACE, str(port)]) as process:
        probe = Probe(process)
        await probe.usage()
        await probe.synchronise()
        yield probe
