# SPDX-License-Identifier: Apache-2.0
"""The lab without a node, as a machine on the tap would see it."""

import asyncio
import errno
import json
import os
import socket
import subprocess
from pathlib import Path
from typing import Any, cast

import pytest

from metropolis.test.launch import lab
from metropolis.test.launch.lab import OUTSIDE_IPV4, OUTSIDE_IPV6, OUTSIDE_PORT, Lab, LabError


async def fetch(address: str) -> str:
    """Return the answer of the outside host."""
    reader, writer = await asyncio.open_connection(address, OUTSIDE_PORT)
    writer.write(b"GET / HTTP/1.0\r\n\r\n")
    answer = await reader.read(-1)
    writer.close()
    return answer.decode().partition("\r\n\r\n")[2].strip()


@pytest.fixture
def tap(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use a dummy link for the tap if /dev/net/tun is not available."""
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


def links(*, master: bool = False) -> dict[str, dict[str, object]]:
    """Return the links of this namespace: those of the bridge, or all."""
    command = ["ip", "-json", "-details", "link", "show"] + ["master", lab.BRIDGE] * master
    done = subprocess.run(command, capture_output=True, check=True)
    return {link["ifname"]: link for link in json.loads(done.stdout)}


def isolated(link: dict[str, Any]) -> bool:
    return bool(link["linkinfo"]["info_slave_data"]["isolated"])


@pytest.mark.usefixtures("tap")
async def test_ports_are_cut_off_parted_and_healed(tmp_path: Path) -> None:
    async with Lab(tmp_path, nodes=3, mtu=1400) as world:
        one, two, three = world.ports
        assert [port.link for port in world.ports] == ["node1", "node2", "node3"]
        assert len({port.mac for port in world.ports}) == 3
        assert str(three.ipv4) == "198.51.100.12"
        assert {link["mtu"] for link in links(master=True).values()} == {1400}
        await world.cut(one)
        await world.part(two, three)
        now = links(master=True)
        assert [name for name in now if "UP" in cast(list[str], now[name]["flags"])] == [
            "node2",
            "node3",
        ]
        assert [name for name in now if isolated(now[name])] == ["node2", "node3"]
        await world.heal()
        now = links(master=True)
        assert all("UP" in cast(list[str], link["flags"]) for link in now.values())
        assert not any(map(isolated, now.values()))
        assert (await world.plug()).link == "node4"
    assert lab.BRIDGE not in links()
