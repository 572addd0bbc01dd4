# SPDX-License-Identifier: Apache-2.0
"""The sockets of a namespace that wait for packets from anybody.

    listeners("tcp", {80, 443})  ->  [Listener(4, 80, None, 4711), ...]
    process_of(listener)         ->  "nginx (pid 812)"

It asks the kernel (sock_diag(7)), which selects by state and by the range of
the ports, so a busy server's connections are not listed. A UDP socket waits for
anybody unless it is connected.

For a few ports it first binds a socket to each: that takes 10 us, a list 60 us
for each family. If that works, no socket waits there. Meanwhile a program that
binds to the port may be refused.

Source: linux/inet_diag.h, linux/sock_diag.h.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import socket
import struct
from collections.abc import Collection
from dataclasses import dataclass
from ipaddress import IPv6Address
from pathlib import Path
from typing import Final

from osbase.ip import IPAddress
from osbase.netlink import attrs
from osbase.netlink.attrs import ADDRESS_SIZES
from osbase.netlink.errors import BatchError, ProtocolError
from osbase.netlink.message import Message, Request
from osbase.netlink.transport import NetlinkSocket, open_raw

_NETLINK_SOCK_DIAG: Final = 4
_SOCK_DIAG_BY_FAMILY: Final = 20
_LISTEN, _CLOSE = 10, 7  # TCP_LISTEN, TCP_CLOSE: the state of a UDP socket
_PROTOCOLS: Final = {
    "tcp": (socket.IPPROTO_TCP, _LISTEN),
    "udp": (socket.IPPROTO_UDP, _CLOSE),
    "sctp": (socket.IPPROTO_SCTP, _LISTEN),
}
# Not SCTP: a socket would load the kernel's module.
_KINDS: Final = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}
_BOUND_MAX: Final = 8  # ports; lists take less for more
_FAMILIES: Final = {4: int(socket.AF_INET), 6: int(socket.AF_INET6)}

# inet_diag_req_v2: family, protocol, extensions, padding, states; then an
# inet_diag_sockid of ports, addresses, link and cookie, here all 0.
_REQUEST: Final = struct.Struct("=BBBxI48x")
# inet_diag_msg: family, state, timer, retransmissions; the sockid; expiry,
# queues, user, inode.
_ANSWER: Final = struct.Struct("=BBBB2s2x16s16x4x8x4x4x4x4xI")
_REQ_BYTECODE: Final = 1  # INET_DIAG_REQ_BYTECODE
_SKV6ONLY: Final = 11  # INET_DIAG_SKV6ONLY

# inet_diag_bc_op: code, offset if it is so, offset if not. The operand of a
# port follows as another one. An offset to the end accepts, one 4 beyond it
# rejects.
_OP: Final = struct.Struct("=BBH")
_S_GE, _S_LE = 2, 3


@dataclass(frozen=True, slots=True)
class Listener:
    """A socket. version: of IP. address: None: all of its family. both: it gets
    what is sent to these ports by IPv4, too (ipv6(7), IPV6_V6ONLY). inode: 0:
    the kernel's own socket.
    """

    version: int
    port: int
    address: IPAddress | None
    inode: int
    both: bool = False

    @property
    def versions(self) -> tuple[int, ...]:
        """Return the IP versions by which it receives."""
        return (4, 6) if self.both else (self.version,)


def listeners(protocol: str, ports: Collection[int]) -> list[Listener]:
    """Return those of both families at one of the ports. protocol: tcp, udp or
    sctp.

    A protocol or family that the kernel lacks has none. Raises NetlinkError,
    OSError.
    """
    if not ports or (len(ports) <= _BOUND_MAX and _are_free(protocol, ports)):
        return []
    with NetlinkSocket(open_raw(_NETLINK_SOCK_DIAG)) as sock:
        return [one for version in (4, 6) for one in _dump(sock, protocol, version, ports)]


def _are_free(protocol: str, ports: Collection[int]) -> bool:
    """Whether it is certain that no socket waits there."""
    kind = _KINDS.get(protocol)
    if kind is None:
        return False
    try:
        for port in ports:
            with _open_both(kind) as sock:
                if kind == socket.SOCK_STREAM:
                    # So that connections, which have the port of the socket
                    # that accepted them, do not refuse it. One that listens
                    # does all the same (inet_csk_bind_conflict).
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                sock.bind(("", port))
    except OSError:
        return False
    return True


def _open_both(kind: socket.SocketKind) -> socket.socket:
    """Return a socket of both families; of IPv4 if the kernel lacks IPv6."""
    try:
        sock = socket.socket(socket.AF_INET6, kind)
    except OSError:
        return socket.socket(socket.AF_INET, kind)
    try:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    except OSError:
        sock.close()
        raise
    return sock


def _dump(
    sock: NetlinkSocket, protocol: str, version: int, ports: Collection[int]
) -> list[Listener]:
    number, state = _PROTOCOLS[protocol]
    body = _REQUEST.pack(_FAMILIES[version], number, 0, 1 << state)
    body += attrs.attr(_REQ_BYTECODE, _between(min(ports), max(ports)))
    what = f"list {protocol} sockets of IPv{version}"
    try:
        answers = sock.dump(Request(_SOCK_DIAG_BY_FAMILY, 0, body, what))
    except BatchError as error:
        if error.errors[0].errno == errno.ENOENT:
            return []  # the kernel lacks it
        raise
    return [one for one in map(parse, answers) if one.port in ports]


def _between(low: int, high: int) -> bytes:
    size = 4 * _OP.size
    return b"".join(
        [
            _OP.pack(_S_GE, 2 * _OP.size, size + 4),
            _OP.pack(0, 0, low),
            _OP.pack(_S_LE, 2 * _OP.size, size // 2 + 4),
            _OP.pack(0, 0, high),
        ]
    )


def parse(message: Message) -> Listener:
    """Parse an answer. Raises ProtocolError."""
    body = message.body
    if message.kind != _SOCK_DIAG_BY_FAMILY or len(body) < _ANSWER.size:
        raise ProtocolError(f"message {message.kind} of {len(body)} bytes is no socket")
    family, _, _, _, port, packed, inode = _ANSWER.unpack_from(body)
    if family not in ADDRESS_SIZES:
        raise ProtocolError(f"a socket of family {family}")
    address = attrs.to_ip(family, packed[: ADDRESS_SIZES[family]])
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        # A socket of IPv6 that only gets what is sent by IPv4, as Java's do.
        address = address.ipv4_mapped
    v6only = attrs.parse(body[_ANSWER.size :]).get(_SKV6ONLY, b"\1")
    everywhere = address.is_unspecified
    return Listener(
        address.version,
        int.from_bytes(port),
        None if everywhere else address,
        inode,
        both=everywhere and address.version == 6 and not any(v6only),
    )


def process_of(listener: Listener, *, proc: Path = Path("/proc")) -> str:
    """Name the process that has the socket, for people."""
    if listener.inode == 0:
        return "the kernel"
    wanted = f"socket:[{listener.inode}]"
    for entry in proc.iterdir():
        if not re.fullmatch("[0-9]+", entry.name):
            continue
        # It may end meanwhile, or be another user's.
        with contextlib.suppress(OSError):
            for descriptor in (entry / "fd").iterdir():
                if os.readlink(descriptor) == wanted:
                    name = (entry / "comm").read_text(errors="replace").strip()
                    return f"{ascii(name)[1:-1]} (pid {entry.name})"
    return "a process that this one may not see"
