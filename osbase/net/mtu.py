# SPDX-License-Identifier: Apache-2.0
"""An MTU that is smaller for a while, and the one before it remembered.

A DHCP server may make a link's MTU smaller; when it does not any more, the
link gets back what it had. That is remembered on the link itself, as an
alternative name `<mark><bytes>.<index>`, so it outlives this process, and goes
with the link. The index makes it unique among the host's links.

Order, so that a process may end at any point: the name is there before the MTU
is made smaller, and until it is as large as it was. Pure.
"""

from __future__ import annotations

from typing import Final

from osbase.netlink.altnames import add_link_altnames, del_link_altnames
from osbase.netlink.link import Link, set_link_mtu
from osbase.netlink.message import Request

_MAX: Final = 2**31


def recorded(link: Link, mark: str) -> int | None:
    """Return the MTU that the link had before, bytes; None: it was not made
    smaller.
    """
    for name in link.altnames:
        size, _, index = name.removeprefix(mark).partition(".")
        if (
            name.startswith(mark)
            and size.isascii()
            and size.isdecimal()
            and index == str(link.ifindex)
            and 0 < int(size) < _MAX
        ):
            return int(size)
    return None


def steps(link: Link, wanted: int | None, mark: str, *, by_hand: bool = False) -> list[Request]:
    """Return the requests that give the link the wanted MTU, if it had a larger
    one before, or else that one back; none when all is right.

    by_hand: the MTU is someone else's matter now; only what is remembered goes.
    """
    before = recorded(link, mark)
    name = f"{mark}{before if before is not None else link.mtu}.{link.ifindex}"
    if wanted is not None and wanted < (link.mtu if before is None else before) and not by_hand:
        remember = [add_link_altnames(link.ifindex, link.name, name)] if before is None else []
        change = [set_link_mtu(link.ifindex, link.name, wanted)] if link.mtu != wanted else []
        return remember + change
    if before is None:
        return []
    change = [set_link_mtu(link.ifindex, link.name, before)] if link.mtu != before else []
    return [*([] if by_hand else change), del_link_altnames(link.ifindex, link.name, name)]
