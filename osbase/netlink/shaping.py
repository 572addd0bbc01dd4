# SPDX-License-Identifier: Apache-2.0
"""Rate limits of links: token buckets, and links to queue what is received.
Pure.

A token bucket filter (tbf, tc-tbf(8)) is a link's root queueing discipline: it
limits what the link sends. What a link receives has no queue, so a filter of
its clsact redirects it to a link of kind `ifb`, which sends it to where it was
going: a token bucket on that one limits it. The packet keeps the index of the
link that it came by (skb_iif), so rules see no difference.

All requests may be repeated. The filter is
a classic BPF one, as in osbase.netlink.qdisc, which needs no cls_matchall.

Source: linux/rtnetlink.h, linux/pkt_sched.h, linux/pkt_cls.h,
linux/tc_act/tc_mirred.h; net/sched/sch_tbf.c, net/sched/act_mirred.c,
drivers/net/ifb.c.
"""

import struct
from dataclasses import dataclass
from typing import Final

from osbase.ip import AF_UNSPEC
from osbase.netlink import attrs
from osbase.netlink.bpf import Program
from osbase.netlink.ifla import (
    HEADER,
    IFF_UP,
    IFLA_GROUP,
    IFLA_IFNAME,
    IFLA_INFO_KIND,
    IFLA_LINKINFO,
    IFLA_MTU,
    RTM_NEWLINK,
)
from osbase.netlink.message import NLM_F_CREATE, NLM_F_REPLACE, Message, Request
from osbase.netlink.qdisc import (
    ALL_PROTOCOLS,
    CLSACT_HANDLE,
    CLSACT_PARENT,
    RTM_NEWQDISC,
    RTM_NEWTFILTER,
    TCA_KIND,
    TCA_OPTIONS,
    TCMSG,
    bpf_options,
)

RTM_DELQDISC: Final = 37
RTM_GETTFILTER: Final = 46

IFB_MTU: Final = 68
"""Bytes: the least of IPv4. With less than 1280 the kernel gives the link no
IPv6 (addrconf_notify, net/ipv6/addrconf.c), so no address and no routes. What
is redirected may be longer.
"""
BURST_STEP: Final = 64
"""Bytes: bursts are multiples of it."""
BYTES_MAX: Final = (1 << 31) - 1
"""The most that a burst, or a queue, may be."""

_ROOT: Final = 0xFFFFFFFF  # TC_H_ROOT
_CLSACT_INGRESS: Final = 0xFFFFFFF2  # TC_H_MAKE(TC_H_CLSACT, TC_H_MIN_INGRESS)
_FIRST: Final = 1  # priority, and handle, of the filter
# linklayer, overhead and cell alignment are in between: 1 is Ethernet, which
# needs no table of times (psched_ratecfg_precompute).
_RATESPEC = struct.Struct("=BBHhHI")
_PARMS = struct.Struct(f"={_RATESPEC.size}s{_RATESPEC.size}sIII")
_ETHERNET: Final = 1
_TICK_NS: Final = 64  # PSCHED_SHIFT, net/pkt_sched.h
_TCA_TBF_PARMS: Final = 1
_TCA_TBF_RATE64: Final = 4
_TCA_TBF_BURST: Final = 6
_TCA_BPF_ACT: Final = 1
_TCA_ACT_KIND: Final = 1
_TCA_ACT_OPTIONS: Final = 2
_TCA_MIRRED_PARMS: Final = 2
_MIRRED = struct.Struct("=IIiiiiI")
_TCA_EGRESS_REDIR: Final = 1
_TC_ACT_STOLEN: Final = 4
_MATCHED: Final = 0xFFFFFFFF  # then the filter's actions run (cls_bpf.c)
_U64 = struct.Struct("=Q")
# What the kernel keeps of a burst is a time, in ticks.
_BURST_TOLERANCE: Final = 64


@dataclass(frozen=True, slots=True)
class TokenBucket:
    """rate: bytes in a second, with their link-layer headers. burst: bytes that
    may be sent at once after a pause; at least a packet, since longer ones are
    dropped. queue: bytes that may wait. Both at most BYTES_MAX.
    """

    rate: int
    burst: int
    queue: int

    def __str__(self) -> str:
        return f"tbf rate {self.rate} burst {self.burst} limit {self.queue}"

    def is_like(self, other: TokenBucket) -> bool:
        """Whether the kernel would take one for the other."""
        near = abs(self.burst - other.burst) <= _BURST_TOLERANCE + self.burst // 1000
        return near and (self.rate, self.queue) == (other.rate, other.queue)


def put_token_bucket(ifindex: int, name: str, bucket: TokenBucket) -> Request:
    """Limit what a link sends; replaces its root queueing discipline, and drops
    what waits there, or changes the rate of a limit with the same burst: then
    that goes on waiting. ENOENT: the kernel has no tbf.

    The kernel splits a packet longer than the burst when it comes. One that
    waits when the burst becomes less would wait for ever, and with it all that
    comes later (seen in Linux 6.18). So each burst has a handle of its own,
    and a limit with another burst is another queueing discipline.
    """
    rate = _RATESPEC.pack(0, _ETHERNET, 0, 0, 0, min(bucket.rate, 0xFFFFFFFF))
    options = attrs.attr(
        _TCA_TBF_PARMS, _PARMS.pack(rate, bytes(_RATESPEC.size), bucket.queue, 0, 0)
    ) + attrs.u32(_TCA_TBF_BURST, bucket.burst)
    if bucket.rate > 0xFFFFFFFF:
        options += attrs.attr(_TCA_TBF_RATE64, _U64.pack(bucket.rate))
    body = (
        TCMSG.pack(AF_UNSPEC, 0, 0, ifindex, _handle(bucket.burst), _ROOT, 0)
        + attrs.text(TCA_KIND, b"tbf")
        + attrs.attr(TCA_OPTIONS, options)
    )
    return Request(RTM_NEWQDISC, _PUT, body, "limit {}", (name,))


_PUT: Final = NLM_F_CREATE | NLM_F_REPLACE


def _handle(burst: int) -> int:
    """The bursts that packets may be longer than have each its own. All are
    less than the kernel's, which begin at 8000 (hexadecimal).
    """
    return (0x4000 | min(burst // BURST_STEP, 0x3FFF)) << 16


def del_token_bucket(ifindex: int, name: str) -> Request:
    """Take the limit away, and drop what waits. ENOENT: there is none. EINVAL:
    the link has another queueing discipline, which stays.
    """
    body = TCMSG.pack(AF_UNSPEC, 0, 0, ifindex, 0, _ROOT, 0) + attrs.text(TCA_KIND, b"tbf")
    return Request(RTM_DELQDISC, 0, body, "remove the limit of {}", (name,))


def put_clsact(ifindex: int, name: str) -> Request:
    """Give a link a clsact with filters of its own. EINVAL: it has an ingress
    qdisc of others. ENOENT: the kernel has none.
    """
    body = TCMSG.pack(AF_UNSPEC, 0, 0, ifindex, CLSACT_HANDLE, CLSACT_PARENT, 0) + attrs.text(
        TCA_KIND, b"clsact"
    )
    return Request(RTM_NEWQDISC, NLM_F_CREATE, body, "add clsact to {}", (name,))


def del_clsact(ifindex: int, name: str) -> Request:
    """Remove a link's clsact with its filters. ENOENT: it has none. EINVAL: it
    has an ingress qdisc instead, which stays.
    """
    body = TCMSG.pack(AF_UNSPEC, 0, 0, ifindex, CLSACT_HANDLE, CLSACT_PARENT, 0)
    body += attrs.text(TCA_KIND, b"clsact")
    return Request(RTM_DELQDISC, 0, body, "remove clsact of {}", (name,))


def put_redirect(ifindex: int, name: str, to: int) -> Request:
    """Have a link with a clsact send what it receives by another link. to: its
    index. While that link does not exist, the packets are dropped.
    """
    program = Program()
    program.give(_MATCHED)
    mirred = _MIRRED.pack(0, 0, _TC_ACT_STOLEN, 0, 0, _TCA_EGRESS_REDIR, to)
    action = attrs.nested(
        1,
        attrs.text(_TCA_ACT_KIND, b"mirred"),
        attrs.nested(_TCA_ACT_OPTIONS, attrs.attr(_TCA_MIRRED_PARMS, mirred)),
    )
    options = bpf_options(program) + attrs.nested(_TCA_BPF_ACT, action)
    body = (
        TCMSG.pack(AF_UNSPEC, 0, 0, ifindex, _FIRST, _CLSACT_INGRESS, _FIRST << 16 | ALL_PROTOCOLS)
        + attrs.text(TCA_KIND, b"bpf")
        + attrs.attr(TCA_OPTIONS, options)
    )
    return Request(RTM_NEWTFILTER, NLM_F_CREATE, body, "redirect what {} receives", (name,))


def put_ifb(ifindex: int, name: str, group: int) -> Request:
    """Create an ifb, down. EEXIST: another link has the name. EOPNOTSUPP: the
    kernel lacks the kind.
    """
    body = (
        HEADER.pack(AF_UNSPEC, 0, ifindex, 0, 0)
        + attrs.text(IFLA_IFNAME, name.encode())
        + attrs.u32(IFLA_GROUP, group)
        + attrs.u32(IFLA_MTU, IFB_MTU)
        + attrs.nested(IFLA_LINKINFO, attrs.text(IFLA_INFO_KIND, b"ifb"))
    )
    return Request(RTM_NEWLINK, NLM_F_CREATE, body, "create ifb {}", (name,))


def retire(ifindex: int, name: str, group: int) -> Request:
    """Set a link down and its group. ENODEV: no link has the index."""
    body = HEADER.pack(AF_UNSPEC, 0, ifindex, 0, IFF_UP) + attrs.u32(IFLA_GROUP, group)
    return Request(RTM_NEWLINK, 0, body, "set {} down, and its group", (name,))


def dump_filters(ifindex: int) -> Request:
    """List the filters for what a link receives. EINVAL: it has no clsact."""
    body = TCMSG.pack(AF_UNSPEC, 0, 0, ifindex, 0, _CLSACT_INGRESS, 0)
    return Request(RTM_GETTFILTER, 0, body, "list filters of link {}", (ifindex,))


def parse_token_bucket(message: Message) -> tuple[int, TokenBucket] | None:
    """Return a link's index and the bucket at its root; None if the queueing
    discipline is another.
    """
    _, _, _, ifindex, _, parent, _ = TCMSG.unpack_from(message.body)
    found = attrs.parse(message.body[TCMSG.size :])
    if parent != _ROOT or found.get(TCA_KIND) != b"tbf\0":
        return None
    options = attrs.parse(found[TCA_OPTIONS])
    rates, _, queue, ticks, _ = _PARMS.unpack_from(options[_TCA_TBF_PARMS])
    rate = _RATESPEC.unpack(rates)[-1]
    if _TCA_TBF_RATE64 in options:
        rate = _U64.unpack(options[_TCA_TBF_RATE64])[0]
    return ifindex, TokenBucket(rate, round(ticks * _TICK_NS * rate / 1e9), queue)


def is_filter(message: Message) -> bool:
    """Whether it is a filter, not the head of those of one priority."""
    return TCA_OPTIONS in attrs.parse(message.body[TCMSG.size :])


def parse_redirect(message: Message) -> int | None:
    """Return the index of the link to which a filter redirects; None: it is
    another filter.
    """
    found = attrs.parse(message.body[TCMSG.size :])
    if found.get(TCA_KIND) != b"bpf\0" or TCA_OPTIONS not in found:
        return None
    actions = attrs.parse(attrs.parse(found[TCA_OPTIONS]).get(_TCA_BPF_ACT, b""))
    for action in actions.values():
        fields = attrs.parse(action)
        if fields.get(_TCA_ACT_KIND) == b"mirred\0":
            parms = attrs.parse(fields[_TCA_ACT_OPTIONS])[_TCA_MIRRED_PARMS]
            *_, kind, to = _MIRRED.unpack_from(parms)
            return int(to) if kind == _TCA_EGRESS_REDIR else None
    return None
