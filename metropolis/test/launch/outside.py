# SPDX-License-Identifier: Apache-2.0
"""Requests from the outside host of a lab, whose network this process has."""

import asyncio
from ipaddress import IPv4Address, IPv6Address, ip_address
from urllib.parse import urlsplit

from metropolis.test.launch.control import Request, Say
from metropolis.test.launch.lab import OUTSIDE_IPV4, OUTSIDE_IPV6

_MOST_BYTES = 1 << 20


class OutsideError(Exception):
    """There was no answer; the text says where it was sought, and why."""


async def connect(
    address: IPv4Address | IPv6Address, port: int, timeout_s: float = 15.0
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect by TCP. Raises OutsideError."""
    source = OUTSIDE_IPV4 if address.version == 4 else OUTSIDE_IPV6
    try:
        async with asyncio.timeout(timeout_s):
            return await asyncio.open_connection(
                str(address), port, local_addr=(str(source), 0)
            )  # fmt: skip
    except TimeoutError:
        raise OutsideError(f"{place(address, port)}: no answer after {timeout_s:g} s") from None
    except OSError as error:
        raise OutsideError(f"{place(address, port)}: {error.strerror or error}") from error


async def fetch(
    address: IPv4Address | IPv6Address, port: int, path: str = "/", timeout_s: float = 15.0
) -> str:
    """Return the body of a resource, by HTTP. Raises OutsideError."""
    reader, writer = await connect(address, port, timeout_s)
    try:
        async with asyncio.timeout(timeout_s):
            host = place(address, port)
            writer.write(f"GET {path} HTTP/1.0\r\nHost: {host}\r\n\r\n".encode())
            data = b""
            while (chunk := await reader.read(65536)) and len(data) < _MOST_BYTES:
                data += chunk
    except TimeoutError:
        raise OutsideError(f"{place(address, port)}: no end after {timeout_s:g} s") from None
    except OSError as error:
        raise OutsideError(f"{place(address, port)}: {error.strerror or error}") from error
    finally:
        writer.close()
    head, _, body = data.partition(b"\r\n\r\n")
    status = head.partition(b"\r\n")[0].decode(errors="replace")
    if status.split()[1:2] != ["200"]:
        raise OutsideError(f"{place(address, port)}: answered {status[:80]!r}")
    return body.decode(errors="replace")


async def operation(request: Request, said: Say) -> object:
    """Do the operation `fetch` of a launch: return the body of a URL. Raises
    OutsideError.
    """
    url = urlsplit(str(request.get("url")))
    try:
        address, port = ip_address(url.hostname or ""), url.port or 80
    except ValueError as error:
        raise OutsideError(
            f"{request.get('url')}: want a URL with an address, such as http://198.51.100.10:8080/"
        ) from error
    return await fetch(address, port, f"{url.path or '/'}{f'?{url.query}' if url.query else ''}")


def place(address: IPv4Address | IPv6Address, port: int) -> str:
    """Return ADDRESS:PORT as URLs have it."""
    return f"[{address}]:{port}" if address.version == 6 else f"{address}:{port}"
