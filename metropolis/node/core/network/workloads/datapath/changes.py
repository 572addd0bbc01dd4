# SPDX-License-Identifier: Apache-2.0
"""Changes the parts of an attachment that lives.

The names of the texts, and what the parts send, are one batch: the kernel
works through it before a signal ends the process, so a start finds all of it,
or nothing. If the kernel refuses one of the requests, the reverse is sent.
"""

import errno
import logging
from collections.abc import Iterator
from typing import Final

from metropolis.node.core.network.workloads.datapath import names
from metropolis.node.core.network.workloads.datapath.host import Host
from metropolis.node.core.network.workloads.datapath.interface import Record
from metropolis.node.core.network.workloads.datapath.parts import Parts
from metropolis.node.core.network.workloads.errors import FailedPrecondition, KernelRefused
from metropolis.node.core.network.workloads.validate import show
from osbase.netlink.altnames import add_link_altnames, del_link_altnames
from osbase.netlink.errors import BatchError, NetlinkError
from osbase.netlink.ifla import RTM_DELLINK, RTM_DELLINKPROP
from osbase.netlink.message import Request
from osbase.netlink.shaping import RTM_DELQDISC

log = logging.getLogger(__name__)

# What is to be removed is gone, or has been replaced by others.
_GONE: Final = {
    (RTM_DELLINKPROP, errno.EINVAL),
    (RTM_DELQDISC, errno.ENOENT),
    (RTM_DELQDISC, errno.EINVAL),
    (RTM_DELLINK, errno.ENODEV),
}


def change(host: Host, parts: Parts, before: Record, now: Record) -> None:
    """See Datapath."""
    if now.version == 1:
        raise FailedPrecondition(
            f"workload {show(now.workload_id)}: an older version attached it, whose links keep no "
            "such text; attach it again"
        )
    try:
        _send(host, list(_requests(parts, before, now)))
    except (NetlinkError, OSError) as error:
        what = f"change {show(now.workload_id)}"
        if host.link(now.host_ifindex) is None:
            return
        try:
            _send(host, list(_requests(parts, now, before)))
        except (NetlinkError, OSError) as again:
            log.error("%s: %s; then undoing it failed: %s", what, error, again)
        raise KernelRefused(f"{what}: {error}") from error


def _requests(parts: Parts, before: Record, now: Record) -> Iterator[Request]:
    index, name = now.host_ifindex, now.host_interface
    old, new = names.altnames_of(before), names.altnames_of(now)
    for one in old:
        if one not in new:
            yield del_link_altnames(index, name, one)
    if added := [one for one in new if one not in old]:
        yield add_link_altnames(index, name, *added)
    yield from parts.change(before, now)


def _send(host: Host, requests: list[Request]) -> None:
    try:
        host.batch(*requests)
    except BatchError as error:
        real = [one for one in error.errors if (one.kind, one.errno) not in _GONE]
        if real:
            raise BatchError(real) from error
