# SPDX-License-Identifier: Apache-2.0
"""The outside host asks, in a lab without nodes."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from metropolis.test.launch import outside
from metropolis.test.launch.lab import OUTSIDE_IPV4, OUTSIDE_IPV6, OUTSIDE_PORT, Lab
from metropolis.test.launch.outside import OutsideError


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[Lab]:
    async with Lab(tmp_path, nodes=0) as made:
        yield made


async def fetched(url: object) -> object:
    return await outside.operation({"op": "fetch", "url": url}, lambda text: None)


async def test_its_source_is_the_outsides(lab: Lab) -> None:
    """The lab's own server answers with the address that it saw."""
    for address in (OUTSIDE_IPV4, OUTSIDE_IPV6):
        url = f"http://{outside.place(address, OUTSIDE_PORT)}/"
        assert await fetched(url) == f"{address}\n"
    assert lab.seen == [OUTSIDE_IPV4, OUTSIDE_IPV6]


async def test_errors(lab: Lab) -> None:
    with pytest.raises(OutsideError, match=r"203\.0\.113\.80:1: Connect"):
        await fetched(f"http://{OUTSIDE_IPV4}:1/")
    for url in ("", None, "http://web:80/", "http://203.0.113.80:x/", "203.0.113.80"):
        with pytest.raises(OutsideError, match="want a URL with an address"):
            await fetched(url)


async def test_a_server_that_is_no_web_server(lab: Lab) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.0 404 Not Found\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(answer, str(OUTSIDE_IPV4), 8080):
        with pytest.raises(OutsideError, match=r"answered 'HTTP/1\.0 404 Not Found'"):
            await fetched(f"http://{OUTSIDE_IPV4}:8080/")
