# SPDX-License-Identifier: Apache-2.0
"""The production image, observed from outside: there is no access.

The machine has everything that gives access to a development image: a tools
disk, its channel, a console with the flag for a shell. The tests look for
forbidden output after the machine has ended in good order, so they need no
timeouts.
"""

import asyncio
import contextlib
import shutil
import socket
import tempfile
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

import pytest
import pytest_asyncio

from metropolis.test.launch.images import find_images
from metropolis.test.launch.lab import ROUTER_IPV6, Lab
from metropolis.test.launch.node import AGENT_CHANNEL
from osbase.ip import link_local
from osbase.test.qemu.accel import find_accel
from osbase.test.qemu.config import Drive, Machine, Tap
from osbase.test.qemu.vm import Vm

pytestmark = pytest.mark.asyncio(loop_scope="module")

LIMIT_S = 900.0
TOGETHER = 64
# The usual ports of kubelet, etcd, containerd and CRI, and well-known ones.
PORTS = (*range(1, 512), 1338, 2375, 2376, 2379, 2380, 3000, 6443, 8080, 9100, 10010, 10250, 50051)


@dataclass(frozen=True)
class Ended:
    """Observations of a node's run. refused: ports that refused connections."""

    reason: str
    console: bytes
    channel: bytes
    open: list[tuple[str, int]]
    refused: int


def _ipv6(mac: str) -> IPv6Address:
    """The address that a link with this MAC gives itself by advertisements."""
    own = link_local(bytes.fromhex(mac.replace(":", "")))
    return IPv6Address(ROUTER_IPV6.network.network_address.packed[:8] + own.packed[8:])


async def _knock(to: IPv4Address | IPv6Address, port: int) -> bool | None:
    """Return whether the port is open; None: no answer."""
    try:
        async with asyncio.timeout(30):
            _, writer = await asyncio.open_connection(str(to), port)
    except ConnectionRefusedError:
        return False
    except OSError, TimeoutError:
        return None
    writer.close()
    return True


async def _scan(to: IPv4Address | IPv6Address) -> dict[tuple[str, int], bool | None]:
    """Wait until the node answers; return the answer of each port."""
    # DHCP and advertisements finish at different times.
    while await _knock(to, 9) is None:  # noqa: ASYNC110
        await asyncio.sleep(0.2)
    limit = asyncio.Semaphore(TOGETHER)

    async def ask(port: int) -> bool | None:
        async with limit:
            return await _knock(to, port)

    answers = await asyncio.gather(*map(ask, PORTS))
    return {(str(to), port): answer for port, answer in zip(PORTS, answers, strict=True)}


async def _listen(path: Path) -> bytes:
    """Send HELLO; return all that is received until the machine ends."""
    reader, writer = await asyncio.open_unix_connection(path)
    heard = b""
    # Unread data at the end of the machine resets the connection.
    with contextlib.suppress(ConnectionError):
        writer.write(b"\0" * 16)
        while some := await reader.read(4096):
            heard += some
    writer.close()
    return heard


async def _type(path: Path, text: bytes) -> None:
    """Type on the console."""
    with socket.socket(socket.AF_UNIX) as console:
        console.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(console, str(path))
        await loop.sock_sendall(console, text)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def ended() -> Ended:
    """Boot a node, scan its ports, shut it down by its power button."""
    directory = Path(tempfile.mkdtemp(prefix="m-prod-"))
    images = find_images("image")
    try:
        async with asyncio.timeout(LIMIT_S), Lab(directory) as lab:
            port = lab.ports[0]
            machine = Machine(
                kernel=images.kernel,
                initrd=images.initramfs,
                cmdline="quiet metropolis.console",
                drives=(Drive(images.root, "root"), Drive(images.tools, "tools")),
                channels=(AGENT_CHANNEL,),
                nets=(Tap(port.fd, port.mac),),
            )
            accel = await find_accel(images.kernel)
            async with Vm(machine, accel, directory / "vm") as vm:
                channel = asyncio.create_task(_listen(vm.layout.channel(AGENT_CHANNEL)))
                await vm.console_match(rb"preload: images are ready", LIMIT_S)
                found = await _scan(port.ipv4) | await _scan(_ipv6(port.mac))
                await _type(vm.layout.console_socket, b"\n\nroot\n\necho way-$((20 + 3))-in\n")
                await vm.stop(powerdown_s=LIMIT_S)
                reason = await vm.wait()
                return Ended(
                    reason,
                    vm.layout.console_log.read_bytes(),
                    await channel,
                    [asked for asked, answer in found.items() if answer],
                    sum(answer is False for answer in found.values()),
                )
    finally:
        shutil.rmtree(directory, ignore_errors=True)


async def test_it_runs_what_a_node_needs(ended: Ended) -> None:
    """It runs nothing else."""
    assert b"starting services: acpi containerd node-core preload time \r\n" in ended.console
    assert b"DEVELOPMENT" not in ended.console
    assert b"FAILED" not in ended.console


async def test_no_port_is_open(ended: Ended) -> None:
    assert ended.open == []
    assert ended.refused == 2 * len(PORTS), "all were answered"


async def test_the_console_has_no_shell(ended: Ended) -> None:
    assert b"way-23-in" not in ended.console
    assert b"# " not in ended.console.splitlines()[-1]


async def test_a_tools_disk_is_not_run(ended: Ended) -> None:
    assert ended.channel == b""
    assert b"agent" not in ended.console


async def test_the_power_button_ends_it_in_order(ended: Ended) -> None:
    assert ended.reason == "guest-shutdown"
    assert b"shutdown: stopping services" in ended.console
