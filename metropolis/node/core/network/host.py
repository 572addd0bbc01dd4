# SPDX-License-Identifier: Apache-2.0
"""What the node's own network needs before workloads have theirs."""

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
    """Set the settings, loopback and first hop; the same again changes nothing.

    Returns what was refused, as where /proc/sys is mounted to be read only: the
    ward of the settings says so in Status for as long as it matters, and what
    runs has its network meanwhile. Raises NetlinkError.
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
    """Make the directory of a socket, only for root, if it is not there."""
    directory = Path(socket_path).parent
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
