# SPDX-License-Identifier: Apache-2.0
"""Make a link's MTU smaller for a while, and restore it. Pure.

A DHCP server may make a link's MTU smaller; later the link gets its former MTU
back. That is recorded on the link itself, as an alternative name
`<mark><bytes>.<index>`, so it survives this process, and is removed with the
link. The index makes it unique among the host's links.

A process may end at any point: the name is set before the MTU is made smaller,
and removed after it is restored.
"""

from __future__ import annotations

from typing import Final

from osbase.netlink.altnames import add_link_altnames, del_link_altnames
from osbase.netlink.link import Link, set_link_mtu
from osbase.netlink.message import Request

_MAX: Final = 2**31


def recorded(link: Link, mark: str) -> int | None:
    """Return the former MTU of the link in bytes; None: it was not made
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
    """Return the requests that give the link the wanted MTU if its former one
    is larger, and else restore the former one; [] when nothing is to be done.

    by_hand: the MTU is configured elsewhere now; only remove the record.
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
