# SPDX-License-Identifier: Apache-2.0
"""Links that no packet passes any more, by shared blocks of filters. Pure.

`clsact` is a queueing discipline that only runs filters: on what a link has
received, before any protocol has it, and on what it is about to send. Links can
share the filters: a *block* of them has a number, and exists while a link uses
it. So a link whose clsact has a block that drops all packets is closed in one
direction, for every protocol.

This costs the same however many links and routes there are, whereas the kernel
walks all IPv6 routes when a link is changed or set down (net/ipv6/route.c,
rt6_sync_up, rt6_sync_down_dev). The drop is a classic BPF filter, which needs
neither cls_matchall and act_gact nor the bpf system call.

Source: linux/rtnetlink.h, linux/pkt_sched.h, linux/pkt_cls.h;
net/sched/sch_ingress.c, net/sched/cls_bpf.c.
"""

import socket
import struct
from dataclasses import dataclass
from typing import Final

from osbase.ip import AF_UNSPEC
from osbase.netlink import attrs
from osbase.netlink.bpf import Program
from osbase.netlink.errors import ProtocolError
from osbase.netlink.message import NLM_F_CREATE, NLM_F_EXCL, Message, Request

RTM_NEWQDISC: Final = 36
RTM_GETQDISC: Final = 38
RTM_NEWTFILTER: Final = 44

_NEW = NLM_F_CREATE | NLM_F_EXCL
# family, padding (1 and 2 bytes), index, handle, parent, info
TCMSG = struct.Struct("=BBHiIII")
CLSACT_HANDLE: Final = 0xFFFF0000
CLSACT_PARENT: Final = 0xFFFFFFF1  # TC_H_CLSACT
_MAGIC_BLOCK: Final = -1  # TCM_IFINDEX_MAGIC_BLOCK: the parent is a block
ALL_PROTOCOLS: Final = socket.htons(3)  # ETH_P_ALL
_FIRST: Final = 1  # priority, and handle, of the only filter of a block
TCA_KIND: Final = 1
TCA_OPTIONS: Final = 2
_TCA_INGRESS_BLOCK: Final = 13
_TCA_EGRESS_BLOCK: Final = 14
_TCA_BPF_OPS_LEN: Final = 4
_TCA_BPF_OPS: Final = 5
_TCA_BPF_FLAGS: Final = 8
_ACT_DIRECT: Final = 1  # TCA_BPF_FLAG_ACT_DIRECT: it returns an action
_TC_ACT_SHOT: Final = 2


def bpf_options(program: Program) -> bytes:
    """Encode the options of a classic BPF filter."""
    instructions = program.assemble()
    count = struct.pack("=H", len(instructions) // 8)
    return attrs.attr(_TCA_BPF_OPS_LEN, count) + attrs.attr(_TCA_BPF_OPS, instructions)


def _drop() -> bytes:
    """Encode the filter that drops: one instruction."""
    program = Program()
    program.give(_TC_ACT_SHOT)
    options = bpf_options(program) + attrs.u32(_TCA_BPF_FLAGS, _ACT_DIRECT)
    return attrs.text(TCA_KIND, b"bpf") + attrs.attr(TCA_OPTIONS, options)


_DROP: Final = _drop()


@dataclass(frozen=True)
class Clsact:
    """A link's clsact. Blocks are 0 where they are not shared."""

    ifindex: int
    ingress_block: int
    egress_block: int


def add_clsact(ifindex: int, name: str, ingress_block: int, egress_block: int) -> Request:
    """Give a link a clsact with these blocks, which must differ; a block that
    no link had is empty. EEXIST: it has a clsact. ENOENT: the kernel has none.
    """
    body = (
        TCMSG.pack(AF_UNSPEC, 0, 0, ifindex, CLSACT_HANDLE, CLSACT_PARENT, 0)
        + attrs.text(TCA_KIND, b"clsact")
        + attrs.u32(_TCA_INGRESS_BLOCK, ingress_block)
        + attrs.u32(_TCA_EGRESS_BLOCK, egress_block)
    )
    return Request(RTM_NEWQDISC, _NEW, body, "add clsact to {}", (name,))


def drop_all(block: int) -> Request:
    """Have a block drop all packets. EEXIST: it does. EINVAL: no link has
    it.
    """
    info = _FIRST << 16 | ALL_PROTOCOLS
    head = TCMSG.pack(AF_UNSPEC, 0, 0, _MAGIC_BLOCK, _FIRST, block, info)
    return Request(RTM_NEWTFILTER, _NEW, head + _DROP, "drop all of block {}", (block,))


def dump_qdiscs() -> Request:
    """List the queueing disciplines of all links."""
    body = TCMSG.pack(AF_UNSPEC, 0, 0, 0, 0, 0, 0)
    return Request(RTM_GETQDISC, 0, body, "list queueing disciplines")


def parse_clsact(message: Message) -> Clsact | None:
    """Parse a queueing discipline; None if it is none of these. Raises
    ProtocolError for another message.
    """
    if message.kind != RTM_NEWQDISC or len(message.body) < TCMSG.size:
        raise ProtocolError(f"message {message.kind} is not a queueing discipline")
    ifindex = TCMSG.unpack_from(message.body)[3]
    found = attrs.parse(message.body[TCMSG.size :])
    if found.get(TCA_KIND) != b"clsact\0":
        return None
    ingress, egress = (
        attrs.to_u32(found[kind]) if kind in found else 0
        for kind in (_TCA_INGRESS_BLOCK, _TCA_EGRESS_BLOCK)
    )
    return Clsact(ifindex, ingress, egress)
