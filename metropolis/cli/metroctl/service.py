# SPDX-License-Identifier: Apache-2.0
"""The connection to the services on a node's unix socket, for the commands that
ask them. gRPC is imported when it is used: it takes a while.
"""

from __future__ import annotations

import argparse
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final
from urllib.parse import quote

from metropolis.cli.metroctl.output import FailedError
from metropolis.node import allocs
from osbase.text import printable

TIMEOUT_S: Final = 20.0
"""For an answer."""
UNKNOWN, NO_ANSWER = 2, 3
"""Exit statuses: wrong arguments or no such workload; no answer."""

_ANSWER_MAX: Final = 64 << 20  # bytes; by default gRPC takes 4 MiB, 10,000 attachments


class EndedError(Exception):
    """A watch ended, or did not begin."""


def of_every_verb(common: argparse.ArgumentParser, epilog: str) -> dict[str, Any]:
    """Return what the parsers of all verbs have: the options of every command,
    and that which says where the socket is.
    """
    here = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    here.add_argument(
        "--socket", metavar="FILE", default=argparse.SUPPRESS, type=text,
        help=f"of the workload network service; default: {allocs.WORKLOAD_SOCKET}",
    )  # fmt: skip
    return {
        "parents": [common, here],
        "epilog": epilog,
        "formatter_class": argparse.RawDescriptionHelpFormatter,
        "allow_abbrev": False,
    }


def text(argument: str) -> str:
    """Refuse bytes that are not UTF-8, which gRPC cannot carry."""
    try:
        argument.encode()
    except UnicodeEncodeError as error:
        raise argparse.ArgumentTypeError(f"{argument!a} is not UTF-8") from error
    return argument


@contextmanager
def connection(given: argparse.Namespace) -> Iterator[Any]:
    """Connect, for a `with` block. Raises FailedError for what it cannot do,
    and for what the service refuses or does not answer.
    """
    path = getattr(given, "socket", allocs.WORKLOAD_SOCKET)
    # `bazel run` changes the directory.
    path = os.path.abspath(os.path.join(os.environ.get("BUILD_WORKING_DIRECTORY", "."), path))
    _probe(path)
    # Else gRPC reports on stderr, with a line of its own, that a service stops.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    # After what can fail without it, since it takes a while.
    import grpc
    from google.protobuf.message import DecodeError

    # gRPC reads the target as a URI.
    options = [("grpc.max_receive_message_length", _ANSWER_MAX)]
    with grpc.insecure_channel(f"unix:{quote(path)}", options) as channel:
        try:
            yield channel
        except grpc.RpcError as error:
            why = printable(error.details() or error.code().name)
            if error.code() in (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.INVALID_ARGUMENT):
                raise FailedError(why, UNKNOWN) from error
            raise _no_answer(path, why) from error
        except EndedError as error:
            raise _no_answer(path, str(error)) from error
        except (DecodeError, ValueError) as error:
            raise _no_answer(path, f"it sent what has no meaning: {error}") from error


def _probe(path: str) -> None:
    """Raise FailedError unless something listens there: gRPC says it in more
    words, and logs what it takes for a programming error.
    """
    try:
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(TIMEOUT_S)
            probe.connect(path)
        if "," in path:
            raise OSError("gRPC takes the comma for the end of the path")
    except OSError as error:
        raise _no_answer(path, error.strerror or str(error)) from error


def _no_answer(path: str, why: str) -> FailedError:
    return FailedError(
        printable(f"{path}: no answer, see /run/log/node-core/current: {why}"), NO_ANSWER
    )


def ask(channel: Any, method: str, request: Any, answer: Any) -> Any:
    """Call a method; return its answer, a message of this type. Answers are
    decoded here: gRPC would log a traceback for one that cannot be.
    """
    call = channel.unary_unary(method)
    return answer.FromString(call(request.SerializeToString(), timeout=TIMEOUT_S))
