# SPDX-License-Identifier: Apache-2.0
"""The environment of a test: Bazel's sandbox, and Python's import path."""

import os
import pathlib
import socket
import sys
import tempfile

import pytest

WORKSPACE = pathlib.Path("pyproject.toml").resolve().parent


def test_network_is_an_own_loopback() -> None:
    assert [name for _, name in socket.if_nameindex()] == ["lo"]
    with socket.create_server(("127.0.0.1", 0)) as server:
        socket.create_connection(server.getsockname()).close()


def test_no_address_is_reachable() -> None:
    """192.0.2.0/24 is for documentation (RFC 5737), without real hosts."""
    with socket.socket(type=socket.SOCK_DGRAM) as sock, pytest.raises(OSError, match="unreachable"):
        sock.connect(("192.0.2.1", 9))


def test_source_tree_is_read_only() -> None:
    with pytest.raises(OSError, match="Read-only"):
        (WORKSPACE / "written-by-a-test").touch()


def test_tmp_is_private() -> None:
    """It has pytest_main's files, and the path to a workspace below /tmp."""
    assert tempfile.gettempdir() == "/tmp"
    ours = {path.parts[2] for path in (WORKSPACE, pathlib.Path.cwd()) if path.parts[1] == "tmp"}
    assert not [name for name in os.listdir("/tmp") if name not in ours and name[0] != "t"]


def test_only_what_is_declared_can_be_imported() -> None:
    assert pathlib.Path("build/python/sandbox_test.py").exists()
    assert not pathlib.Path("build/python/netns_test.py").exists()
    with pytest.raises(ModuleNotFoundError):
        __import__("grpc")


def test_imports_start_at_the_root_of_the_workspace() -> None:
    here = os.getcwd()
    assert here in [os.path.abspath(entry) for entry in sys.path]
    assert os.path.join(here, "build/python") not in [os.path.abspath(e) for e in sys.path]
    assert not pathlib.Path("build/__init__.py").exists()


def test_device_nodes_work() -> None:
    """Virtual machines in the sandbox need /dev/kvm and /dev/net/tun.

    Whether this user may open them depends on the host.
    """
    assert not os.statvfs("/dev").f_flag & os.ST_NODEV
    os.close(os.open("/dev/null", os.O_RDWR))
