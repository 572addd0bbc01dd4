# SPDX-License-Identifier: Apache-2.0
"""Atomic nftables rule sets, in process, over libnftables.

    nft = Nftables()                 bound to the caller's network namespace
    nft.check(text)                  parses and evaluates; changes nothing
    nft.apply(text)                  one transaction: all of it, or none

    library   the above
    digest    what a table is now, as hashes; an event at each commit
    guard     whether a table is still as it was committed

The text is nft(8)'s language, as in `nft -f`. Rules go one way: nothing here
understands them, since what nft prints is for people and changes shape from
version to version. Who needs to know whether what is programmed is still there
compares digests; whoever finds it changed renders the whole again and replaces
it; who needs to find elements keeps them named.

Why not exec nft: 3.5 ms instead of 0.1, and services that host gRPC must not
fork. Why not Debian's python3-nftables: it is a ctypes shell like this one, but
without types, and drags a JSON schema validator into an image. Why not
netlink itself: rules compile to byte code; maps, concatenations and sets
with intervals are thousands of lines in libnftables.

Needs libnftables.so.1 (Debian: libnftables1) and CAP_NET_ADMIN.
"""

from __future__ import annotations

from osbase.nftables.library import Nftables, NftablesError

__all__ = ["Nftables", "NftablesError"]
