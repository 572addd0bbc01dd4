# SPDX-License-Identifier: Apache-2.0
"""What a handler has of a call that many messages answer."""

import abc
from collections.abc import Callable, Generator


class Stream(abc.ABC):
    """Its handler runs on a thread of its own, and mostly waits for something
    to send: it must learn there that the caller has gone.
    """

    @abc.abstractmethod
    def on_end(self, callback: Callable[[], None]) -> bool:
        """Have it called, by another thread, when the caller has gone. False,
        and it is not called, when that is so already.
        """


type Streaming = Callable[[bytes, Stream], Generator[bytes]]
