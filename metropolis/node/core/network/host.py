# SPDX-License-Identifier: Apache-2.0
"""The node's own network settings, made before workloads get theirs."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from metropolis.node import allocs
from metropolis.node.core.network import sysctls
from osbase.net import addressing
from osbase.netlink.link import set_link_up
from osbase.netlink.transport import NetlinkSocket

_LOOPBACK: Final = 1


def prepare_host() -> tuple[sysctls.SysctlError, ...]:
    """Set sysctls, loopback and first hop. Idempotent.

    Returns the refused settings, as where /proc/sys is mounted read-only: the
    ward of the sysctls reports them in Status for as long as it matters, and
    running workloads have their network meanwhile. Raises NetlinkError.
    """
    refused = sysctls.apply_each(sysctls.NODE)
    with NetlinkSocket() as sock:
        sock.batch(
            [
                set_link_up(_LOOPBACK, "lo"),
                addressing.add_loopback_address(allocs.FIRST_HOP_IPV4),
            ]
        )
    return refused


def make_runtime_directory(socket_path: str) -> None:
    """Make the directory of a socket, mode 0700, if it is missing."""
    directory = Path(socket_path).parent
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
