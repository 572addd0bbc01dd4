# SPDX-License-Identifier: Apache-2.0
"""Ping addresses without end: python3 echo.py SECONDS ADDRESS...

    ADDRESS NUMBER      an answer; numbers count from 0
    late SECONDS        this process ran later than it wanted to, by a second
                        or more
    ADDRESS: ERROR      a ping was not sent; it has a number, too

A node gets this text and runs it in the network namespace of a pod, so it uses
the standard library only.

busybox's ping cannot count losses: its receive buffer has 14 KB, and in IPv4
all ICMP of the namespace goes into it. A process that waits a second or two
for a CPU then loses answers that the network delivered.
"""

import os
import select
import socket
import struct
import sys
import time

# icmp(7), linux/icmp.h: a bit blocks its type.
_SOL_RAW, _ICMP_FILTER = 255, 1
_BLOCK_4 = struct.pack("=I", 0xFFFFFFFF & ~1)
# RFC 3542, section 3.2; linux/icmpv6.h: echo reply is 129, of 256 bits.
_ICMPV6_FILTER = 1
_BLOCK_6 = struct.pack("=8I", *([0xFFFFFFFF] * 4), 0xFFFFFFFF & ~2, *([0xFFFFFFFF] * 3))

_REQUEST = {4: 8, 6: 128}
# RFC 792, RFC 4443: type, code, checksum, identifier, sequence number; then
# the number again, since a sequence number has 16 bits, up to ping's 56 bytes.
_ECHO = struct.Struct("!BBHHHI52x")
_IDENTIFIER = os.getpid() & 0xFFFF
_LATE_S = 1.0


def open_socket(version: int) -> socket.socket:
    """Return a raw socket that receives echo replies only."""
    if version == 4:
        sock = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
        sock.setsockopt(_SOL_RAW, _ICMP_FILTER, _BLOCK_4)
    else:
        sock = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)
        sock.setsockopt(socket.IPPROTO_ICMPV6, _ICMPV6_FILTER, _BLOCK_6)
    sock.setblocking(False)
    return sock


def request(version: int, number: int) -> bytes:
    """Return an echo request. The kernel has the checksum of ICMPv6."""
    fields = _IDENTIFIER, number & 0xFFFF, number
    text = _ECHO.pack(_REQUEST[version], 0, 0, *fields)
    if version == 6:
        return text
    # RFC 1071
    total = sum(struct.unpack("!32H", text))
    total = (total & 0xFFFF) + (total >> 16)
    total = (total & 0xFFFF) + (total >> 16)
    return _ECHO.pack(_REQUEST[version], 0, 0xFFFF & ~total, *fields)


def answers(version: int, sock: socket.socket) -> list[tuple[str, int]]:
    """Return the senders and numbers of the waiting replies."""
    found: list[tuple[str, int]] = []
    while True:
        try:
            data, sender = sock.recvfrom(2048)
        except BlockingIOError:
            return found
        # IPv4 has its header before it.
        start = (data[0] & 0xF) * 4 if version == 4 else 0
        if len(data) >= start + _ECHO.size:
            *_, identifier, _sequence, number = _ECHO.unpack_from(data, start)
            if identifier == _IDENTIFIER:
                found.append((str(sender[0]), number))


def main(every_s: float, targets: list[str]) -> None:
    """Ping all targets at once, every `every_s` seconds."""
    versions = {target: 6 if ":" in target else 4 for target in targets}
    sockets = {version: open_socket(version) for version in set(versions.values())}
    number, due = 0, time.monotonic()
    while True:
        if (wait := due - time.monotonic()) <= 0:
            if wait <= -_LATE_S:
                print(f"late {-wait:.3f}", flush=True)
            for target, version in versions.items():
                try:
                    sockets[version].sendto(request(version, number), (target, 0))
                except OSError as error:
                    print(f"{target}: {error}", flush=True)
            number += 1
            due = max(due + every_s, time.monotonic())
            continue
        readable, _, _ = select.select(list(sockets.values()), [], [], wait)
        for version, sock in sockets.items():
            if sock in readable:
                for sender, answered in answers(version, sock):
                    print(sender, answered, flush=True)


if __name__ == "__main__":
    main(float(sys.argv[1]), sys.argv[2:])
