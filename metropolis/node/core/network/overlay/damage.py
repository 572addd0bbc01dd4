# SPDX-License-Identifier: Apache-2.0
"""What others changed in the overlay, as text, and its repair.

Compared are the link (present, up, group, MTU), its key and port, peers and
their allowed IPs, addresses, routes. Endpoints of peers are not compared: a
peer that sends from elsewhere is answered there, which is WireGuard's own doing
and looks the same as somebody's `wg set`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

from metropolis.node import allocs
from metropolis.node.core.network.overlay import addressing, peers
from metropolis.node.core.network.overlay.device import (
    Device,
    DevicePeer,
    Kernel,
    LinkFound,
    Links,
)
from metropolis.node.core.network.overlay.peers import Entry


@dataclass(frozen=True)
class Aim:
    """What the kernel should have. unlisted_peers: keys of peers to keep."""

    mtu: int
    public_key: bytes
    private_key: bytes
    port: int
    entries: Mapping[bytes, Entry]
    unlisted_peers: frozenset[bytes]
    links: Links


type Damage = tuple[str, str, Callable[[], object]]
"""Key and text as in ward.Repair, and the function that repairs it."""


def look(kernel: Kernel, aim: Aim) -> Iterator[Damage]:
    """Compare, in the order of repairs: each part is read when the damage of
    the one before has been repaired. Blocks. Raises NetlinkError or
    OverlayError.
    """

    def ensure() -> None:
        kernel.ensure_link(aim.mtu, aim.private_key, aim.port)

    name = allocs.OVERLAY_LINK
    for key, words in of_link(kernel.link(), aim):
        put_back = ensure
        if key.endswith("MTU"):

            def put_back() -> None:
                kernel.set_mtu(aim.mtu)

        yield key, words, put_back
    if kernel.link() is None:  # it was not repaired: nothing to compare
        return
    device = kernel.device()
    if device.public_key != aim.public_key:
        yield f"link {name}: key", f"{name} had another key", ensure
    if device.port != aim.port:
        yield f"link {name}: port", f"{name} had port {device.port}, not {aim.port}", ensure
    changes = peers.difference(with_wanted_endpoints(device, aim), aim.entries)
    if changes:
        words = f"{len(changes):,} peers of {name} differed"
        yield f"link {name}: peers", words, lambda: kernel.apply(changes)
    add, remove = addressing.difference(kernel.links(), aim.links)
    if (add, remove) != (Links(), Links()):
        gone = [str(one) for one in sorted(add.addresses, key=str)]
        gone += sorted(str(route.destination) for route in add.routes)
        more = len(remove.addresses) + len(remove.routes)
        words = f"addresses and routes of {name}: {', '.join(gone) or 'none'} gone, {more} added"
        yield f"link {name}: addresses", words, lambda: kernel.change_links(add, remove)


def of_link(found: LinkFound | None, aim: Aim) -> Iterator[tuple[str, str]]:
    """Return keys and texts. Pure."""
    name = allocs.OVERLAY_LINK
    if found is None:
        yield f"link {name}", f"{name} was gone"
        return
    if not found.up:
        yield f"link {name}: up", f"{name} was down"
    if found.group != allocs.LINK_GROUP_OVERLAY:
        group = allocs.LINK_GROUP_OVERLAY
        yield f"link {name}: group", f"{name} was in group {found.group}, not {group}"
    if found.mtu != aim.mtu:
        yield f"link {name}: MTU", f"{name} had MTU {found.mtu}, not {aim.mtu}"


def with_wanted_endpoints(device: Device, aim: Aim) -> dict[bytes, DevicePeer]:
    """Return the peers, with the endpoints that they should have. Pure."""
    return {
        key: replace(peer, endpoint=aim.entries[key].endpoint)
        if key in aim.entries and peer.endpoint is not None
        else peer
        for key, peer in device.peers.items()
        if key not in aim.unlisted_peers
    }
