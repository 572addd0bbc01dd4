# SPDX-License-Identifier: Apache-2.0
"""A time server: SNTP (RFC 4330), for the clocks of nodes."""

import asyncio
import struct
import time

NTP_PORT = 123

# Header of RFC 5905, figure 8: leap/version/mode, stratum, poll, precision,
# root delay and dispersion, reference; then the times: of reference, origin,
# receive, transmit.
_PACKET = struct.Struct("!BBbbIII8s8s8s8s")
_CLIENT, _SERVER = 3, 4
_SINCE_1900 = 2_208_988_800


def timestamp(now: float) -> bytes:
    """Encode seconds since 1900 in 32.32 bits. now: seconds since 1970."""
    return struct.pack("!Q", int((now + _SINCE_1900) * (1 << 32)) & ((1 << 64) - 1))


def answer(request: bytes, received: float, now: float) -> bytes | None:
    """Return a primary server's answer; None for an invalid request."""
    if len(request) < _PACKET.size or request[0] & 7 != _CLIENT:
        return None
    version = request[0] >> 3 & 7
    return _PACKET.pack(
        version << 3 | _SERVER, 1, request[2], -20, 0, 1, int.from_bytes(b"LAB\0"),
        timestamp(received), request[40:48], timestamp(received), timestamp(now),
    )  # fmt: skip


class SntpServer(asyncio.DatagramProtocol):
    """Serves this machine's time; does not answer while `silent`."""

    silent = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.DatagramTransport)
        self._transport = transport

    def datagram_received(self, data: bytes, addr: tuple[str | object, int]) -> None:
        now = time.time()
        if self.silent:
            return
        if (said := answer(data, now, time.time())) is not None:
            self._transport.sendto(said, addr)
