# SPDX-License-Identifier: Apache-2.0
"""What is started by `async with`, and ended when it is left."""

import abc
import contextlib
from types import TracebackType
from typing import Self


class Started(abc.ABC):
    """Ends what `_start` has put on the stack, the last first: when the context
    is left, and when `_start` fails.
    """

    def __init__(self) -> None:
        self._stack = contextlib.AsyncExitStack()

    @abc.abstractmethod
    async def _start(self) -> None:
        """Start; put on the stack what ends it."""

    async def __aenter__(self) -> Self:
        try:
            await self._start()
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._stack.aclose()
