# SPDX-License-Identifier: Apache-2.0
"""Atomic nftables rule sets, in process, over libnftables.

    nft = Nftables()                 bound to the caller's network namespace
    nft.check(text)                  parses and evaluates; changes nothing
    nft.apply(text)                  one transaction, all or nothing

    library   the above
    digest    the present state of a table as hashes; an event at each commit
    elements  elements made and destroyed without nft's language
    listing   the elements of a set, with their keys and data
    guard     whether a table is still as it was committed

The text is nft(8)'s language, as in `nft -f`. Nothing here parses the rules
that the kernel has, since nft's output is for people and changes from version
to version. A caller compares digests to find out whether a table has changed,
and then renders and replaces the whole table; elements that it has to find
later get names.

Why not exec nft: it takes 3.5 ms instead of 0.1, and services that host gRPC
must not fork. Why not Debian's python3-nftables: it is a ctypes shell like this
one, but without types, and needs a JSON schema validator in the image. Why not
netlink itself: rules compile to byte code; maps, concatenations and sets with
intervals are thousands of lines in libnftables.

Needs libnftables.so.1 (Debian: libnftables1) and CAP_NET_ADMIN.
"""

from __future__ import annotations

from osbase.nftables.library import Nftables, NftablesError

__all__ = ["Nftables", "NftablesError"]
