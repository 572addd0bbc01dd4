# SPDX-License-Identifier: Apache-2.0
"""Send attacks, and return the packets that arrived; for nodes in the lab.

    site = Site(lab, node, sniffer)
    arrived = await site.into_pod(pod, 4, frames)      from the uplink's link
    left = await site.out_of_pod(pod, 4, frames)       by a pod, seen outside

Packets keep their order on a path. So each attempt ends with a packet that is
allowed on the same path, and a packet that has not arrived before it will not
arrive.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import socket
import struct
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from metropolis.node import allocs
from metropolis.node.core.network.rules.testing import packets
from metropolis.node.core.network.rules.testing.packets import Packet
from metropolis.test.launch.cri import Pod
from metropolis.test.launch.lab import (
    BRIDGE,
    BRIDGE_MAC,
    OUTSIDE_IPV4,
    OUTSIDE_IPV6,
    OUTSIDE_PORT,
    Lab,
)
from metropolis.test.launch.node import Node
from metropolis.test.security import frames
from metropolis.test.security.frames import mac_bytes
from osbase.test.agent.client import Process

OUTSIDE = {4: str(OUTSIDE_IPV4), 6: str(OUTSIDE_IPV6)}
FIRST_HOP = {4: str(allocs.FIRST_HOP_IPV4), 6: str(allocs.FIRST_HOP_IPV6)}
END = "the-end"
# The outside's port, and the port of the node's test service.
ANSWER_PORT, SERVICE_PORT = 7000, 7001
# Seconds, on an emulated machine that is busy.
LIMIT_S = 120.0

_GUEST = Path(__file__).with_name("guest.py")
_GUEST_THERE = "/run/guest.py"
_ALL = 0x0003  # linux/if_ether.h: ETH_P_ALL
# linux/if_packet.h
_SOL_PACKET, _ADD_MEMBERSHIP, _PROMISCUOUS = 263, 1, 1

type Address = tuple[str, int]


async def arm(node: Node) -> None:
    """Copy the programs of attackers and victims to a node."""
    await node.agent.write_file(_GUEST_THERE, await asyncio.to_thread(_GUEST.read_bytes))


def address_of(pod: Pod, version: int) -> str:
    """Return a pod's address of a family."""
    return next(str(ip) for ip in pod.ips if ip.version == version)


class Sniffer:
    """Captures frames on the lab's bridge, from entering to leaving the
    context, and sends frames there.
    """

    def __init__(self) -> None:
        self.frames: list[bytes] = []
        self._news = asyncio.Event()
        self._sock: socket.socket

    async def __aenter__(self) -> Self:
        self._sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ALL))
        self._sock.setblocking(False)
        self._sock.bind((BRIDGE, _ALL))
        # Also frames for other hosts.
        member = struct.pack("iHH8s", socket.if_nametoindex(BRIDGE), _PROMISCUOUS, 0, b"")
        self._sock.setsockopt(_SOL_PACKET, _ADD_MEMBERSHIP, member)
        asyncio.get_running_loop().add_reader(self._sock, self._read)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        asyncio.get_running_loop().remove_reader(self._sock)
        self._sock.close()

    def _read(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                frame, (_, _, direction, *_rest) = self._sock.recvfrom(65536)
                if direction != socket.PACKET_OUTGOING:
                    self.frames.append(frame)
        self._news.set()

    def send(self, some: Iterable[bytes]) -> None:
        """Send frames to their destinations."""
        for frame in some:
            self._sock.send(frame)

    async def first[T](self, wanted: Callable[[bytes], T | None], since: int = 0) -> T:
        """Return the first result of `wanted` that is not None. Raises
        TimeoutError. since: how many frames to skip.
        """
        async with asyncio.timeout(LIMIT_S):
            while True:
                self._news.clear()
                while since < len(self.frames):
                    if (found := wanted(self.frames[since])) is not None:
                        return found
                    since += 1
                await self._news.wait()


class _Answers(asyncio.DatagramProtocol):
    """The flows that pods began with the outside, by family."""

    def __init__(self) -> None:
        self.callers: asyncio.Queue[tuple[asyncio.DatagramTransport, Address]] = asyncio.Queue()
        self._transport: asyncio.DatagramTransport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.DatagramTransport)
        self._transport = transport

    def datagram_received(self, data: bytes, addr: Address) -> None:
        self.callers.put_nowait((self._transport, addr))


@contextlib.asynccontextmanager
async def answers(version: int) -> AsyncIterator[_Answers]:
    """Listen at the outside host's address, by UDP."""
    loop = asyncio.get_running_loop()
    local = (OUTSIDE[version], ANSWER_PORT)
    transport, protocol = await loop.create_datagram_endpoint(_Answers, local_addr=local)
    try:
        yield protocol
    finally:
        transport.close()


async def lines(process: Process) -> AsyncIterator[str]:
    """Yield a command's lines of output. Raises AgentError when it fails."""
    rest = b""
    while data := await process.read():
        *whole, rest = (rest + data).split(b"\n")
        for line in whole:
            yield line.decode()
    if await process.wait() != 0:
        raise AssertionError((await process.read(1)).decode(errors="replace"))


class Heard:
    """The output of a program on the node."""

    def __init__(self, process: Process) -> None:
        self._lines = lines(process)

    async def line(self) -> str:
        """Return the next line."""
        async with asyncio.timeout(LIMIT_S):
            return await anext(self._lines)

    async def rest(self) -> list[str]:
        """Return all lines until it ends."""
        async with asyncio.timeout(LIMIT_S):
            return [line async for line in self._lines]

    async def packets(self) -> list[Packet]:
        """Return all lines until it ends, parsed as packets."""
        found = [frames.read_packet(bytes.fromhex(line)) for line in await self.rest()]
        return [packet for packet in found if packet is not None]


class Site:
    """A node and the outside, with the attacks between them."""

    def __init__(self, lab: Lab, node: Node, sniffer: Sniffer) -> None:
        self.lab = lab
        self.node = node
        self.sniffer = sniffer
        self._netns: dict[str, str] = {}

    @property
    def mac(self) -> bytes:
        """The node's link address on the uplink."""
        return mac_bytes(self.node.port.mac)

    def address(self, version: int) -> str:
        """Return the node's address on the uplink."""
        return str(self.node.ipv4 if version == 4 else self.node.ipv6)

    async def netns(self, pod: Pod) -> str:
        """Return the path of a pod's network namespace, on the node."""
        if pod.id not in self._netns:
            _, self._netns[pod.id] = await self.node.cri.sandbox_process(pod.id)
        return self._netns[pod.id]

    async def command(self, pod: Pod | None, do: str, **what: object) -> list[str]:
        """Return the command for a function of guest.py; pod None: in the
        node's own namespace.
        """
        netns = None if pod is None else await self.netns(pod)
        ask = json.dumps({"do": do, "netns": netns, **what})
        # -I -S: it needs no packages of the node, and so starts sooner.
        return ["python3", "-I", "-S", _GUEST_THERE, ask]

    async def run(self, pod: Pod | None, do: str, **what: object) -> str:
        """Run a function of guest.py on the node; return its output."""
        async with asyncio.timeout(2 * LIMIT_S):
            done = await self.node.agent.run(await self.command(pod, do, **what))
        return done.text

    @contextlib.asynccontextmanager
    async def running(self, pod: Pod | None, do: str, **what: object) -> AsyncIterator[Heard]:
        """Run a function of guest.py during the block, which begins when it is
        ready.
        """
        async with self.node.agent.exec(await self.command(pod, do, **what)) as process:
            heard = Heard(process)
            assert await heard.line() == "ready"
            yield heard

    @contextlib.asynccontextmanager
    async def hearing(
        self, pod: Pod, version: int
    ) -> AsyncIterator[tuple[Heard, Callable[[], None]]]:
        """Listen in a pod, which has begun a flow with the outside. A call of
        the second value sends the answer in that flow, which ends listening.
        """
        greet = [(OUTSIDE[version], ANSWER_PORT)]
        async with (
            answers(version) as outside,
            self.running(pod, "hear", link="eth0", end=END, greet=greet) as heard,
        ):
            async with asyncio.timeout(LIMIT_S):
                transport, caller = await outside.callers.get()
            yield heard, lambda: transport.sendto(END.encode(), caller)

    async def into_pod(self, pod: Pod, version: int, attempts: Sequence[bytes]) -> list[Packet]:
        """Send packets from the uplink's link to the node; return the packets
        that reached the pod. The last is an answer in a flow that it began.
        """
        async with self.hearing(pod, version) as (heard, end):
            self.outsider_sends(attempts)
            end()
            return await heard.packets()

    async def into_node(self, version: int, attempts: Sequence[bytes]) -> list[str]:
        """Like into_pod, to a service of the node itself that is open to the
        outside; return the payloads, and "connected" for connections.
        """
        async with self.running(None, "serve", port=SERVICE_PORT, end=END) as heard:
            self.outsider_sends(attempts)
            self.end_service(version)
            return await heard.rest()

    def outsider_sends(self, attempts: Iterable[bytes]) -> None:
        """Send packets to the node from its link."""
        self.sniffer.send(frames.ethernet(self.mac, mac_bytes(BRIDGE_MAC), x) for x in attempts)

    def end_service(self, version: int) -> None:
        """End the service on the node, from the outside's own address."""
        ends = (OUTSIDE[version], self.address(version))
        self.outsider_sends([packets.udp(*ends, (ANSWER_PORT, SERVICE_PORT), END.encode())])

    async def pod_send(self, pod: Pod, attempts: Iterable[bytes]) -> None:
        """Send frames on a pod's link, with any source."""
        hexed = [frame.hex() for frame in attempts]
        await self.run(pod, "send", link="eth0", frames=hexed, bare=False)

    async def out_of_pod(self, pod: Pod, version: int, attempts: Sequence[bytes]) -> list[Packet]:
        """Send packets on a pod's link; return the packets that left the node's
        uplink until the last, which is masqueraded.
        """
        mac = await self.pod_mac(pod)
        ends = (address_of(pod, version), OUTSIDE[version])
        last = packets.udp(*ends, (9, OUTSIDE_PORT), END.encode())
        begin = len(self.sniffer.frames)
        await self.pod_send(
            pod,
            [frames.ethernet(allocs.FIRST_HOP_MAC, mac, data) for data in (*attempts, last)],
        )
        await self.sniffer.first(lambda frame: END.encode() in frame or None, begin)
        return self.sent_by_node(begin)

    def sent_by_node(self, since: int) -> list[Packet]:
        """Return the IP packets that the node sent by its uplink."""
        by_node = [one for one in self.sniffer.frames[since:] if one[6:12] == self.mac]
        found = map(frames.read, by_node)
        return [packet for packet in found if packet is not None]

    async def pod_mac(self, pod: Pod) -> bytes:
        """Return the link address of a pod."""
        found = await self.pod_ip(pod, "-o", "link", "show", "dev", "eth0")
        match = re.search(r"link/ether ([0-9a-f:]{17})", found)
        assert match is not None, found
        return mac_bytes(match[1])

    async def pod_ip(self, pod: Pod, *arguments: str) -> str:
        """Run ip(8) in a pod's network namespace; its output."""
        command = ["nsenter", f"--net={await self.netns(pod)}", "ip", *arguments]
        return (await self.node.agent.run(command)).text

    async def counters(self) -> dict[str, int]:
        """Return the packets by the names of the rule set's counters."""
        text = (await self.node.agent.run(["nft", "--json", "list", "counters"])).text
        return {
            item["counter"]["name"]: int(item["counter"]["packets"])
            for item in json.loads(text)["nftables"]
            if "counter" in item
        }
