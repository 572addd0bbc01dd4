# SPDX-License-Identifier: Apache-2.0
"""WireGuard keys, and the file with a node's own keys.

    STATE_DIR/overlay/            0700
      key.json                    0600, replaced as a whole
      key.json.damaged-<time>     an unreadable file, kept for an operator

Public keys are computed by libcrypto, which images have for Python's hashlib
and ssl. The kernel could: set a key on a link and read the public one back. But
the next public key is needed while the link still has the present key.
"""

from __future__ import annotations

import base64
import contextlib
import ctypes
import functools
import json
import os
import time
from pathlib import Path
from typing import Any, Final

from metropolis.node.core.network.overlay.device import KEY_SIZE, OverlayError
from metropolis.node.core.network.overlay.rotation import KeyPair, Stage, State
from osbase.netlink.errors import errno_name

FILE_NAME: Final = "key.json"

_EVP_PKEY_X25519: Final = 1034  # openssl/evp.h, NID_X25519
_MAX_FILE: Final = 4096  # bytes


class DamagedError(OverlayError):
    """The file exists and is not valid."""


@functools.cache
def _libcrypto() -> ctypes.CDLL:
    library = ctypes.CDLL("libcrypto.so.3")
    pointer, size = ctypes.c_void_p, ctypes.c_size_t
    library.EVP_PKEY_new_raw_private_key.restype = pointer
    library.EVP_PKEY_new_raw_private_key.argtypes = [
        ctypes.c_int,
        pointer,
        ctypes.c_char_p,
        size,
    ]
    library.EVP_PKEY_get_raw_public_key.restype = ctypes.c_int
    library.EVP_PKEY_get_raw_public_key.argtypes = [
        pointer,
        ctypes.c_char_p,
        ctypes.POINTER(size),
    ]
    library.EVP_PKEY_free.restype = None
    library.EVP_PKEY_free.argtypes = [pointer]
    return library


def clamp(key: bytes) -> bytes:
    """Make 32 bytes a private key (RFC 7748, section 5, decodeScalar25519)."""
    return bytes([key[0] & 248, *key[1:31], key[31] & 127 | 64])


def public_key(private: bytes) -> bytes:
    """Return the public key (X25519) of a private one. Raises OverlayError."""
    if len(private) != KEY_SIZE:
        raise OverlayError(f"a private key of {len(private)} bytes")
    library = _libcrypto()
    pkey = library.EVP_PKEY_new_raw_private_key(_EVP_PKEY_X25519, None, private, KEY_SIZE)
    if not pkey:
        raise OverlayError("libcrypto refuses a private key")
    try:
        out = ctypes.create_string_buffer(KEY_SIZE)
        length = ctypes.c_size_t(KEY_SIZE)
        done = library.EVP_PKEY_get_raw_public_key(pkey, out, ctypes.byref(length))
        if done != 1 or length.value != KEY_SIZE:
            raise OverlayError("libcrypto gives no public key")
        return out.raw
    finally:
        library.EVP_PKEY_free(pkey)


def pair_of(private: bytes) -> KeyPair:
    """Return the pair for a private key."""
    return KeyPair(private, public_key(private))


def generate() -> KeyPair:
    """Return a new pair."""
    return pair_of(clamp(os.urandom(KEY_SIZE)))


def encode(state: State) -> bytes:
    """Return the file's content."""
    # A restart does not know how much of the grace period has passed.
    stage = Stage.ANNOUNCED if state.stage is Stage.GRACE else state.stage
    fields: dict[str, Any] = {
        "private_key": base64.b64encode(state.pair.private).decode(),
        "epoch": state.epoch,
        "made_s": state.made_s,
        "stage": stage.value,
    }
    if state.next_pair is not None:
        fields["next_private_key"] = base64.b64encode(state.next_pair.private).decode()
        fields["next_epoch"] = state.next_epoch
    return json.dumps(fields, indent=1).encode() + b"\n"


def decode(data: bytes) -> State:
    """Decode; the inverse. Raises DamagedError, which quotes nothing."""
    try:
        fields = json.loads(data)
        if not isinstance(fields, dict):
            raise DamagedError("not an object")
        following = "next_private_key" in fields
        stage = Stage(fields.get("stage"))
        if stage is Stage.GRACE:
            raise DamagedError("a stage that is never stored")
        return State(
            _key(fields, "private_key"),
            _number(fields, "epoch"),
            _number(fields, "made_s"),
            stage,
            _key(fields, "next_private_key") if following else None,
            _number(fields, "next_epoch") if following else 0,
        )
    except (ValueError, RecursionError) as error:
        # json's own message would quote the file.
        text = "not JSON" if isinstance(error, json.JSONDecodeError) else str(error)
        raise DamagedError(text) from None


def _key(fields: dict[str, Any], name: str) -> KeyPair:
    text = fields.get(name)
    if not isinstance(text, str):
        raise DamagedError(f"no {name}")
    try:
        private = base64.b64decode(text, validate=True)
    except ValueError:
        raise DamagedError(f"{name} is not base64") from None
    if len(private) != KEY_SIZE or private != clamp(private):
        raise DamagedError(f"{name} is not a key")
    return pair_of(private)


def _number(fields: dict[str, Any], name: str) -> int:
    number = fields.get(name)
    if type(number) is not int or not 0 <= number < 2**63:
        raise DamagedError(f"{name} is not a number")
    return number


class KeyFile:
    """The file of the state. Methods block, and raise OverlayError."""

    def __init__(self, state_dir: str) -> None:
        """Make it; nothing is read or written yet."""
        self._directory = Path(state_dir) / "overlay"
        self.path = self._directory / FILE_NAME

    def load(self) -> State | None:
        """Return the stored state; None: there is none. Raises DamagedError."""
        try:
            with self.path.open("rb") as file:
                data = file.read(_MAX_FILE + 1)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._failed("read", error) from error
        if len(data) > _MAX_FILE:
            raise DamagedError(f"{self.path}: over {_MAX_FILE} bytes")
        try:
            return decode(data)
        except DamagedError as error:
            raise DamagedError(f"{self.path}: {error}") from error

    def put_aside(self) -> Path:
        """Rename a damaged file; return its new path."""
        aside = self.path.with_name(f"{FILE_NAME}.damaged-{time.time_ns()}")
        try:
            self.path.rename(aside)
        except OSError as error:
            raise self._failed("put aside", error) from error
        return aside

    def store(self, state: State) -> None:
        """Replace the file: after a crash the old or the new one exists."""
        new = self.path.with_name(f".{FILE_NAME}.new")
        try:
            # An existing directory stays as it is: it may be shared.
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            with contextlib.suppress(FileNotFoundError):
                new.unlink()
            fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with os.fdopen(fd, "wb") as file:
                file.write(encode(state))
                file.flush()
                os.fsync(fd)
            new.replace(self.path)
            directory = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)
        except OSError as error:
            raise self._failed("write", error) from error

    def _failed(self, verb: str, error: OSError) -> OverlayError:
        return OverlayError(f"{verb} {self.path}: {errno_name(error.errno or 0)}")
