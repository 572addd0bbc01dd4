# SPDX-License-Identifier: Apache-2.0
"""Companions: a second link on the host, by which a link's packets pass. Pure.

A part may need a link besides the attachment's, such as the ifb that limits
what a workload sends. Its name and its index follow from those of the
attachment's link, so that it needs no record:

    link        wlXXXXXXXXXXXXX   index N
    companion   wbXXXXXXXXXXXXX   index N + 2**30; the engine's indexes are less

A companion is made before the commit and is deleted with its link, in the same
request. A start deletes those of no attachment.
"""

import re
from collections.abc import Iterable
from typing import Final

from metropolis.node import allocs
from metropolis.node.core.network.workloads.datapath.interface import Record
from osbase.netlink.link import Link

_BIT: Final = 1 << 30
_NAME: Final = re.compile(r"wb[0-9a-f]{13}")
_GROUPS: Final = (allocs.LINK_GROUP_COMPANION, allocs.LINK_GROUP_REMOVAL)


def index_of(host_ifindex: int) -> int:
    """Return the index of the companion."""
    return host_ifindex | _BIT


def name_of(record: Record) -> str:
    """Return the name of the companion."""
    return "wb" + record.host_interface.removeprefix("wl")


def owner(link: Link) -> int | None:
    """Return the index of the link that a companion belongs to; None: the link
    is none.
    """
    if not link.ifindex & _BIT or link.kind != b"ifb" or link.group not in _GROUPS:
        return None
    return link.ifindex ^ _BIT if _NAME.fullmatch(link.name) else None


def orphans(links: Iterable[Link], having: Iterable[int], kept: Iterable[int] = ()) -> list[Link]:
    """Return the companions that belong to no link that is there, nor to one
    that has none. having: the indexes of links of attachments that have one.
    kept: of other links, whose companions stay.
    """
    stay = {*having, *kept}
    return [link for link in links if (index := owner(link)) is not None and index not in stay]
