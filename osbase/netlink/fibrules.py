# SPDX-License-Identifier: Apache-2.0
"""Routing policy rules: which table is looked up for which packets. Pure.

The parser only distinguishes rules for all packets, like the kernel's default
rules, from rules that select packets by address, mark, interface, and so on;
and it reads the source.
Source: linux/fib_rules.h.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from ipaddress import ip_network
from typing import Final

from osbase.ip import IPAddress, IPNetwork, family_of
from osbase.netlink import attrs
from osbase.netlink.errors import ProtocolError
from osbase.netlink.message import NLM_F_CREATE, NLM_F_EXCL, Message, Request

RTM_NEWRULE: Final = 32
RTM_DELRULE: Final = 33
RTM_GETRULE: Final = 34
RTNLGRP_IPV4_RULE: Final = 8
RTNLGRP_IPV6_RULE: Final = 19

_RTPROT_KERNEL: Final = 2
_FR_ACT_TO_TBL: Final = 1
_FIB_RULE_INVERT: Final = 2
_FRA_SRC: Final = 2
_FRA_PRIORITY: Final = 6
_FRA_SUPPRESS_IFGROUP: Final = 13
_FRA_SUPPRESS_PREFIXLEN: Final = 14
_FRA_TABLE: Final = 15
_FRA_PROTOCOL: Final = 21
# Attributes that a rule for all packets may have: priority, suppressors that
# are off, table, padding, protocol.
_UNSELECTIVE: Final = {
    _FRA_PRIORITY,
    _FRA_SUPPRESS_IFGROUP,
    _FRA_SUPPRESS_PREFIXLEN,
    _FRA_TABLE,
    18,
    _FRA_PROTOCOL,
}
_OFF: Final = 0xFFFFFFFF
# family, dst len, src len, tos, table, reserved, reserved, action, flags
_FIB_RULE = struct.Struct("=BBBBBBBBI")


@dataclass(frozen=True)
class Rule:
    """A rule. priority: lower comes first. everything: it selects all packets
    and looks them up in the table. source: of the packets that it selects;
    None: any, or a family other than IP.
    """

    priority: int
    table: int
    everything: bool
    source: IPNetwork | None = None


def dump_rules(family: int) -> Request:
    """List rules. EAFNOSUPPORT, EOPNOTSUPP: the kernel lacks the family."""
    return Request(RTM_GETRULE, 0, _FIB_RULE.pack(family, *[0] * 8), "list routing rules")


def parse_rule(message: Message) -> Rule:
    """Parse a rule. Raises ProtocolError for another message."""
    if message.kind != RTM_NEWRULE or len(message.body) < _FIB_RULE.size:
        raise ProtocolError(f"message {message.kind} is not a routing rule")
    family, to, source, tos, table, _, _, action, flags = _FIB_RULE.unpack_from(message.body)
    found = attrs.parse(message.body[_FIB_RULE.size :])
    everything = (
        action == _FR_ACT_TO_TBL
        and not (to or source or tos or flags & _FIB_RULE_INVERT)
        and found.keys() <= _UNSELECTIVE
        and all(
            attrs.to_u32(found[kind]) == _OFF
            for kind in (_FRA_SUPPRESS_IFGROUP, _FRA_SUPPRESS_PREFIXLEN)
            if kind in found
        )
    )
    priority = attrs.to_u32(found[_FRA_PRIORITY]) if _FRA_PRIORITY in found else 0
    return Rule(
        priority,
        attrs.to_u32(found[_FRA_TABLE]) if _FRA_TABLE in found else table,
        everything,
        _source(family, source, found.get(_FRA_SRC)),
    )


def _source(family: int, bits: int, packed: bytes | None) -> IPNetwork | None:
    if packed is None or family not in attrs.ADDRESS_SIZES:
        return None
    try:
        return ip_network((attrs.to_ip(family, packed), bits))
    except ValueError as error:
        raise ProtocolError(f"a source of a routing rule: {error}") from error


def add_rule(family: int, table: int, priority: int) -> Request:
    """Add a rule for all packets, like the kernel's. EEXIST: it exists."""
    body = (
        _FIB_RULE.pack(family, 0, 0, 0, table, 0, 0, _FR_ACT_TO_TBL, 0)
        + attrs.u32(_FRA_PRIORITY, priority)
        + attrs.attr(_FRA_PROTOCOL, bytes([_RTPROT_KERNEL]))
    )
    words = "add routing rule {}: lookup {}"
    return Request(RTM_NEWRULE, NLM_F_CREATE | NLM_F_EXCL, body, words, (priority, table))


def add_source_rule(source: IPAddress, table: int, priority: int, protocol: int) -> Request:
    """Add a rule for what is sent from the address. EEXIST: it exists."""
    body = _source_rule(family_of(source), source, table, priority, protocol)
    words = "add routing rule {}: from {} lookup {}"
    return Request(RTM_NEWRULE, NLM_F_CREATE | NLM_F_EXCL, body, words, (priority, source, table))


def del_source_rule(
    family: int, source: IPAddress | None, table: int, priority: int, protocol: int
) -> Request:
    """Delete the first rule with all these values. source None: any. ENOENT:
    there is no such rule.
    """
    body = _source_rule(family, source, table, priority, protocol)
    words = "delete routing rule {}: from {} lookup {}"
    return Request(RTM_DELRULE, 0, body, words, (priority, source or "any", table))


def _source_rule(
    family: int, source: IPAddress | None, table: int, priority: int, protocol: int
) -> bytes:
    bits = 0 if source is None else source.max_prefixlen
    return b"".join(
        (
            _FIB_RULE.pack(family, 0, bits, 0, 0, 0, 0, _FR_ACT_TO_TBL, 0),
            b"" if source is None else attrs.attr(_FRA_SRC, source.packed),
            attrs.u32(_FRA_PRIORITY, priority),
            attrs.u32(_FRA_TABLE, table),
            attrs.attr(_FRA_PROTOCOL, bytes([protocol])),
        )
    )
