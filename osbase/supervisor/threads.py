# SPDX-License-Identifier: Apache-2.0
"""Blocking work of a runnable, on a thread that it does not leave behind."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


async def in_thread[**P, T](call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Like asyncio.to_thread, but a cancellation waits for the end of the call:
    otherwise the next step would find the kernel in an intermediate state.

    Use it for reads and imports as well, where nothing would be half way: they
    are short, and asyncio.run waits for its threads when the process ends.
    """
    running = asyncio.ensure_future(asyncio.to_thread(call, *args, **kwargs))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.wait([running])
        raise
