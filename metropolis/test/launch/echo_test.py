# SPDX-License-Identifier: Apache-2.0
"""Pings in this namespace, with and without answers of the kernel."""

import contextlib
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path

import pytest

_ECHO = Path(__file__).with_name("echo.py")
LOOPBACK = {4: "127.0.0.1", 6: "::1"}
# RFC 5737, RFC 3849; there is no route to them here.
NOWHERE = {4: "192.0.2.1", 6: "2001:db8::1"}


@pytest.fixture(autouse=True)
def _loopback() -> None:
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)


class Pings:
    """A running echo.py."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def answer(self) -> tuple[str, int]:
        """Wait for the next answer."""
        while True:
            sender, _, number = self.line().partition(" ")
            if sender != "late" and not sender.endswith(":"):
                return sender, int(number)

    def line(self) -> str:
        """Wait for the next line."""
        assert self.process.stdout is not None
        return self.process.stdout.readline()

    def numbers(self, count: int) -> dict[str, list[int]]:
        """Wait until each sender has given so many answers."""
        found: dict[str, list[int]] = {}
        while not found or min(map(len, found.values())) < count:
            sender, number = self.answer()
            found.setdefault(sender, []).append(number)
        return found


@contextlib.contextmanager
def pings(every_s: float, *targets: str) -> Iterator[Pings]:
    source = _ECHO.read_text()
    command = [sys.executable, "-I", "-S", "-c", source, str(every_s), *targets]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield Pings(process)
        finally:
            process.kill()


def test_every_ping_is_answered_once_and_in_order() -> None:
    with pings(0.01, *LOOPBACK.values()) as running:
        found = running.numbers(50)
    assert set(found) == set(LOOPBACK.values())
    for numbers in found.values():
        assert numbers == list(range(len(numbers)))


@pytest.mark.parametrize("version", [4, 6])
def test_what_cannot_be_sent_has_a_number(version: int) -> None:
    """A route comes later: the numbers tell what was lost until then."""
    address = NOWHERE[version]
    with pings(0.02, LOOPBACK[version], address) as running:
        while not (line := running.line()).startswith(address):
            pass
        assert line.rstrip().endswith("Network is unreachable")
        sender, number = "", -1
        while number < 5:
            sender, number = running.answer()
            assert sender == LOOPBACK[version]
        length = ip_address(address).max_prefixlen
        subprocess.run(["ip", "addr", "add", f"{address}/{length}", "dev", "lo"], check=True)
        while sender != address:
            sender, number = running.answer()
    assert number > 5


def _checksum(text: bytes) -> int:
    total: int = sum(struct.unpack(f"!{len(text) // 2}H", text))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return 0xFFFF & ~total


def _send(version: int, text: bytes, count: int = 1) -> None:
    """Send an ICMP message, whose checksum is 0, to this namespace."""
    protocol = socket.IPPROTO_ICMP if version == 4 else socket.IPPROTO_ICMPV6
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    if version == 4:
        text = text[:2] + struct.pack("!H", _checksum(text)) + text[4:]
    with socket.socket(family, socket.SOCK_RAW, protocol) as sock:
        for _ in range(count):
            sock.sendto(text, (LOOPBACK[version], 0))


def _send_requests(version: int, count: int) -> None:
    """Fill the sockets that receive all ICMP of the namespace."""
    kind = 8 if version == 4 else 128
    _send(version, struct.pack("!BBHHH", kind, 0, 0, 1, 1), count)


def _send_reply(version: int, identifier: int, number: int) -> None:
    kind = 0 if version == 4 else 129
    _send(version, struct.pack("!BBHHHI52x", kind, 0, 0, identifier, 0, number))


@pytest.mark.parametrize("version", [4, 6])
def test_a_process_that_waits_for_a_cpu_loses_nothing(version: int) -> None:
    """Meanwhile others ping and are answered, as in a pod that others ping."""
    with pings(0.02, LOOPBACK[version]) as running:
        assert running.answer() == (LOOPBACK[version], 0)
        running.process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, running.process.pid, os.WSTOPPED)
        _send_requests(version, 200)
        _send_reply(version, running.process.pid & 0xFFFF, 1_000_000)
        running.process.send_signal(signal.SIGCONT)
        number = 0
        deadline = time.monotonic() + 30
        while number < 1_000_000 and time.monotonic() < deadline:
            _, number = running.answer()
    assert number == 1_000_000


def test_replies_to_others_are_not_its_own() -> None:
    with pings(0.02, LOOPBACK[4]) as running:
        running.answer()
        _send_reply(4, (running.process.pid + 1) & 0xFFFF, 1_000_000)
        assert max(running.numbers(20)[LOOPBACK[4]]) < 1_000_000


def test_a_process_says_that_it_was_late() -> None:
    with pings(0.02, LOOPBACK[4]) as running:
        running.answer()
        running.process.send_signal(signal.SIGSTOP)
        time.sleep(1.2)  # this long
        running.process.send_signal(signal.SIGCONT)
        while not (line := running.line()).startswith("late "):
            pass
    assert 1.0 <= float(line.split()[1]) < 60
