# SPDX-License-Identifier: Apache-2.0
"""A context of libnftables; see libnftables(3) for the C functions."""

from __future__ import annotations

import ctypes
import functools
import socket
import threading
from types import TracebackType
from typing import Any, Final, Self

_SONAME: Final = "libnftables.so.1"
_NETLINK_NETFILTER: Final = 12  # linux/netlink.h
_INPUT_NO_DNS: Final = 1  # NFT_CTX_INPUT_NO_DNS: never resolve host names


type _Simple = ctypes._SimpleCData[Any]


class NftablesError(Exception):
    """libnftables or the kernel refused. The text is libnftables' own; for the
    kernel's refusals it has the errno's text. The transaction had no effect.
    """


@functools.cache
def _library() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL(_SONAME)
    except OSError as error:
        raise NftablesError(f"load {_SONAME}: {error}; install libnftables1") from error
    context = ctypes.c_void_p
    prototypes: tuple[tuple[str, type[_Simple] | None, list[type[_Simple]]], ...] = (
        ("nft_ctx_new", context, [ctypes.c_uint32]),
        ("nft_ctx_free", None, [context]),
        ("nft_ctx_buffer_output", ctypes.c_int, [context]),
        ("nft_ctx_buffer_error", ctypes.c_int, [context]),
        ("nft_ctx_get_error_buffer", ctypes.c_char_p, [context]),
        ("nft_ctx_set_dry_run", None, [context, ctypes.c_bool]),
        ("nft_ctx_input_set_flags", ctypes.c_uint, [context, ctypes.c_uint]),
        ("nft_run_cmd_from_buffer", ctypes.c_int, [context, ctypes.c_char_p]),
    )
    for name, result, arguments in prototypes:
        function = getattr(library, name)  # by index: each time a new object
        function.restype = result
        function.argtypes = arguments
    return library


def _check_socket() -> None:
    """Raise NftablesError if no socket can be opened: libnftables ends the
    process when it cannot open its own (netlink_init_error of src/netlink.c).
    """
    try:
        socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER).close()
    except OSError as error:
        raise NftablesError(f"open a socket of nftables: {error}") from error


class Nftables:
    """A context: a netlink socket in the namespace in which it was made.

    libnftables' context is not thread-safe: a lock serializes calls of all
    threads. Calls block for as long as the kernel works (a commit may wait for
    a grace period, milliseconds): never call from an event loop's thread.
    """

    def __init__(self) -> None:
        """Raises NftablesError when the library is missing or has no memory, or
        there is no file descriptor for its socket.
        """
        self._lock = threading.Lock()
        self._context: int | None = None
        self._library = _library()
        _check_socket()
        self._context = self._library.nft_ctx_new(0)
        if (
            self._context is None
            or self._library.nft_ctx_buffer_output(self._context)
            or self._library.nft_ctx_buffer_error(self._context)
        ):
            self.close()
            raise NftablesError("no memory for a context of libnftables")
        self._library.nft_ctx_input_set_flags(self._context, _INPUT_NO_DNS)

    def close(self) -> None:
        """Close the socket. Applied rules stay. May be repeated."""
        with self._lock:
            if self._context is not None:
                self._library.nft_ctx_free(self._context)
                self._context = None

    def __enter__(self) -> Self:
        """Return the context; leaving `with` closes it."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close."""
        self.close()

    def apply(self, text: str) -> None:
        """Execute all commands of `text` in one transaction.

        Raises NftablesError; then nothing was changed.
        """
        self._run(text, dry=False)

    def check(self, text: str) -> None:
        """Parse and evaluate `text`, without the kernel. Raises NftablesError.

        It does not find errors that only the kernel detects.
        """
        self._run(text, dry=True)

    def _run(self, text: str, *, dry: bool) -> None:
        if "\0" in text:
            raise NftablesError("the rule set contains a NUL character")
        data = text.encode()
        with self._lock:
            if self._context is None:
                raise NftablesError("the context was closed")
            self._library.nft_ctx_set_dry_run(self._context, dry)
            status = self._library.nft_run_cmd_from_buffer(self._context, data)
            failure: bytes = self._library.nft_ctx_get_error_buffer(self._context)
        if status != 0:
            reason = failure.decode("utf-8", "replace").strip()
            raise NftablesError(reason or f"libnftables returned {status} and no reason")
