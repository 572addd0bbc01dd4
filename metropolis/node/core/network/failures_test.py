# SPDX-License-Identifier: Apache-2.0
"""Errors of the node have one line with a cure, those of the program do not."""

import asyncio
import errno
import os
import socket
from pathlib import Path

import pytest

from metropolis.node.core.network.failures import explained
from metropolis.node.core.network.overlay.device import OverlayError
from metropolis.node.core.network.overlay.kernel import _with_hints
from metropolis.node.core.network.sysctls import SysctlError
from metropolis.node.core.network.time_servers import TimeError
from metropolis.node.core.network.uplink.uplink import LinkGoneError
from metropolis.node.core.network.workloads.api.server import (
    make_private_directory,
    refuse_if_served,
)
from metropolis.node.core.network.workloads.errors import KernelRefused
from osbase.conntrack.table import ConntrackError
from osbase.net.stack import StackError
from osbase.netlink.errors import BatchError, RequestError
from osbase.nftables import NftablesError


def refused(number: int, what: str = "create veth wl0") -> BatchError:
    return BatchError([RequestError(0, 16, what, number)])


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "/run/x"),
         "/run/x: No such file or directory; make the file"),
        (PermissionError(errno.EACCES, "Permission denied", "/var/lib/x"),
         "/var/lib/x: Permission denied; node core must be root"),
        (OSError(errno.EADDRINUSE, "Address already in use"),
         "Address already in use; another program has it: stop that"),
        (OSError(errno.EROFS, "Read-only file system", "/x"), "mount the file system writable"),
        (OSError(errno.ENOSPC, "No space left on device", "/x"), "make room"),
        (OSError(errno.EMFILE, "Too many open files"), "RLIMIT_NOFILE"),
        (refused(errno.EOPNOTSUPP), "create veth wl0: ENOTSUP"),
        (refused(errno.EOPNOTSUPP), "the kernel lacks this: load its module"),
        (refused(errno.EPERM), "node core must be root"),
        (refused(errno.EINVAL), "create veth wl0: EINVAL (Invalid argument)"),
        (OverlayError("the link overlay is gone"), "the link overlay is gone"),
        (KernelRefused("attach 'a': add route: EEXIST"), "attach 'a': add route: EEXIST"),
        *((kind("what failed"), "what failed") for kind in (
            ConntrackError, NftablesError, StackError, SysctlError, TimeError, LinkGoneError)),
        (NftablesError("no such thing\nadd rule inet x"), "no such thing"),
        (ExceptionGroup("all", [refused(errno.EPERM), OverlayError("x")]), "must be root"),
    ],
)  # fmt: skip
def test_one_line_with_the_cure(error: Exception, said: str) -> None:
    text = explained(error)
    assert said in text
    assert "\n" not in text
    assert "Errno" not in text


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("x"), KeyError("x"), AssertionError(), ImportError("x"), SystemExit(1),
        OSError(errno.EBADF, "Bad file descriptor"), OSError(errno.EINVAL, "Invalid argument"),
        ExceptionGroup("some", [OverlayError("x"), KeyError("y")]), asyncio.CancelledError(),
    ],
)  # fmt: skip
def test_errors_of_the_program_keep_their_traceback(error: BaseException) -> None:
    assert explained(error) == ""


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.EOPNOTSUPP, "the kernel has no WireGuard; load its module, wireguard"),
        (errno.EADDRINUSE, "another program has UDP port 51820; stop it"),
    ],
)
def test_the_overlay_names_its_cure(number: int, said: str) -> None:
    with pytest.raises(OverlayError) as raised, _with_hints(51820):
        raise refused(number, "create wireguard overlay")
    assert said in explained(raised.value)


def test_the_cause_has_the_cure() -> None:
    for made in (OverlayError, KernelRefused):
        with pytest.raises(made) as raised:
            raise made("write /x: EROFS") from OSError(errno.EROFS, "Read-only file system")
        assert explained(raised.value) == "write /x: EROFS; mount the file system writable"


def test_sockets_that_cannot_be_made(tmp_path: Path) -> None:
    """Their own words say what to do."""
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="is not a socket; remove it") as raised:
        refuse_if_served(tmp_path / "file")
    assert explained(raised.value) == str(raised.value)
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(os.fspath(tmp_path / "s"))
        other.listen()
        with pytest.raises(OSError, match="another server listens there; stop it") as raised:
            refuse_if_served(tmp_path / "s")
        assert explained(raised.value) == str(raised.value)
    tmp_path.chmod(0o777)
    with pytest.raises(OSError, match="in which nobody else may") as raised:
        make_private_directory(tmp_path)
    assert explained(raised.value) == str(raised.value)
