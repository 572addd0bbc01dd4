# SPDX-License-Identifier: Apache-2.0
"""Credentials for etcd, read from files, and what is wrong with them.

gRPC says little of a TLS handshake that failed, and nothing of a file that is
no PEM; so the files are read and checked here, by the same OpenSSL as Python's.
"""

from __future__ import annotations

import contextlib
import os
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


class CredentialsError(Exception):
    """A file cannot be used; names it."""


@dataclass(frozen=True)
class Files:
    """PEM: certificates that etcd's are signed by, our own with those between,
    and its key.
    """

    ca: str
    cert: str
    key: str


@dataclass(frozen=True)
class Credentials:
    """What was in the files."""

    files: Files
    ca: bytes
    cert: bytes
    key: bytes


def read(files: Files) -> Credentials:
    """Read the files. Blocks. Raises CredentialsError."""
    found = Credentials(files, _read(files.ca), _read(files.cert), _read(files.key))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        context.load_verify_locations(cadata=_text(found.ca))
    except (ssl.SSLError, ValueError) as error:
        raise CredentialsError(f"{files.ca}: has no certificates in PEM") from error
    try:
        _load(context, found)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise CredentialsError(f"{files.key}: is not the key of {files.cert}") from error
        raise CredentialsError(
            f"{files.cert} or {files.key}: no certificate or key in PEM ({error.reason or error})"
        ) from error
    except (OSError, ValueError) as error:  # encrypted
        raise CredentialsError(f"{files.cert} and {files.key}: {error}") from error
    return found


@dataclass(frozen=True)
class Judgement:
    """problem: what a server would say to our certificate by itself, such as
    that it has expired; "" when it is fine. ends: when it does, seconds since
    1970, if it is fine and that can be told.
    """

    problem: str = ""
    ends: float | None = None


def judge(credentials: Credentials) -> Judgement:
    """Judge the certificate by the clock, which may be what is wrong. Blocks.

    It is presented to a server in memory that trusts just it: by whom it is
    signed is not looked at.
    """
    files = credentials.files
    with contextlib.suppress(OSError, ValueError):
        server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        server.verify_mode = ssl.CERT_REQUIRED
        server.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        client.check_hostname = False
        client.verify_mode = ssl.CERT_NONE
        for context in (server, client):
            _load(context, credentials)
        server.load_verify_locations(cadata=_text(credentials.cert))
        to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
        ours = client.wrap_bio(to_client, to_server)
        theirs = server.wrap_bio(to_server, to_client, server_side=True)
        for _ in range(4):  # flights of TLS
            for end in (ours, theirs):
                try:
                    end.do_handshake()
                except ssl.SSLWantReadError:
                    pass
                except ssl.SSLCertVerificationError as error:
                    return Judgement(f"{files.cert}: {error.verify_message}")
        shown = (theirs.getpeercert() or {}).get("notAfter")
        if isinstance(shown, str):
            return Judgement(ends=float(ssl.cert_time_to_seconds(shown)))
    return Judgement()


def _load(context: ssl.SSLContext, credentials: Credentials) -> None:
    """Load certificate and key as they were read: the files may be others now.
    OpenSSL's Python takes files only.
    """
    with _file(credentials.cert) as cert, _file(credentials.key) as key:
        context.load_cert_chain(cert, key, password=_no_password)


@contextlib.contextmanager
def _file(data: bytes) -> Iterator[str]:
    """A path of it, in memory."""
    descriptor = os.memfd_create("credentials")
    try:
        with open(descriptor, "wb", closefd=False) as file:
            file.write(data)
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise CredentialsError(f"{path}: {error.strerror}") from error


def _text(pem: bytes) -> str:
    """Return it as OpenSSL's Python takes it. Names of people stand in what is
    between the certificates, which is not looked at.
    """
    return pem.decode("ascii", "ignore")


def _no_password() -> str:
    raise ValueError("the key is encrypted")
