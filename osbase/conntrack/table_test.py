# SPDX-License-Identifier: Apache-2.0
"""The table of a real kernel, in a fresh namespace."""

import contextlib
import os
import socket
import subprocess
import tracemalloc
from ipaddress import ip_address
from pathlib import Path

import pytest

from osbase import conntrack
from osbase.conntrack import table
from osbase.conntrack.ctnetlink import NETLINK_NETFILTER
from osbase.netlink import netns
from osbase.netlink.errors import BatchError
from osbase.netlink.message import Request
from osbase.netlink.transport import NetlinkSocket, open_raw

pytestmark = pytest.mark.usefixtures("tracked")


def send(source: str, flows: int, to: str | None = None) -> None:
    """Send a packet to each of `flows` ports on which nobody listens."""
    kind = socket.AF_INET6 if ":" in source else socket.AF_INET
    with socket.socket(kind, socket.SOCK_DGRAM) as sock:
        sock.bind((source, 0))
        for port in range(1, flows + 1):
            while True:
                # This send reports the refusal of the packet before.
                with contextlib.suppress(ConnectionRefusedError):
                    sock.sendto(b"", (to or source, port))
                    break


def test_census_of_both_families() -> None:
    send("127.0.0.1", 30)
    send("127.0.0.2", 5)
    send("fd00::1", 20)
    send("fd00::2", 7, to="fd00::1")
    census = conntrack.census()
    wanted = {"127.0.0.1": 30, "127.0.0.2": 5, "fd00::1": 20, "fd00::2": 7}
    assert census.entries == {ip_address(key): value for key, value in wanted.items()}
    assert conntrack.count() == census.total == 62


def test_an_empty_table() -> None:
    assert conntrack.census().total == conntrack.count() == 0


def test_the_table_is_the_namespaces_own() -> None:
    send("127.0.0.1", 3)
    subprocess.run(["ip", "netns", "add", "other"], check=True)
    try:
        home, there = netns.open_current(), netns.open_path("/run/netns/other")
        with netns.Inside(there, home):
            assert conntrack.count() == conntrack.census().total == 0
        assert conntrack.count() == 3
        for fd in (home, there):
            os.close(fd)
    finally:
        subprocess.run(["ip", "netns", "del", "other"], check=True)


def test_memory_does_not_grow_with_entries() -> None:
    """Ten thousand more entries of the same sources have the same peak."""
    peaks = []
    for flows in (200, 10_000):
        send("127.0.0.1", flows)
        tracemalloc.start()
        assert conntrack.census().total >= flows
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 50_000


def test_the_limit_is_the_machines() -> None:
    """A sufficient limit stays; a namespace cannot raise it."""
    now = conntrack.limit()
    assert now > 0
    assert not conntrack.raise_limit(now + 1_000_000)
    assert conntrack.limit() == now


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "_COUNT", "/proc/sys/net/netfilter/nothing")
    with pytest.raises(conntrack.ConntrackError, match="netfilter/nothing: ENOENT"):
        conntrack.count()


def test_limit_and_buckets_are_raised_never_lowered(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Files stand in for the kernel's: a namespace cannot write those."""
    for name, value in (("_LIMIT", "1000"), ("_BUCKETS", "5000")):
        (tmp_path / name).write_text(value)
        monkeypatch.setattr(table, name, str(tmp_path / name))
    assert conntrack.raise_limit(3000)
    assert conntrack.limit() == 3000
    assert (tmp_path / "_BUCKETS").read_text() == "5000"
    assert conntrack.raise_limit(2000)
    assert conntrack.limit() == 3000


def test_a_refused_dump_is_an_error() -> None:
    """The stream raises the kernel's error."""
    with (
        NetlinkSocket(open_raw(NETLINK_NETFILTER)) as sock,
        pytest.raises(BatchError, match="list something"),
    ):
        list(sock.stream(Request(0x1FF, 0, bytes(4), "list something")))
