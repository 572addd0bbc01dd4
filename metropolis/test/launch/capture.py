# SPDX-License-Identifier: Apache-2.0
"""Capture the lab's traffic in pcap files, and count it.

    async with Capture(directory) as capture:
        ...
        found = await capture.count("udp port 51820")

There is one capture, on the bridge: it has every frame once, for any two ports,
except frames that the bridge drops. It has headers only, and the end of a long
capture.
"""

import asyncio
import struct
from asyncio.subprocess import PIPE
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from metropolis.test.launch.child import ChildError, child
from metropolis.test.launch.lab import BRIDGE
from metropolis.test.launch.started import Started

# Ethernet, IPv6, an extension header, WireGuard's or TLS's first bytes.
_SNAP_BYTES = 160
# Two files in turn, of millions of bytes: a million packets or so.
_FILES, _FILE_MB = 2, 64
FIRST_FILE = "underlay.pcap0"
"""The file that is written first, in the capture's directory."""
# There is no other user in this namespace.
_AS_ROOT = ("-Z", "root")
# pcap(5): the file's header, and in each packet's how much there is and was.
_FILE_HEADER = struct.Struct("=IHHiIII")
_PACKET_HEADER = struct.Struct("=IIII")
_MAGIC = 0xA1B2C3D4


@dataclass(frozen=True)
class Count:
    """Frames and their bytes on the wire."""

    packets: int = 0
    bytes: int = 0

    def __add__(self, other: Count) -> Count:
        return Count(self.packets + other.packets, self.bytes + other.bytes)


def count(data: bytes) -> Count:
    """Count the packets in a pcap file of this machine's byte order.

    An incomplete packet is not counted. Raises ValueError for another file.
    """
    if not data:
        return Count()
    if len(data) < _FILE_HEADER.size or _FILE_HEADER.unpack_from(data)[0] != _MAGIC:
        raise ValueError("not a pcap file")
    found, at = Count(), _FILE_HEADER.size
    while at + _PACKET_HEADER.size <= len(data):
        _, _, there, size = _PACKET_HEADER.unpack_from(data, at)
        at += _PACKET_HEADER.size + there
        if at <= len(data):
            found += Count(1, size)
    return found


def to_text(kinds: Mapping[str, Count]) -> str:
    """Return a line for each kind."""
    width = max(map(len, kinds), default=0)
    return "\n".join(
        f"{name.ljust(width)}  {found.packets:8} packets  {found.bytes:12} bytes"
        for name, found in kinds.items()
    )


class Capture(Started):
    """A capture from entering to leaving the context; its files stay."""

    def __init__(self, directory: Path) -> None:
        super().__init__()
        self._directory = directory

    @property
    def files(self) -> list[Path]:
        """Return the pcap files, in any order."""
        return sorted(self._directory.glob("underlay.pcap*"))

    async def _start(self) -> None:
        await self._stack.enter_async_context(
            child(
                "tcpdump",
                *("-i", BRIDGE, "-n", "-s", str(_SNAP_BYTES), "-U", "--immediate-mode"),
                *("-C", str(_FILE_MB), "-W", str(_FILES)),
                *_AS_ROOT,
                *("-w", str(self._directory / "underlay.pcap")),
                log=self._directory / "tcpdump.log",
                ready=rb"listening on",
            )
        )

    async def _select(self, file: Path, expression: str, *options: str) -> bytes:
        process = await asyncio.create_subprocess_exec(
            "tcpdump", *_AS_ROOT, "-n", "-r", str(file), *options, expression,
            stdout=PIPE,
            stderr=PIPE,
        )  # fmt: skip
        out, said = await process.communicate()
        # A file that is being written may end within a packet.
        if process.returncode != 0 and b"truncated" not in said:
            raise ChildError(f"tcpdump -r {file} {expression!r}: {said.decode().strip()}")
        return out

    async def count(self, expression: str) -> Count:
        """Count the packets that match a filter (pcap-filter(7))."""
        found = [count(await self._select(file, expression, "-w", "-")) for file in self.files]
        return sum(found, Count())

    async def show(self, expression: str, most: int = 20) -> str:
        """Return the first packets that match a filter, a line each."""
        lines: list[str] = []
        for file in self.files:
            out = await self._select(file, expression, "-e", "-q", "-tt")
            lines += out.decode(errors="replace").splitlines()
        return "\n".join(lines[:most])
