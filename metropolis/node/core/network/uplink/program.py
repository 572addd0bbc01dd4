# SPDX-License-Identifier: Apache-2.0
"""The uplink's changes of the kernel and of resolv.conf. Blocks.

prepare       sets the link up, with its settings; undoes a former uplink
left_behind   the lease of a former run
program       addresses, routes, MTU, name servers; the ward guards them then
"""

from __future__ import annotations

import contextlib
import logging
from pathlib import Path

from metropolis.node import allocs
from metropolis.node.core.network import sysctls
from metropolis.node.core.network.sysctls import Sysctl
from metropolis.node.core.network.uplink.wanted import left_lease
from metropolis.node.core.network.uplink.ward import (
    METRIC,
    Aim,
    UplinkWard,
    leave_pods_groups,
    replace_file,
)
from osbase.net import addressing, mtu
from osbase.net.addressing import Addressing
from osbase.net.config import Interface
from osbase.net.dhcp4 import Lease, clock
from osbase.net.links import LinkState
from osbase.netlink.errors import NetlinkError
from osbase.netlink.link import dump_links, get_link, parse_link, set_link_up
from osbase.netlink.transport import NetlinkSocket

log = logging.getLogger(__name__)


def prepare(config: Interface, group: int, state: LinkState) -> tuple[Sysctl, ...]:
    """Set the link up, with its settings, which are returned.

    group: the link's, if others put it into the pods'. Refused settings are
    logged. Raises NetlinkError.
    """
    by_hand = any(address.version == 6 for address in config.addresses)
    settings = sysctls.relevant(
        sysctls.uplink(
            state.name,
            router_advertisements=config.router_advertisements,
            ipv6_on=by_hand or not sysctls.ipv6_is_off(),
        )
    )
    for refused in sysctls.apply_each(settings):
        log.warning("%s", refused)  # its ward reports it in Status, too
    with NetlinkSocket() as sock:
        sock.batch([set_link_up(state.ifindex, state.name)])
        # A former uplink loses its addresses, and gets its MTU back.
        former = links_with_addresses()
        for link in map(parse_link, sock.dump(dump_links())):
            if link.ifindex == state.ifindex:
                if (request := leave_pods_groups(link, group)) is not None:
                    sock.batch([request])
                continue
            with contextlib.suppress(NetlinkError):  # it may vanish meanwhile
                sock.batch(mtu.steps(link, None, allocs.UPLINK_MTU_MARK))
                if link.ifindex in former:
                    addressing.apply(
                        sock,
                        link.ifindex,
                        link.name,
                        Addressing(),
                        protocol=allocs.ROUTE_PROTOCOL_UPLINK,
                        metric=METRIC,
                    )
    return settings


def left_behind(ifindex: int, resolv_conf: str) -> Lease | None:
    """Return the lease that a former run had on the link, None: it had none.

    Raises NetlinkError.
    """
    with NetlinkSocket() as sock:
        left = addressing.current(sock, ifindex, allocs.ROUTE_PROTOCOL_UPLINK)
        link = parse_link(sock.get(get_link(ifindex)))
    smaller = mtu.recorded(link, allocs.UPLINK_MTU_MARK) is not None
    try:
        names = Path(resolv_conf).read_text("utf-8", "replace")
    except OSError:
        names = ""
    return left_lease(left, link.mtu if smaller else None, names, clock.now())


def program(ward: UplinkWard, aim: Aim, wanted: Addressing) -> str:
    """Program the wanted addressing, and set the ward's aim.

    Returns a text about refusals that the link can do without; "" if there is
    none. Raises NetlinkError for the others.
    """
    link = aim.link
    with ward.changing(), NetlinkSocket() as sock:
        # First: a state that is half applied is not restored.
        ward.aim = None
        addressing.apply(
            sock,
            link.ifindex,
            link.name,
            wanted,
            protocol=allocs.ROUTE_PROTOCOL_UPLINK,
            metric=METRIC,
        )
        refused = ""
        found = parse_link(sock.get(get_link(link.ifindex)))
        try:
            sock.batch(mtu.steps(found, aim.mtu, allocs.UPLINK_MTU_MARK, by_hand=aim.mtu_by_hand))
        except NetlinkError as error:
            refused = str(error)
        try:
            replace_file(aim.resolv_conf, aim.names)
        except OSError as error:  # such as a full file system
            why = f"write {aim.resolv_conf}: {error.strerror}"
            refused = "; ".join(filter(None, (refused, why)))
        ward.aim = aim
        return refused


def links_with_addresses() -> frozenset[int]:
    """Return the indexes of links with addresses of the uplink's protocol."""
    with NetlinkSocket() as sock:
        return addressing.links_of(sock, allocs.ROUTE_PROTOCOL_UPLINK)
