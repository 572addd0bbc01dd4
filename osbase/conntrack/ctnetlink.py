# SPDX-License-Identifier: Apache-2.0
"""Numbers of the messages about tracked flows.

Source: linux/netfilter/nfnetlink.h, nfnetlink_conntrack.h.
"""

import struct
from typing import Final

NETLINK_NETFILTER: Final = 12

_SUBSYS_CTNETLINK: Final = 1
MSG_CT_NEW: Final = _SUBSYS_CTNETLINK << 8
"""The type of a dump's messages."""

MSG_CT_GET: Final = _SUBSYS_CTNETLINK << 8 | 1
MSG_CT_DELETE: Final = _SUBSYS_CTNETLINK << 8 | 2

TUPLE_ORIG: Final = 1
TUPLE_REPLY: Final = 2
TUPLE_IP: Final = 1

GENMSG: Final = struct.Struct("=BBH")
"""struct nfgenmsg: family, version, resource."""
