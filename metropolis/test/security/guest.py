# SPDX-License-Identifier: Apache-2.0
"""The program of an attacker, or its victim, on a node: python3 guest.py JSON.

A process of the node in the pod's network namespace stands for a pod with all
capabilities. The argument is {"do": NAME, "netns": PATH or null, ...}; the
other keys are the function's arguments. Standard library only: the file is
copied to a node.
"""

from __future__ import annotations

import json
import os
import select
import socket
import sys
from collections.abc import Callable
from typing import Any

_ALL = 0x0003  # linux/if_ether.h: ETH_P_ALL
_SNAP_BYTES = 128


def say(text: str) -> None:
    """Print a line at once."""
    print(text, flush=True)


def send(link: str, frames: list[str], bare: bool) -> None:
    """Send frames, in hexadecimal, on a link. bare: the link has no addresses
    (WireGuard's), and the frames are IP packets.
    """
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as sock:
        for frame in map(bytes.fromhex, frames):
            of_packet = 0x0800 if frame[0] >> 4 == 4 else 0x86DD
            kind = of_packet if bare else int.from_bytes(frame[12:14])
            sock.sendto(frame, (link, kind))


def hear(link: str, end: str, greet: list[tuple[str, int]]) -> None:
    """Print the IP packets that arrive on a link, in hexadecimal, until one
    contains `end`. First, begin flows for answers. greet: their addresses and
    ports.
    """
    with socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(_ALL)) as sock:
        sock.bind((link, _ALL))
        flows = []
        for address, port in greet:
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            flow = socket.socket(family, socket.SOCK_DGRAM)
            flow.sendto(b"greeting", (address, port))
            flows.append(flow)
        say("ready")
        while True:
            data, (_, kind, direction, *_rest) = sock.recvfrom(65536)
            if direction == socket.PACKET_OUTGOING or kind not in (0x0800, 0x86DD):
                continue
            say(data[:_SNAP_BYTES].hex())
            if end.encode() in data:
                return


def serve(port: int, end: str) -> None:
    """Print UDP payloads, and "connected" for each TCP connection, to every
    address of the namespace, until a datagram is `end`.
    """
    both = []
    for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
        sock = socket.socket(socket.AF_INET6, kind)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        sock.bind(("::", port))
        both.append(sock)
    datagrams, stream = both
    stream.listen(64)
    say("ready")
    while True:
        for sock in select.select(both, [], [])[0]:
            if sock is stream:
                stream.accept()[0].close()
                say("connected")
            else:
                data = datagrams.recv(65536).decode(errors="replace")
                say(data)
                if data == end:
                    return


def talk(address: str, port: int, wait_s: float) -> None:
    """Connect, and send two lines; each has to be echoed."""
    with socket.create_connection((address, port), timeout=wait_s) as sock:
        file = sock.makefile("rwb", buffering=0)
        for line in (b"one\n", b"two\n"):
            file.write(line)
            answer = file.readline()
            if answer != line:
                raise SystemExit(f"answer to {line!r}: {answer!r}")
    say("talked")


def flood(address: str, ports: int) -> None:
    """Begin as many flows as there are ports, from many sockets; print how many
    packets were sent.
    """
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    sent = 0
    for first in range(0, ports, 1000):
        with socket.socket(family, socket.SOCK_DGRAM) as sock:
            for port in range(first, min(first + 1000, ports)):
                try:
                    sock.sendto(b"flood", (address, 1024 + port % 60000))
                except OSError:
                    continue  # no buffer, or refused: the next
                sent += 1
    say(str(sent))


def pry(paths: list[str], uid: int) -> None:
    """Print which of the files and sockets a user may open."""
    os.setgroups([])
    os.setgid(uid)
    os.setuid(uid)
    for path in paths:
        try:
            if path.endswith(".sock"):
                with socket.socket(socket.AF_UNIX) as sock:
                    sock.connect(path)
            else:
                os.close(os.open(path, os.O_RDONLY))
        except PermissionError:
            continue
        say(path)


def main(argument: str) -> None:
    """Do what the argument says, in the namespace it says."""
    ask: dict[str, Any] = json.loads(argument)
    known: dict[str, Callable[..., None]]
    known = {
        "send": send,
        "hear": hear,
        "serve": serve,
        "talk": talk,
        "flood": flood,
        "pry": pry,
    }
    do = known[ask.pop("do")]
    if (netns := ask.pop("netns")) is not None:
        there = os.open(netns, os.O_RDONLY | os.O_CLOEXEC)
        os.setns(there, os.CLONE_NEWNET)
        os.close(there)
    do(**ask)


if __name__ == "__main__":
    main(sys.argv[1])
