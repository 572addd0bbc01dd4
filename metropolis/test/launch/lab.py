# SPDX-License-Identifier: Apache-2.0
"""The network around the node, in namespaces of this process.

    enter_namespaces()          # first thing in main(), still single-threaded
    async with Lab(directory) as lab:
        ... QEMU with Tap(lab.tap_fd, lab.node_mac)

All addresses are of the documentation ranges (RFC 5737, RFC 3849).
"""

import asyncio
import contextlib
import ctypes
import errno
import fcntl
import os
import re
import shutil
import struct
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface, ip_address
from pathlib import Path
from types import TracebackType
from typing import Self

TAP = "node0"
NODE_MAC = "52:54:00:4e:00:01"
NODE_IPV4 = IPv4Address("198.51.100.10")
ROUTER_IPV4 = IPv4Interface("198.51.100.1/24")
ROUTER_IPV6 = IPv6Interface("2001:db8:51::1/64")
ROUTER_LINK_LOCAL = IPv6Interface("fe80::51/64")
OUTSIDE_IPV4 = IPv4Address("203.0.113.80")
OUTSIDE_IPV6 = IPv6Address("2001:db8:80::80")
OUTSIDE_PORT = 80

_TUN = Path("/dev/net/tun")
# linux/if_tun.h
_TUNSETIFF = 0x400454CA
_IFF_TAP, _IFF_NO_PI, _IFF_VNET_HDR = 0x0002, 0x1000, 0x4000
# sys/mount.h
_MS_REC, _MS_PRIVATE = 0x4000, 0x40000


class LabError(Exception):
    """The network could not be made; says what to do about it."""


def enter_namespaces() -> None:
    """Move this process into new user, network and mount namespaces, as root.

    It must have one thread. Works for root and for ordinary users where the
    system lets them have user namespaces. In the namespaces of a py_pytest
    with netns = True there is nothing to do, so do not call it there.
    """
    uid, gid = os.geteuid(), os.getegid()
    try:
        os.unshare(os.CLONE_NEWUSER | os.CLONE_NEWNET | os.CLONE_NEWNS)
        own = Path("/proc/self")
        (own / "setgroups").write_text("deny")
        (own / "uid_map").write_text(f"0 {uid} 1")
        (own / "gid_map").write_text(f"0 {gid} 1")
    except OSError as error:
        name = errno.errorcode.get(error.errno or 0, "?")
        raise LabError(
            f"new user and network namespaces: {name}; allow user namespaces "
            "(sysctl kernel.unprivileged_userns_clone=1, "
            "kernel.apparmor_restrict_unprivileged_userns=0) or run as root"
        ) from error
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"", b"/", b"", _MS_REC | _MS_PRIVATE, None) != 0:
        raise LabError(f"make mounts private: {os.strerror(ctypes.get_errno())}")


def open_tap(name: str) -> int:
    """Create a tap device in this network namespace; return its descriptor."""
    try:
        fd = os.open(_TUN, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        name_ = errno.errorcode.get(error.errno or 0, "?")
        remedy = (
            "load it: sudo modprobe tun"
            if error.errno in (errno.ENOENT, errno.ENODEV)
            else f"let users open it: sudo chmod 0666 {_TUN} (which is Debian's default), "
            "or run as root"
        )
        raise LabError(f"open {_TUN}: {name_}; {remedy}") from error
    try:
        flags = _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR
        fcntl.ioctl(fd, _TUNSETIFF, struct.pack("16sH22x", name.encode(), flags))
    except OSError as error:
        os.close(fd)
        raise LabError(f"create tap {name}: {error}") from error
    return fd


def _setup_batch() -> str:
    """Return `ip -batch` input: the router's and the outside's addresses."""
    return "\n".join(
        [
            "link set lo up",
            # On the tap too, though not on its network: all goes with the tap.
            f"addr add {OUTSIDE_IPV4}/32 dev {TAP}",
            f"addr add {OUTSIDE_IPV6}/128 dev {TAP} nodad",
            # No address of the kernel's own making, so no delay for DAD.
            f"link set {TAP} addrgenmode none",
            f"addr add {ROUTER_IPV4} dev {TAP}",
            f"addr add {ROUTER_IPV6} dev {TAP} nodad",
            f"addr add {ROUTER_LINK_LOCAL} dev {TAP} nodad",
            f"link set {TAP} up",
            "",
        ]
    )


def _dnsmasq_args(leases: Path) -> list[str]:
    """Return the arguments of a DHCPv4, RA and DNS server on the tap."""
    pool = f"{NODE_IPV4 + 40},{NODE_IPV4 + 80},{ROUTER_IPV4.netmask},1h"
    return [
        "--no-daemon",
        "--conf-file=/dev/null",
        "--pid-file=",
        f"--dhcp-leasefile={leases}",
        f"--interface={TAP}",
        "--except-interface=lo",
        "--bind-interfaces",
        "--no-resolv",
        "--no-hosts",
        f"--host-record=outside.test,{OUTSIDE_IPV4},{OUTSIDE_IPV6}",
        f"--dhcp-range={pool}",
        f"--dhcp-host={NODE_MAC},{NODE_IPV4}",
        f"--dhcp-option=option:router,{ROUTER_IPV4.ip}",
        "--dhcp-authoritative",
        "--dhcp-rapid-commit",
        "--no-ping",
        "--log-dhcp",
        "--enable-ra",
        f"--dhcp-range={ROUTER_IPV6.network.network_address},ra-only,64",
    ]


class Lab:
    """The network, from entering to leaving the context.

    Needs a network namespace of its own. `seen` has every address that spoke
    to the outside host.
    """

    def __init__(self, directory: Path) -> None:
        self.tap_fd = -1
        self.node_mac = NODE_MAC
        self.seen: list[IPv4Address | IPv6Address] = []
        self._dnsmasq_up = asyncio.Event()
        self._log_path = directory / "dnsmasq.log"
        self._leases = directory / "dnsmasq.leases"
        self._stack = contextlib.AsyncExitStack()

    async def __aenter__(self) -> Self:
        try:
            await self._start()
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._stack.aclose()

    async def _start(self) -> None:
        self.tap_fd = open_tap(TAP)
        self._stack.callback(os.close, self.tap_fd)
        process = await asyncio.create_subprocess_exec(
            "ip", "-batch", "-",
            stdin=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        _, said = await process.communicate(_setup_batch().encode())
        if process.returncode != 0:
            raise LabError(f"ip -batch: {said.decode(errors='replace').strip()}")
        # Neighbour advertisements then have the router flag, without which the
        # node gives up its default route (RFC 4861 section 7.2.5).
        forwarding = Path(f"/proc/sys/net/ipv6/conf/{TAP}/forwarding")
        try:
            await asyncio.to_thread(forwarding.write_text, "1")
        except OSError as error:
            raise LabError(f"write 1 to {forwarding}: {error.strerror}") from error
        await self._start_dnsmasq()
        for address in (str(OUTSIDE_IPV4), str(OUTSIDE_IPV6)):
            await self._stack.enter_async_context(
                await asyncio.start_server(self._answer, address, OUTSIDE_PORT)
            )
            loop = asyncio.get_running_loop()
            transport, _ = await loop.create_datagram_endpoint(
                lambda: _UdpAnswer(self.seen), local_addr=(address, OUTSIDE_PORT)
            )
            self._stack.callback(transport.close)

    async def _start_dnsmasq(self) -> None:
        binary = shutil.which("dnsmasq", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
        if binary is None:
            raise LabError("dnsmasq not found; run inside the devroot (./bazelw)")
        # As a child that cannot outlive this process, in a session that Ctrl-C
        # on the terminal does not reach.
        process = await asyncio.create_subprocess_exec(
            "setpriv", "--pdeathsig", "KILL", binary, *_dnsmasq_args(self._leases),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
        )  # fmt: skip

        follow = asyncio.create_task(self._follow(process.stderr))

        async def stop() -> None:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            await process.wait()
            await follow

        self._stack.push_async_callback(stop)
        started = asyncio.create_task(self._dnsmasq_up.wait())
        try:
            await asyncio.wait({started, follow}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            started.cancel()
        if not self._dnsmasq_up.is_set():
            raise LabError(f"dnsmasq: {self._log_path.read_text().strip()}")

    async def _follow(self, lines: asyncio.StreamReader | None) -> None:
        with self._log_path.open("wb", buffering=0) as log:
            while lines is not None and (line := await lines.readline()):
                log.write(line)
                if re.search(rb"started, version", line):
                    self._dnsmasq_up.set()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One HTTP request: the answer is the caller's address."""
        with contextlib.suppress(OSError, TimeoutError, ValueError, asyncio.IncompleteReadError):
            async with asyncio.timeout(30):
                source = ip_address(writer.get_extra_info("peername")[0])
                self.seen.append(source)
                await reader.readuntil(b"\r\n\r\n")
                body = f"{source}\n"
                writer.write(
                    f"HTTP/1.0 200 OK\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()
                )
                await writer.drain()
        writer.close()


class _UdpAnswer(asyncio.DatagramProtocol):
    """The answer to any datagram is the caller's address.

    To a TFTP read request (RFC 1350) as its file: the client that busybox has.
    """

    def __init__(self, seen: list[IPv4Address | IPv6Address]) -> None:
        self._seen = seen
        self._transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if isinstance(transport, asyncio.DatagramTransport):
            self._transport = transport

    def datagram_received(self, data: bytes, addr: tuple[str | object, int]) -> None:
        source = ip_address(str(addr[0]))
        self._seen.append(source)
        if self._transport is not None:
            is_tftp, is_ack = data.startswith(b"\0\1"), data.startswith(b"\0\4")
            if not is_ack:
                block = b"\0\3\0\1" if is_tftp else b""
                self._transport.sendto(block + f"{source}\n".encode(), addr)
