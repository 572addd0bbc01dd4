# SPDX-License-Identifier: Apache-2.0
"""Generic netlink: messages of families, and the number of a family. Pure.

Families have names; the kernel gives each a number, the message type, when its
module is loaded. So a program asks once, and has to ask again only if the
module may have been unloaded meanwhile.

Source: linux/genetlink.h (struct genlmsghdr, CTRL_).
"""

import socket
import struct
from typing import Final

from osbase.netlink import attrs
from osbase.netlink.errors import ProtocolError
from osbase.netlink.message import Message, Request
from osbase.netlink.transport import NetlinkSocket, open_raw

NETLINK_GENERIC: Final = 16

_GENL_ID_CTRL: Final = 16
_CTRL_CMD_GETFAMILY: Final = 3
_CTRL_ATTR_FAMILY_ID: Final = 1
_CTRL_ATTR_FAMILY_NAME: Final = 2
_HEADER: Final = struct.Struct("=BBxx")  # command, version


def open_generic() -> socket.socket:
    """Open a generic netlink socket in the calling thread's namespace."""
    return open_raw(NETLINK_GENERIC)


def body(command: int, version: int, *attributes: bytes) -> bytes:
    """Encode the body of a message: its header and encoded attributes."""
    return _HEADER.pack(command, version) + b"".join(attributes)


def payload(message: Message) -> bytes:
    """Return the encoded attributes of a message. Raises ProtocolError."""
    if len(message.body) < _HEADER.size:
        raise ProtocolError(f"a generic message of {len(message.body)} bytes")
    return message.body[_HEADER.size :]


def get_family(name: str) -> Request:
    """Ask for a family's number. ENOENT: the kernel does not have it (yet)."""
    wanted = attrs.text(_CTRL_ATTR_FAMILY_NAME, name.encode())
    ask = body(_CTRL_CMD_GETFAMILY, 1, wanted)
    return Request(_GENL_ID_CTRL, 0, ask, "find netlink family {}", (name,))


def parse_family(message: Message) -> int:
    """Parse the number in the answer. Raises ProtocolError."""
    number = attrs.parse(payload(message)).get(_CTRL_ATTR_FAMILY_ID, b"")
    if message.kind != _GENL_ID_CTRL or len(number) != 2:
        raise ProtocolError(f"message {message.kind} does not tell a family's number")
    return int.from_bytes(number, "little" if struct.pack("=H", 1)[0] else "big")


def resolve(sock: NetlinkSocket, name: str) -> int:
    """Return the number of the family. Raises NetlinkError."""
    return parse_family(sock.get(get_family(name)))
