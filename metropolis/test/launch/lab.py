# SPDX-License-Identifier: Apache-2.0
"""The network around the nodes, in namespaces of this process.

    node1   node2   node3      a tap for each node
    --+-------+-------+--
      |     lab0      |        a bridge: router, DHCP and RA, outside host
    --+---------------+--

    enter_namespaces()          # first thing in main(), still single-threaded
    async with Lab(directory, nodes=3) as lab:
        ... QEMU with Tap(lab.ports[0].fd, lab.ports[0].mac)

All addresses are in the documentation ranges (RFC 5737, RFC 3849). The bridge
makes faults: a port that is cut off sends and receives nothing; ports that are
parted reach the router and the outside, but not each other.

Why not sockets between the QEMUs: their traffic could not be captured or cut,
and the nodes would have no outside.
"""

import asyncio
import contextlib
import ctypes
import errno
import fcntl
import os
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface, ip_address
from pathlib import Path

from metropolis.test.launch.child import child
from metropolis.test.launch.sntp import NTP_PORT, SntpServer
from metropolis.test.launch.started import Started

BRIDGE = "lab0"
BRIDGE_MAC = "52:54:00:4e:ff:01"
MAX_NODES = 30
MTU = 1500
_FIRST_NODE = IPv4Address("198.51.100.10")
_POOL = (IPv4Address("198.51.100.50"), IPv4Address("198.51.100.90"))
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
    """The network could not be made; the text has the remedy."""


@dataclass(frozen=True)
class Port:
    """A port for one node. number: from 1; fd: the tap's, closed by the lab.
    mac, ipv4: the node's; it makes its IPv6 address itself.
    """

    number: int
    fd: int

    @property
    def link(self) -> str:
        """The tap."""
        return f"node{self.number}"

    @property
    def mac(self) -> str:
        """The node's link address."""
        return f"52:54:00:4e:00:{self.number:02x}"

    @property
    def ipv4(self) -> IPv4Address:
        """Return the address that DHCP gives to the node."""
        return _FIRST_NODE + (self.number - 1)


def enter_namespaces() -> None:
    """Move this process into new user, network and mount namespaces, as root.

    It must have one thread. It works for root, and for ordinary users if the
    system allows them user namespaces. Do not call it in a py_pytest with
    netns = True, which has such namespaces already.
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


def _setup_batch(mtu: int) -> list[str]:
    """Return `ip -batch` lines: the bridge, the router, the outside."""
    return [
        "link set lo up",
        # Ports forward at once, and neighbour discovery needs no MLD querier.
        # A link address of its own: else it has that of a port.
        f"link add {BRIDGE} address {BRIDGE_MAC} mtu {mtu} type bridge "
        "stp_state 0 forward_delay 0 mcast_snooping 0",
        # On the bridge too, though not on its network: all goes with it.
        f"addr add {OUTSIDE_IPV4}/32 dev {BRIDGE}",
        f"addr add {OUTSIDE_IPV6}/128 dev {BRIDGE} nodad",
        # No address of the kernel's own making, so no delay for DAD.
        f"link set {BRIDGE} addrgenmode none",
        f"addr add {ROUTER_IPV4} dev {BRIDGE}",
        f"addr add {ROUTER_IPV6} dev {BRIDGE} nodad",
        f"addr add {ROUTER_LINK_LOCAL} dev {BRIDGE} nodad",
        f"link set {BRIDGE} up",
    ]


def _port_batch(port: Port, mtu: int) -> list[str]:
    """Return `ip -batch` lines: a tap becomes a port of the bridge."""
    return [
        f"link set {port.link} addrgenmode none",
        f"link set {port.link} mtu {mtu} master {BRIDGE} up",
    ]


async def _ip(lines: Iterable[str]) -> None:
    process = await asyncio.create_subprocess_exec(
        "ip", "-batch", "-",
        stdin=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    _, said = await process.communicate("".join(f"{line}\n" for line in lines).encode())
    if process.returncode != 0:
        raise LabError(f"ip -batch: {said.decode(errors='replace').strip()}")


def _dnsmasq_args(leases: Path, mtu: int) -> list[str]:
    """Return the arguments of a DHCPv4, RA and DNS server on the bridge."""
    hosts = [Port(number, -1) for number in range(1, MAX_NODES + 1)]
    return [
        "--no-daemon",
        "--conf-file=/dev/null",
        "--pid-file=",
        f"--dhcp-leasefile={leases}",
        f"--interface={BRIDGE}",
        "--except-interface=lo",
        "--bind-interfaces",
        "--no-resolv",
        "--no-hosts",
        f"--host-record=outside.test,{OUTSIDE_IPV4},{OUTSIDE_IPV6}",
        f"--dhcp-range={_POOL[0]},{_POOL[1]},{ROUTER_IPV4.netmask},1h",
        *(f"--dhcp-host={host.mac},{host.ipv4}" for host in hosts),
        f"--dhcp-option=option:router,{ROUTER_IPV4.ip}",
        f"--dhcp-option=option:ntp-server,{ROUTER_IPV4.ip}",
        # The RA has the MTU of the bridge.
        *([] if mtu == MTU else [f"--dhcp-option=option:mtu,{mtu}"]),
        "--dhcp-authoritative",
        "--dhcp-rapid-commit",
        "--no-ping",
        "--log-dhcp",
        "--enable-ra",
        f"--dhcp-range={ROUTER_IPV6.network.network_address},ra-only,64",
    ]


class Lab(Started):
    """The network, from entering to leaving the context.

    It needs a separate network namespace. `seen` has all source addresses of
    requests to the outside host, `ports` the ports of the nodes.
    """

    def __init__(self, directory: Path, nodes: int = 1, mtu: int = MTU) -> None:
        """nodes: the number of ports at the start. mtu: of the network, bytes;
        DHCP and RA announce it; larger packets are dropped silently.
        """
        super().__init__()
        self.ports: list[Port] = []
        self.time_server = SntpServer()
        self.seen: list[IPv4Address | IPv6Address] = []
        self._nodes = nodes
        self._mtu = mtu
        self._directory = directory

    async def _start(self) -> None:
        await _ip(_setup_batch(self._mtu))
        self._stack.push_async_callback(_ip, [f"link del {BRIDGE}"])
        # Neighbour advertisements then have the router flag, without which the
        # node gives up its default route (RFC 4861 section 7.2.5).
        forwarding = Path(f"/proc/sys/net/ipv6/conf/{BRIDGE}/forwarding")
        try:
            await asyncio.to_thread(forwarding.write_text, "1")
        except OSError as error:
            raise LabError(f"write 1 to {forwarding}: {error.strerror}") from error
        for _ in range(self._nodes):
            await self.plug()
        await self._stack.enter_async_context(
            child(
                "dnsmasq",
                *_dnsmasq_args(self._directory / "dnsmasq.leases", self._mtu),
                log=self._directory / "dnsmasq.log",
                ready=rb"started, version",
            )
        )
        for address in (str(OUTSIDE_IPV4), str(OUTSIDE_IPV6)):
            await self._stack.enter_async_context(
                await asyncio.start_server(self._answer, address, OUTSIDE_PORT)
            )
            loop = asyncio.get_running_loop()
            transport, _ = await loop.create_datagram_endpoint(
                lambda: _UdpAnswer(self.seen), local_addr=(address, OUTSIDE_PORT)
            )
            self._stack.callback(transport.close)
        clock, _ = await loop.create_datagram_endpoint(
            lambda: self.time_server, local_addr=(str(ROUTER_IPV4.ip), NTP_PORT)
        )
        self._stack.callback(clock.close)

    async def plug(self) -> Port:
        """Add a port, which stays until the end."""
        number = len(self.ports) + 1
        if number > MAX_NODES:
            raise LabError(f"port {number}: there are {MAX_NODES}")
        port = Port(number, -1)
        port = Port(number, open_tap(port.link))
        self._stack.callback(os.close, port.fd)
        await _ip(_port_batch(port, self._mtu))
        self.ports.append(port)
        return port

    async def cut(self, *ports: Port) -> None:
        """Cut ports off: nothing is sent or received there."""
        await _ip(f"link set {port.link} down" for port in ports)

    async def part(self, *ports: Port) -> None:
        """Part these ports from one another; they still reach all others."""
        await _ip(f"link set {port.link} type bridge_slave isolated on" for port in ports)

    async def heal(self) -> None:
        """Undo all cuts and partings."""
        await _ip(
            line
            for port in self.ports
            for line in (
                f"link set {port.link} up",
                f"link set {port.link} type bridge_slave isolated off",
            )
        )

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one HTTP request with the caller's address."""
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
    """Answers any datagram with the caller's address.

    A TFTP read request (RFC 1350) gets it as a file: busybox has such a client.
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
