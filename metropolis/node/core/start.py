# SPDX-License-Identifier: Apache-2.0
"""What node core does not load when it starts: a quarter of its imports.

A program that serves workloads imports this before anything else. `start_test`
has the list of the foreign modules that such a program may load until it
listens; PERFORMANCE.md says what each of these would cost.
"""

from typing import Final

from osbase.imports import defer, without

LATER: Final = (
    # For tracebacks, which logging imports.
    "_colorize",
    "textwrap",
    "tokenize",
    # grpc imports its asyncio API; all here is of the other one. And, by
    # cygrpc, what finds certificates in files of a package.
    "grpc.aio",
    "pkgutil",
    # Messages are of protobuf's C extension, not of Python.
    "calendar",
    "google.protobuf.internal.python_message",
    "google.protobuf.unknown_fields",
    "pickle",
    # By asyncio: TLS.
    "asyncio.sslproto",
    # By tempfile: directories alone are made by it.
    "shutil",
    # By ctypes and pathlib, on other systems.
    "ntpath",
    "sysconfig",
)
NEVER: Final = (
    # Digests are Python's own, and asyncio has no TLS.
    "_hashlib",
    "ssl",
)

defer(LATER)
without(NEVER)
