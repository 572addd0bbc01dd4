# SPDX-License-Identifier: Apache-2.0
"""The lab without a node: what a machine on the tap would meet."""

import asyncio
import errno
import os
import socket
from pathlib import Path

import pytest

from metropolis.test.launch import lab
from metropolis.test.launch.lab import OUTSIDE_IPV4, OUTSIDE_IPV6, OUTSIDE_PORT, Lab, LabError


async def fetch(address: str) -> str:
    """Return what the outside host answers."""
    reader, writer = await asyncio.open_connection(address, OUTSIDE_PORT)
    writer.write(b"GET / HTTP/1.0\r\n\r\n")
    answer = await reader.read(-1)
    writer.close()
    return answer.decode().partition("\r\n\r\n")[2].strip()


@pytest.fixture
def tap(monkeypatch: pytest.MonkeyPatch) -> None:
    """A dummy link for the tap where /dev/net/tun is not to be had."""
    if os.access("/dev/net/tun", os.R_OK | os.W_OK):
        return

    def dummy(name: str) -> int:
        os.spawnlp(os.P_WAIT, "ip", "ip", "link", "del", name)
        assert os.spawnlp(os.P_WAIT, "ip", "ip", "link", "add", name, "type", "dummy") == 0
        return os.open("/dev/null", os.O_RDWR)

    monkeypatch.setattr(lab, "open_tap", dummy)


@pytest.mark.usefixtures("tap")
async def test_the_outside_says_whom_it_saw(tmp_path: Path) -> None:
    async with Lab(tmp_path) as world:
        # From here, that is the address of the outside host itself.
        for address in (str(OUTSIDE_IPV4), str(OUTSIDE_IPV6)):
            assert await fetch(address) == address
        assert set(world.seen) == {OUTSIDE_IPV4, OUTSIDE_IPV6}
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as client:
            client.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_sendto(client, b"?", (str(OUTSIDE_IPV6), OUTSIDE_PORT))
            assert await loop.sock_recv(client, 100) == f"{OUTSIDE_IPV6}\n".encode()


@pytest.mark.usefixtures("tap")
async def test_nothing_is_left(tmp_path: Path) -> None:
    before = set(os.listdir("/proc/self/fd"))
    for _ in range(2):
        async with Lab(tmp_path):
            pass
    assert set(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize(
    ("number", "remedy"), [(errno.EACCES, "chmod 0666"), (errno.ENOENT, "modprobe tun")]
)
def test_no_tun_device(monkeypatch: pytest.MonkeyPatch, number: int, remedy: str) -> None:
    def refuse(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(LabError, match=remedy):
        lab.open_tap("x")
