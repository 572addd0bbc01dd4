# SPDX-License-Identifier: Apache-2.0
"""The frames between the exec shim (cniproxy.c) and the service; pure.

    request:  "MCNI" version | argv, env, stdin lengths | argv | env | stdin
    answer:   "MCNI" version | exit code, length | stdout bytes
    receipt:  one byte, once the answer is on the caller's stdout

Numbers are 32 bits, big endian; argv and env are NUL-terminated strings, env of
the form NAME=value. The version changes with any change here: shim and service
come from one image, and a mismatch is a fault, not a negotiation.
"""

import struct
from dataclasses import dataclass

MAGIC = 0x4D434E49
VERSION = 1
HEAD_MAX = 1 << 20  # argv and env together, bytes
STDIN_MAX = 8 << 20  # a GC with 30,000 valid attachments, bytes
ANSWER_MAX = 1 << 20
ENV_PREFIX = "CNI_"

_REQUEST = struct.Struct("!5I")
_ANSWER = struct.Struct("!4I")

REQUEST_HEADER_SIZE = _REQUEST.size
ANSWER_HEADER_SIZE = _ANSWER.size


class WireError(ValueError):
    """The bytes are not a valid frame; the text says why."""


@dataclass(frozen=True)
class Lengths:
    """Lengths of the parts after a request's header, bytes."""

    argv: int
    env: int
    stdin: int

    @property
    def total(self) -> int:
        """Return their sum."""
        return self.argv + self.env + self.stdin


@dataclass(frozen=True)
class Request:
    """One execution of the shim.

    Strings that are not UTF-8 keep their bytes as surrogate escapes, like
    os.environ's; `env` has only CNI_ variables.
    """

    argv: tuple[str, ...]
    env: dict[str, str]
    stdin: bytes


@dataclass(frozen=True)
class Answer:
    """The shim's output and exit code."""

    stdout: bytes
    exit_code: int = 0


def parse_header(header: bytes) -> Lengths:
    """Read REQUEST_HEADER_SIZE bytes; raise WireError."""
    if len(header) != REQUEST_HEADER_SIZE:
        raise WireError(f"request header: {len(header)} of {REQUEST_HEADER_SIZE} bytes")
    magic, version, argv, env, stdin = _REQUEST.unpack(header)
    if magic != MAGIC:
        raise WireError(f"request header: magic is {magic:#010x}, not {MAGIC:#010x}")
    if version != VERSION:
        raise WireError(f"request header: version {version}, this service speaks {VERSION}")
    if argv + env > HEAD_MAX:
        raise WireError(f"request header: {argv + env} bytes of strings, at most {HEAD_MAX}")
    if stdin > STDIN_MAX:
        raise WireError(f"request header: {stdin} bytes of stdin, at most {STDIN_MAX}")
    return Lengths(argv, env, stdin)


def parse_body(lengths: Lengths, body: bytes) -> Request:
    """Read the parts after the header, lengths.total bytes; raise WireError."""
    if len(body) != lengths.total:
        raise WireError(f"request: {len(body)} of {lengths.total} bytes")
    strings = lengths.argv + lengths.env
    env: dict[str, str] = {}
    for entry in _strings(body[lengths.argv : strings], "env"):
        name, separator, value = entry.partition("=")
        if not separator or not name.startswith(ENV_PREFIX):
            raise WireError(f"request env: {entry[:80]!r} is no {ENV_PREFIX}NAME=value")
        env.setdefault(name, value)  # like getenv(), the first of two
    return Request(tuple(_strings(body[: lengths.argv], "argv")), env, body[strings:])


def encode_request(request: Request) -> bytes:
    """Encode a request as the shim does; for tests and tools."""
    argv = b"".join(_encode(s) for s in request.argv)
    env = b"".join(_encode(f"{name}={value}") for name, value in request.env.items())
    sizes = (len(argv), len(env), len(request.stdin))
    return _REQUEST.pack(MAGIC, VERSION, *sizes) + argv + env + request.stdin


def encode_answer(answer: Answer) -> bytes:
    """Encode an answer for the shim."""
    if len(answer.stdout) > ANSWER_MAX:
        raise WireError(f"answer: {len(answer.stdout)} bytes, at most {ANSWER_MAX}")
    return _ANSWER.pack(MAGIC, VERSION, answer.exit_code, len(answer.stdout)) + answer.stdout


def parse_answer(answer: bytes) -> Answer:
    """Decode; the inverse of encode_answer; for tools. Raise WireError."""
    if len(answer) < ANSWER_HEADER_SIZE:
        raise WireError(f"answer header: {len(answer)} of {ANSWER_HEADER_SIZE} bytes")
    magic, version, exit_code, size = _ANSWER.unpack_from(answer)
    stdout = answer[ANSWER_HEADER_SIZE:]
    if (magic, version) != (MAGIC, VERSION) or size != len(stdout):
        raise WireError(f"answer: {magic=:#x} {version=} {size=}, {len(stdout)} bytes follow")
    return Answer(stdout, exit_code)


def _encode(string: str) -> bytes:
    return string.encode(errors="surrogateescape") + b"\0"


def _strings(data: bytes, what: str) -> list[str]:
    if data and not data.endswith(b"\0"):
        raise WireError(f"request {what}: the last string is not NUL-terminated")
    return [part.decode(errors="surrogateescape") for part in data.split(b"\0")[:-1]]
