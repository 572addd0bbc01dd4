# SPDX-License-Identifier: Apache-2.0
"""A link that lacks forwarding by itself, and one on a host that lacks it, also
if the host's setting changes while one looks.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from osbase.netlink import forwarding
from osbase.netlink.errors import BatchError
from osbase.netlink.message import Message, Request
from osbase.netlink.transport import NetlinkSocket

HOST = Path("/proc/sys/net/ipv4/ip_forward")
LINK = Path("/proc/sys/net/ipv4/conf/fw0/forwarding")


@pytest.fixture
def ifindex() -> Iterator[int]:
    subprocess.run(["ip", "link", "add", "fw0", "type", "veth", "peer", "fw1"], check=True)
    HOST.write_text("1")
    yield int(Path("/sys/class/net/fw0/ifindex").read_text())
    subprocess.run(["ip", "link", "del", "fw0"], check=True)


def test_alone(ifindex: int) -> None:
    with NetlinkSocket() as sock:
        assert not forwarding.stopped_alone(sock, ifindex)
        LINK.write_text("0")
        assert forwarding.stopped_alone(sock, ifindex)
        LINK.write_text("1")
        assert not forwarding.stopped_alone(sock, ifindex)


def test_with_the_host(ifindex: int) -> None:
    with NetlinkSocket() as sock:
        HOST.write_text("0")
        assert LINK.read_text() == "0\n"
        assert not forwarding.stopped_alone(sock, ifindex)
        HOST.write_text("1")
        assert not forwarding.stopped_alone(sock, ifindex)


class Amid(NetlinkSocket):
    """Writes the host's setting before its answer, or behind it."""

    before = behind = "1"

    def get(self, request: Request) -> Message:
        HOST.write_text(self.before)
        answer = super().get(request)
        HOST.write_text(self.behind)
        return answer


@pytest.mark.parametrize(("at_first", "before", "behind"), ["100", "001", "010", "110", "011"])
def test_while_the_host_changes(ifindex: int, at_first: str, before: str, behind: str) -> None:
    HOST.write_text(at_first)
    with Amid() as sock:
        sock.before, sock.behind = before, behind
        assert not forwarding.stopped_alone(sock, ifindex)


def test_no_such_link(ifindex: int) -> None:
    with NetlinkSocket() as sock, pytest.raises(BatchError, match="ENODEV"):
        forwarding.stopped_alone(sock, ifindex + 1000)
