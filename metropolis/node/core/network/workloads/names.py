# SPDX-License-Identifier: Apache-2.0
"""What is written on a host-side link, and how it is read back. Pure.

    name        wlXXXXXXXXXXXXX   a hash of workload id and interface name, so
                                  that the kernel allows each pair once
    alias       the workload id
    altname 1   mw1k.NETNS.IF     so that it allows each (namespace, interface)
                                  once, too. NETNS: cookie, 16 hex digits
    altname 2   mw1r.INDEX.MAC.DIGEST.IPV4.IPV6
                                  the record: host index, MAC of the end
                                  inside, digest of the request, addresses; all
                                  hex, an absent address empty

`mw1` is the version of the format. An alternative name has at most 127 bytes;
these have at most 36 and 88.
"""

import hashlib
import re
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from metropolis.node.core.network.workloads.model import AttachIntent, IPAddress

_KEY = re.compile(r"mw1k\.([0-9a-f]{16})\.(.{1,15})", re.DOTALL)
_RECORD = re.compile(
    r"mw1r\.([0-9a-f]{1,8})\.([0-9a-f]{12})\.([0-9a-f]{16})\.([0-9a-f]{8})?\.([0-9a-f]{32})?"
)
_HOST_INTERFACE = re.compile(r"wl[0-9a-f]{13}")


def host_interface(workload_id: str, if_name: str) -> str:
    """The name of the link on the host: 15 characters, 52 bits of hash."""
    # The length first, so that no two pairs have the same text.
    text = struct.pack(">H", len(workload_id)) + workload_id.encode() + if_name.encode()
    return "wl" + hashlib.blake2b(text, digest_size=8).hexdigest()[:13]


def is_host_interface(name: str) -> bool:
    """Whether a link's name is of the form that host_interface makes."""
    return _HOST_INTERFACE.fullmatch(name) is not None


def digest(intent: AttachIntent) -> bytes:
    """8 bytes that differ when two requests of one workload and interface ask
    for different things. The namespace is not in it: it is compared by
    cookie. What is not asked for is left out, so that fields that are new in
    a later version leave the digests of old requests as they are.
    """
    state = hashlib.blake2b(digest_size=8)
    for ip in sorted(intent.requested_ips, key=lambda ip: ip.version):
        state.update(b"ip" + bytes([len(ip.packed)]) + ip.packed)
    if intent.requested_mac is not None:
        state.update(b"mac" + intent.requested_mac)
    return state.digest()


def key_altname(netns_cookie: int, if_name: str) -> str:
    """Altname 1."""
    return f"mw1k.{netns_cookie:016x}.{if_name}"


def record_altname(ifindex: int, mac: bytes, request: bytes, ips: Iterable[IPAddress]) -> str:
    """Altname 2."""
    by_version = {ip.version: ip.packed.hex() for ip in ips}
    packed = f"{by_version.get(4, '')}.{by_version.get(6, '')}"
    return f"mw1r.{ifindex:x}.{mac.hex()}.{request.hex()}.{packed}"


@dataclass(frozen=True, slots=True)
class LinkNames:
    """What the alternative names of a link of ours say."""

    netns_cookie: int
    if_name: str
    ifindex: int
    mac: bytes
    request: bytes
    ips: tuple[IPAddress, ...]


def parse_altnames(altnames: Iterable[str]) -> LinkNames | None:
    """None when the two names are not both there, once, and well-formed."""
    keys = [found for name in altnames if (found := _KEY.fullmatch(name))]
    records = [found for name in altnames if (found := _RECORD.fullmatch(name))]
    if len(keys) != 1 or len(records) != 1 or not _is_text(keys[0][2]):
        return None
    index, mac, request, ipv4, ipv6 = records[0].groups()
    ips: list[IPAddress] = []
    if ipv4:
        ips.append(IPv4Address(bytes.fromhex(ipv4)))
    if ipv6:
        ips.append(IPv6Address(bytes.fromhex(ipv6)))
    if not ips:
        return None
    return LinkNames(
        netns_cookie=int(keys[0][1], 16),
        if_name=keys[0][2],
        ifindex=int(index, 16),
        mac=bytes.fromhex(mac),
        request=bytes.fromhex(request),
        ips=tuple(ips),
    )


def _is_text(name: str) -> bool:
    """False for bytes that were not UTF-8, which no request can have had."""
    return not any("\ud800" <= character <= "\udfff" for character in name)


def is_other_version(altnames: Iterable[str]) -> bool:
    """Whether any of the names is of another version of this format."""
    return any(
        found[1] != "1" for name in altnames if (found := re.match(r"mw([0-9]+)[kr]\.", name))
    )
