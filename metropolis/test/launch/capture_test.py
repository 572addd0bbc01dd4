# SPDX-License-Identifier: Apache-2.0
"""Captures of a network without nodes."""

import asyncio
import socket
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metropolis.test.launch import capture
from metropolis.test.launch.capture import Capture, Count
from metropolis.test.launch.lab import ROUTER_IPV4, Lab

HEADER = struct.pack("=IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 160, 1)


def packet(there: int, size: int) -> bytes:
    return struct.pack("=IIII", 0, 0, there, size) + bytes(there)


def test_packets_are_counted() -> None:
    data = HEADER + packet(160, 1500) + packet(60, 60)
    assert capture.count(data) == Count(2, 1560)
    # Half written.
    assert capture.count(data[:-1]) == Count(1, 1500)
    assert capture.count(HEADER + bytes(15)) == Count()
    assert capture.count(b"") == Count()
    with pytest.raises(ValueError, match="not a pcap file"):
        capture.count(bytes(24))


@given(st.binary())
def test_any_bytes(data: bytes) -> None:
    assert capture.count(HEADER + data).bytes >= 0


def test_text() -> None:
    text = capture.to_text({"ARP": Count(1, 42), "WireGuard": Count(1000, 10**6)})
    assert text.splitlines()[0].split() == ["ARP", "1", "packets", "42", "bytes"]


async def test_what_the_bridge_sees(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        async with Capture(tmp_path) as found:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
                sock.bind((str(ROUTER_IPV4.ip), 0))
                for _ in range(3):
                    sock.sendto(bytes(1000), (str(ROUTER_IPV4.network.broadcast_address), 9))
            async with asyncio.timeout(30):
                # Written when tcpdump gets to it.
                while (await found.count("udp port 9")).packets < 3:  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
            assert await found.count("udp port 9") == Count(3, 3 * 1042)
            assert await found.count("tcp") == Count()
            assert len((await found.show("udp port 9", most=2)).splitlines()) == 2
        assert lab.ports
        assert (await found.count("udp port 9")).packets == 3
