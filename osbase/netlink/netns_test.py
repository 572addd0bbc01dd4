# SPDX-License-Identifier: Apache-2.0
"""Namespaces are opened safely, entered and left. Runs in a fresh one."""

import errno
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from osbase.netlink import netns
from osbase.netlink.errors import NetnsMissing, NotNetns
from osbase.netlink.ifla import IFF_LOWER_UP
from osbase.netlink.link import del_link, get_link, parse_link, set_link_down, set_link_up
from osbase.netlink.transport import NetlinkSocket
from osbase.netlink.veth import VethEnd, new_veth


@pytest.fixture
def home() -> Iterator[int]:
    fd = netns.open_current()
    yield fd
    os.close(fd)


@pytest.fixture
def other(home: int) -> Iterator[int]:
    """Yield a new namespace, made by a thread that comes back."""
    os.unshare(netns.CLONE_NEWNET)
    fd = netns.open_current()
    os.setns(home, netns.CLONE_NEWNET)
    yield fd
    os.close(fd)


def identity() -> tuple[int, int]:
    found = Path("/proc/thread-self/ns/net").stat()
    return found.st_dev, found.st_ino


def test_a_namespace_is_opened_by_its_path(other: int) -> None:
    fd = netns.open_path(f"/proc/self/fd/{other}")
    assert os.fstat(fd).st_ino == os.fstat(other).st_ino
    assert not os.get_inheritable(fd)
    os.close(fd)


def test_sockets_are_of_the_namespace_they_were_opened_in(home: int, other: int) -> None:
    before = identity()
    with netns.open_socket(other, home) as inner, netns.open_socket(home, home) as outer:
        assert identity() == before
        assert netns.cookie(inner) != netns.cookie(outer)
        assert not netns.loopback_is_up(inner)
        NetlinkSocket(inner).batch([set_link_up(1, "lo")])
        assert netns.loopback_is_up(inner)
        NetlinkSocket(outer).batch([set_link_down(1, "lo")])
        assert netns.loopback_is_up(inner)
        assert not netns.loopback_is_up(outer)


def test_a_look_at_the_carrier(home: int, other: int) -> None:
    """The end of a pair across namespaces that was set up first."""
    pair = new_veth(
        VethEnd("veth0", 7001, bytes.fromhex("020000000001")),
        VethEnd("eth0", 2, bytes.fromhex("020000000002")),
        netns_fd=other,
        mtu=1500,
        group=0,
    )
    with netns.open_socket(other, home) as inner, netns.open_socket(home, home) as outer:
        NetlinkSocket(outer).batch([pair])
        NetlinkSocket(inner).batch([set_link_up(2, "eth0")])
        NetlinkSocket(outer).batch([set_link_up(7001, "veth0")])
        netns.look_at_carrier(inner, "eth0")
        link = parse_link(NetlinkSocket(inner).get(get_link(2)))
        assert link.flags & IFF_LOWER_UP
        assert link.name == "eth0"
        with pytest.raises(OSError, match="No such device"):
            netns.look_at_carrier(outer, "eth0")
        NetlinkSocket(outer).batch([del_link(7001, "veth0")])


def test_a_thread_comes_home_from_an_error(home: int, other: int) -> None:
    before = identity()
    seen: list[tuple[int, int]] = []

    def fail() -> None:
        seen.append(identity())
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), netns.Inside(other, home):
        fail()
    assert seen[0] != before
    assert identity() == before


def test_a_thread_that_cannot_come_home_is_lost(other: int, tmp_path: Path) -> None:
    """On a separate thread, which ends: `lost` would end the process."""
    lost: list[OSError] = []

    def visit() -> None:
        with (
            (tmp_path / "file").open("w") as no_namespace,
            netns.Inside(other, no_namespace.fileno(), lost=lost.append),
        ):
            pass

    thread = threading.Thread(target=visit)
    thread.start()
    thread.join()
    assert [error.errno for error in lost] == [errno.EINVAL]


def test_a_lost_thread_ends_the_process(tmp_path: Path) -> None:
    """In a separate process, which tries to return to a plain file."""
    program = f"""
import os
from osbase.netlink import netns
home = netns.open_current()
os.unshare(netns.CLONE_NEWNET)
with open({str(tmp_path / "file")!r}, "w") as file, netns.Inside(home, file.fileno()):
    pass
"""
    done = subprocess.run(
        [sys.executable, "-c", program], stderr=subprocess.PIPE, text=True, check=False
    )
    assert done.returncode == 70
    assert "cannot return to its network namespace" in done.stderr


@pytest.mark.parametrize(
    "path",
    ["relative/path", "", ".", "/" + "x" * 5000, "/proc/self/ns/\0net", "/" + "y" * 300],
    ids=["relative", "empty", "dot", "5,000 characters", "NUL", "long component"],
)
def test_what_cannot_be_a_path_is_refused(path: str) -> None:
    with pytest.raises(NotNetns) as caught:
        netns.open_path(path)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    "path", ["/nowhere/at/all", "/proc/self/status/ns", "/proc/1073741824/ns/net"]
)
def test_what_is_not_there_is_missing(path: str) -> None:
    with pytest.raises(NetnsMissing, match="does not exist"):
        netns.open_path(path)


def open_inside(path: str, home: int) -> None:
    fd = netns.open_path(path)
    try:
        netns.open_socket(fd, home).close()
    finally:
        os.close(fd)


def test_what_is_not_a_namespace_is_refused(tmp_path: Path, home: int) -> None:
    before = identity()
    file, fifo, loop = tmp_path / "file", tmp_path / "fifo", tmp_path / "loop"
    file.touch()
    os.mkfifo(fifo)
    loop.symlink_to(loop)
    others = [tmp_path, Path("/dev/null"), Path("/proc/self/ns/mnt"), Path("/proc/self/ns/user")]
    for path in [file, fifo, loop, *others]:
        with pytest.raises(NotNetns):
            open_inside(str(path), home)
    assert identity() == before


def test_a_fifo_that_took_the_place_of_a_file_does_not_block(
    tmp_path: Path, home: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The check and the opening are two calls; the second is safe by itself."""
    fifo, file = tmp_path / "fifo", tmp_path / "file"
    os.mkfifo(fifo)
    file.touch()
    answer = os.stat(file)
    monkeypatch.setattr(os, "stat", lambda _: answer)
    with pytest.raises(NotNetns):
        open_inside(str(fifo), home)


def test_no_file_descriptor_is_left_open(tmp_path: Path, home: int, other: int) -> None:
    file = tmp_path / "file"
    file.touch()
    before = os.listdir("/proc/self/fd")
    for path in (str(file), "/dev/null", "/nowhere", "x"):
        with pytest.raises((NotNetns, NetnsMissing)):
            open_inside(path, home)
    assert os.listdir("/proc/self/fd") == before
