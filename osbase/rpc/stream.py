# SPDX-License-Identifier: Apache-2.0
"""A handler's view of a streaming call."""

import abc
from collections.abc import Callable, Generator


class Stream(abc.ABC):
    """A streaming call. Its handler runs on its own thread, and usually waits
    for something to send: it must be woken when the caller has gone.
    """

    @abc.abstractmethod
    def on_end(self, callback: Callable[[], None]) -> bool:
        """Register a callback for the end of the call, run by another thread.
        Return False, without calling it, when the caller has already gone.
        """


type Streaming = Callable[[bytes, Stream], Generator[bytes]]
