# SPDX-License-Identifier: Apache-2.0
"""Try the features that the service needs with each kind of pair.

Each question is a function that returns "yes", or else the observed result.
"""

import contextlib
import errno
import os
import select
import socket
import struct
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

from metropolis.node import allocs
from metropolis.test.bench.links import messages
from metropolis.test.bench.links.messages import Pod
from metropolis.test.bench.links.model import Ability, Kind, LinksError
from metropolis.test.bench.links.pods import Namespace, Refused, send
from osbase.netlink import attrs
from osbase.netlink.address import add_address, del_address
from osbase.netlink.errors import BatchError
from osbase.netlink.ifla import (
    IFLA_ADDRESS,
    IFLA_ALT_IFNAME,
    IFLA_GROUP,
    IFLA_IFNAME,
    IFLA_MTU,
    IFLA_NET_NS_FD,
    IFLA_PROP_LIST,
)
from osbase.netlink.link import Link, del_link, get_link_by_name, parse_link
from osbase.netlink.transport import NetlinkSocket

_YES = "yes"
_WAIT_MS = 3000
_PORT = 7777
_ETH_P_ALL, _ETH_P_IP = 3, 0x0800
_NEAR, _FAR = 50001, 50002
_SPOOFED = (IPv4Address("10.192.99.99"), IPv6Address("fd00:10:192::9999"))


@dataclass(frozen=True, slots=True)
class Scene:
    """A kind, the host's route socket, and two attached pods of the kind."""

    kind: Kind
    host: socket.socket
    client: Namespace
    client_pod: Pod
    server: Namespace
    server_pod: Pod

    @contextlib.contextmanager
    def pair(
        self,
        near: Sequence[bytes] = (),
        far: Sequence[bytes] = (),
        *data: tuple[int, int],
    ) -> Iterator[tuple[Link, Link]]:
        """A pair besides, the far end in the client; gone afterwards."""
        request = messages.pair(
            self.kind,
            _NEAR,
            [attrs.text(IFLA_IFNAME, b"near"), *near],
            _FAR,
            [
                attrs.text(IFLA_IFNAME, b"far"),
                attrs.u32(IFLA_NET_NS_FD, self.client.fd),
                *far,
            ],
            messages.mode(self.kind) + [attrs.u32(number, value) for number, value in data],
        )
        send(self.host, [request])
        try:
            yield _link(self.host, "near"), _link(self.client.route, "far")
        finally:
            with contextlib.suppress(Refused):
                send(self.host, [del_link(_NEAR, "near")])


def _link(route: socket.socket, name: str) -> Link:
    return parse_link(NetlinkSocket(route).get(get_link_by_name(name)))


def _both(got: tuple[object, object], want: object) -> str:
    return _YES if got == (want, want) else f"host {got[0]}, pod {got[1]}"


def _counter(pod: Pod, name: str) -> int:
    return int(Path(f"/sys/class/net/{pod.host_name}/statistics/{name}").read_text())


def _carries(scene: Scene) -> str:
    """Check that nothing else is measured by mistake."""
    kind = _link(scene.host, scene.client_pod.host_name).kind
    if kind != (b"netkit" if scene.kind.netkit else b"veth"):
        return f"it is {kind!r}"
    before = _counter(scene.client_pod, "rx_packets"), _counter(scene.server_pod, "tx_packets")
    for version in (4, 6):
        _spoof(scene, version)  # with two honest datagrams
    more = (
        _counter(scene.client_pod, "rx_packets") - before[0],
        _counter(scene.server_pod, "tx_packets") - before[1],
    )
    return _YES if more[0] >= 6 and more[1] >= 4 else f"{more} packets"


def _indexes(scene: Scene) -> str:
    with scene.pair() as (near, far):
        got = near.ifindex, far.ifindex
    return _YES if got == (_NEAR, _FAR) else f"got {got}"


def _group(scene: Scene) -> str:
    group = attrs.u32(IFLA_GROUP, 77)
    with scene.pair([group], [group]) as (near, far):
        return _both((near.group, far.group), 77)


def _mtu(scene: Scene) -> str:
    mtu = attrs.u32(IFLA_MTU, 9000)
    with scene.pair([mtu], [mtu]) as (near, far):
        return _both((near.mtu, far.mtu), 9000)


def _mac(scene: Scene) -> str:
    mac = bytes.fromhex("02aabbccddee")
    given = attrs.attr(IFLA_ADDRESS, mac)
    with scene.pair([given], [given]) as (near, far):
        return _both((near.mac.hex(":"), far.mac.hex(":")), mac.hex(":"))


def _altname(scene: Scene) -> str:
    names = attrs.nested(IFLA_PROP_LIST, attrs.text(IFLA_ALT_IFNAME, b"other-name"))
    with scene.pair([names]) as (near, _):
        return _YES if near.altnames else "accepted, without effect"


def _records(scene: Scene) -> str:
    link = _link(scene.host, scene.client_pod.host_name)
    return _YES if link.alias and len(link.altnames) == 2 else f"{link.alias!r}, {link.altnames}"


def _peer(scene: Scene) -> str:
    link = _link(scene.host, scene.client_pod.host_name)
    seen = link.peer == scene.client_pod.pod_index and link.peer_netns is not None
    return _YES if seen else f"index {link.peer}, namespace {link.peer_netns}"


def _removal(scene: Scene) -> str:
    with scene.pair():
        send(scene.client.route, [del_link(_FAR, "far")])
        try:
            _link(scene.host, "near")
        except BatchError as error:
            gone = error.errors[0].errno == errno.ENODEV
            return _YES if gone else str(error)
    return "the host's end stays"


def _policy(scene: Scene) -> str:
    """The link drops everything until its policy is changed."""
    if not scene.kind.netkit:
        return "no such attribute"
    drop = messages.NETKIT_DROP
    with scene.pair((), (), (messages.NETKIT_POLICY, drop), (messages.NETKIT_PEER_POLICY, drop)):
        data = [
            attrs.u32(attribute, messages.NETKIT_PASS)
            for attribute in (messages.NETKIT_POLICY, messages.NETKIT_PEER_POLICY)
        ]
        send(scene.host, [messages.change(_NEAR, data)])
    return _YES


def _scrub(scene: Scene) -> str:
    if not scene.kind.netkit:
        return "no such attribute"
    none = messages.NETKIT_SCRUB_NONE
    with scene.pair((), (), (messages.NETKIT_SCRUB, none), (messages.NETKIT_PEER_SCRUB, none)):
        return _YES


def _frame(scene: Scene) -> bytes:
    """A UDP datagram from client to server, as AF_PACKET sends it."""
    source, target = scene.client_pod.ipv4.packed, scene.server_pod.ipv4.packed
    udp = struct.pack("!HHHH", _PORT, _PORT, 12, 0) + b"ping"
    header = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(udp), 1, 0, 64, 17, 0) + source + target
    total = sum(struct.unpack("!10H", header))
    checksum = ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF
    header = header[:10] + struct.pack("!H", checksum) + header[12:]
    none = bytes(6)
    l3 = scene.kind is Kind.NETKIT_L3
    ends = none + none if l3 else allocs.FIRST_HOP_MAC + scene.client_pod.mac
    return ends + struct.pack("!H", _ETH_P_IP) + header + udp


def _packet_socket(namespace: Namespace) -> socket.socket:
    opened = namespace.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL))
    opened.bind(("eth0", _ETH_P_ALL))
    return opened


def _readable(sock: socket.socket) -> bool:
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return bool(poll.poll(_WAIT_MS))


def _frames_out(scene: Scene) -> str:
    """Send like gVisor's netstack or a virtual machine."""
    receiver = scene.server.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with receiver, _packet_socket(scene.client) as sender:
        receiver.bind(("", _PORT))
        sender.send(_frame(scene))
        return _YES if _readable(receiver) else "nothing arrives"


def _frames_in(scene: Scene) -> str:
    """Receive like them: with the Ethernet header of a pair with this MAC."""
    with _packet_socket(scene.server) as receiver, _packet_socket(scene.client) as sender:
        sender.send(_frame(scene))
        while _readable(receiver):
            frame = receiver.recv(2048)
            if frame.endswith(b"ping"):
                right = frame[:6] == scene.server_pod.mac
                return _YES if right else f"without a MAC: to {frame[:6].hex(':')}"
    return "nothing arrives"


def _spoof(scene: Scene, version: int) -> None:
    """Send from an address that the client has, and should not have.

    It sends a valid datagram before, so that the first hop's MAC is known, and
    one after: when that arrives, the spoofed one has arrived or is dropped,
    since packets of one CPU keep their order.
    """
    address = _SPOOFED[0] if version == 4 else _SPOOFED[1]
    target = str(scene.server_pod.ipv4 if version == 4 else scene.server_pod.ipv6), _PORT
    bits = address.max_prefixlen
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    send(scene.client.route, [add_address(1, "lo", address, bits, no_dad=version == 6)])
    cpus = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cpus)})
    try:
        with (
            scene.server.socket(family, socket.SOCK_DGRAM) as receiver,
            scene.client.socket(family, socket.SOCK_DGRAM) as own,
            scene.client.socket(family, socket.SOCK_DGRAM) as spoofing,
        ):
            receiver.bind(("", _PORT))
            spoofing.bind((str(address), _PORT))
            for sender in (own, spoofing, own):
                sender.sendto(b"honest" if sender is own else b"spoofed", target)
                if sender is own and not _readable(receiver):
                    raise LinksError("the client's own datagrams do not arrive")
                if sender is own:
                    receiver.recv(64)
    finally:
        os.sched_setaffinity(0, cpus)
        send(scene.client.route, [del_address(1, "lo", address, bits)])


def _rule_counter(name: str) -> str:
    command = ["nft", "list", "counter", "inet", allocs.NFTABLES_TABLE, name]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def _spoofing(version: int) -> Callable[[Scene], str]:
    def ask(scene: Scene) -> str:
        before = _rule_counter(f"spoofed_ipv{version}")
        _spoof(scene, version)
        return _YES if _rule_counter(f"spoofed_ipv{version}") != before else "passes"

    return ask


def _reverse_path_drops() -> int:
    names, values = (
        line.split()
        for line in Path("/proc/net/netstat").read_text().splitlines()
        if line.startswith("TcpExt:")
    )
    return int(values[names.index("IPReversePathFilter")])


@contextlib.contextmanager
def _without_rules() -> Iterator[None]:
    """Make the rules ineffective in the block."""
    table = f"table inet {allocs.NFTABLES_TABLE}"
    subprocess.run(["nft", f"add {table} {{ flags dormant; }}"], check=True)
    try:
        yield
    finally:
        subprocess.run(["nft", f"add {table}"], check=True)


def _rp_filter(scene: Scene) -> str:
    """The kernel's own check, instead of the rules."""
    setting = Path(f"/proc/sys/net/ipv4/conf/{scene.client_pod.host_name}/rp_filter")
    setting.write_text("1")
    before = _reverse_path_drops()
    try:
        with _without_rules():
            _spoof(scene, 4)
    finally:
        setting.write_text("0")
    return _YES if _reverse_path_drops() > before else "passes"


def _shaping(scene: Scene) -> str:
    name = scene.client_pod.host_name
    for kind in (["root", "handle", "1:", "htb"], ["ingress"]):
        command = ["tc", "qdisc", "add", "dev", name, *kind]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        if done.returncode:
            return f"{kind[0]}: {done.stderr.strip()}"
        subprocess.run(["tc", "qdisc", "del", "dev", name, kind[0]], check=True)
    return _YES


def _ipvlan(scene: Scene) -> str:
    scene.client.run(["ip", "link", "add", "link", "eth0", "name", "iv0", "type", "ipvlan"])
    scene.client.run(["ip", "link", "del", "iv0"])
    return _YES


_QUESTIONS: tuple[tuple[str, Callable[[Scene], str]], ...] = (
    ("the pods' packets pass links of the kind", _carries),
    ("ifindexes chosen at creation, both ends", _indexes),
    ("group at creation, both ends", _group),
    ("MTU at creation, both ends", _mtu),
    ("MAC at creation, both ends", _mac),
    ("altname at creation", _altname),
    ("alias and altnames afterwards", _records),
    ("peer's index and namespace told on the host", _peer),
    ("removal inside the pod removes the host's end", _removal),
    ("black hole from birth, then opened (policy)", _policy),
    ("marks and priorities cross (scrub none)", _scrub),
    ("AF_PACKET frames leave the pod", _frames_out),
    ("AF_PACKET frames arrive, with the pod's MAC", _frames_in),
    ("IPv4 spoofing dropped by the rules (fib)", _spoofing(4)),
    ("IPv6 spoofing dropped by the rules (fib)", _spoofing(6)),
    ("IPv4 spoofing dropped by rp_filter=1", _rp_filter),
    ("HTB and ingress qdisc on the host's end", _shaping),
    ("ipvlan on the pod's end", _ipvlan),
)


def ask(scenes: Sequence[Scene]) -> list[Ability]:
    """Ask each kind everything."""
    return [
        Ability(what, {scene.kind: _answer(question, scene) for scene in scenes})
        for what, question in _QUESTIONS
    ]


def _answer(question: Callable[[Scene], str], scene: Scene) -> str:
    try:
        return question(scene)
    except Refused as refused:
        return f"{refused.name} {refused.text}".rstrip()
    except LinksError as error:
        return str(error)
