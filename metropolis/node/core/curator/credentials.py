# SPDX-License-Identifier: Apache-2.0
"""Credentials for etcd, read from files and checked.

gRPC reports little about a failed TLS handshake, and nothing about a file that
is not PEM; so the files are read and checked here, with Python's own OpenSSL.
"""

from __future__ import annotations

import contextlib
import os
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


class CredentialsError(Exception):
    """A file cannot be used; the text names it."""


@dataclass(frozen=True)
class Files:
    """Paths of PEM files: the CA certificates for etcd, the node's certificate
    with its intermediates, and its key.
    """

    ca: str
    cert: str
    key: str


@dataclass(frozen=True)
class Credentials:
    """The content of the files."""

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
    """problem: why a server would refuse our certificate by itself, such as its
    expiry; "" when it is fine. ends: when the certificate expires, in seconds
    since 1970, if it is fine and this is known.
    """

    problem: str = ""
    ends: float | None = None


def judge(credentials: Credentials) -> Judgement:
    """Check the certificate by the clock, which may itself be wrong. Blocks.

    The check presents it to a server in memory that trusts just it, so its
    signature is not checked.
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
    """Load certificate and key as they were read: the files may have changed.
    OpenSSL's Python API accepts files only.
    """
    with _file(credentials.cert) as cert, _file(credentials.key) as key:
        context.load_cert_chain(cert, key, password=_no_password)


@contextlib.contextmanager
def _file(data: bytes) -> Iterator[str]:
    """Give a path of the data, in memory."""
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
    """Return it as OpenSSL's Python API accepts it. Names of people stand
    between the certificates, in text that is ignored.
    """
    return pem.decode("ascii", "ignore")


def _no_password() -> str:
    raise ValueError("the key is encrypted")
