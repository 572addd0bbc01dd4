# SPDX-License-Identifier: Apache-2.0
"""The targets. A target takes any bytes; if it raises, that is a fault."""

import contextlib
import dataclasses
import json
import tempfile
from collections.abc import Callable
from ipaddress import IPv4Address, ip_address, ip_network
from pathlib import Path
from typing import Final

from metropolis.node.core import config
from metropolis.node.core.curator import keys, membership, records
from metropolis.node.core.curator.directory import Changes, Directory, Entry, Removal
from metropolis.node.core.network.cni import protocol, result
from metropolis.node.core.network.cni import wire as cni_wire
from metropolis.node.core.network.cni.protocol import Add, CniError
from metropolis.node.core.network.overlay.mesh import Identity, Peer
from metropolis.node.core.network.policy import kernel as policy_kernel
from metropolis.node.core.network.policy import messages as policy_messages
from metropolis.node.core.network.policy import wire as policy_wire
from metropolis.node.core.network.policy.api import Methods
from metropolis.node.core.network.policy.kubernetes import convert
from metropolis.node.core.network.policy.manager import Manager
from metropolis.node.core.network.policy.sources import Source
from metropolis.node.core.network.policy.store import Store
from metropolis.node.core.network.policy.tables import Tables
from metropolis.node.core.network.policy.testing import fake as policy_fake
from metropolis.node.core.network.workloads.api import wire
from metropolis.node.core.network.workloads.conditions import Conditions
from metropolis.node.core.network.workloads.datapath import names, plan, repairs
from metropolis.node.core.network.workloads.datapath.interface import Record
from metropolis.node.core.network.workloads.datapath.parts import Parts
from metropolis.node.core.network.workloads.datapath.registry import PARTS
from metropolis.node.core.network.workloads.engine.engine import Engine
from metropolis.node.core.network.workloads.errors import InvalidArgument, WorkloadError
from metropolis.node.core.network.workloads.model import Attachment, Checked, Finding, routes_of
from metropolis.node.core.network.workloads.model import Identity as WorkloadIdentity
from metropolis.node.core.network.workloads.spec import workload_pb2 as pb
from metropolis.node.core.network.workloads.testing.fake import FakeDatapath, FakeKernel
from metropolis.node.core.network.workloads.validate import show
from osbase.conntrack import delete, marks, sources
from osbase.net.dhcp4 import lease, packet
from osbase.net.dhcp4.machine import Machine
from osbase.netlink import message
from osbase.netlink.address import parse_address
from osbase.netlink.errors import NetlinkError, ProtocolError
from osbase.netlink.ifla import RTM_GETLINK
from osbase.netlink.link import Link, parse_link, parse_link_removed
from osbase.netlink.message import Request
from osbase.netlink.route import parse_route
from osbase.netlink.transport import NetlinkSocket
from osbase.nftables import listing
from osbase.rpc.call import Call

_MAC: Final = bytes.fromhex("020000000001")
_MEMORY: Final = "/dev/shm" if Path("/dev/shm").is_dir() else None
_WEB: Final = WorkloadIdentity("shop", {"app": "web"})


def netlink_messages(data: bytes) -> None:
    """Datagrams of the kernel: messages, their attributes, our records."""
    links: list[Link] = []
    try:
        found = list(message.decode(data))
    except ProtocolError:
        return
    for one in found:
        with contextlib.suppress(ProtocolError):
            message.error_of(one)
        with contextlib.suppress(ProtocolError):
            parse_route(one)
        with contextlib.suppress(ProtocolError):
            parse_address(one)
        with contextlib.suppress(ProtocolError):
            parse_link_removed(one)
        with contextlib.suppress(ProtocolError):
            links.append(parse_link(one))
    for link in links:
        record = plan.record_of(link)
        if record is not None and record.workload_id:
            again = dataclasses.replace(link, altnames=names.altnames_of(record))
            assert plan.record_of(again) == record
            if record.parts:
                continue  # it may have texts that no attach writes
            seen = repairs.Seen({record.host_ifindex: link}, {}, {}, forwards=True, ipv6=True)
            with contextlib.suppress(ProtocolError):
                repairs.mends(record, seen, replace=True)
    plan.plan(links, set(), Parts(PARTS))


class _Script:
    """A socket with fuzzed answers."""

    def __init__(self, answers: list[bytes]) -> None:
        self._answers = answers

    def send(self, data: bytes, /) -> int:
        """Answers take the sequence number 1: requests begin with it."""
        return len(data)

    def recvfrom(self, size: int, flags: int, /) -> tuple[bytes, tuple[int, int]]:
        if not self._answers:
            raise BlockingIOError
        return self._answers.pop(0)[:size], (0, 0)

    def fileno(self) -> int:
        """Return any number: the socket is never polled."""
        return 2

    def close(self) -> None:
        pass


def tracked_flows(data: bytes) -> None:
    """Fuzz a datagram of a conntrack dump: each source is counted once."""
    try:
        found = list(message.decode(data))
    except ProtocolError:
        return
    with contextlib.suppress(ProtocolError):
        census = sources.take(found, most=4)
        assert census.total == len(found)
        assert len(census.entries) <= 4
    filters = [delete.Filter(17, 4, 53), delete.Filter(17, 6, 53, to=ip_address("fd00::1"))]
    for one in filters:
        with contextlib.suppress(ProtocolError):
            for entry in delete.matching(found, [one]):
                delete.flow(entry)
                delete.deletion(entry)
    for entry in found:
        with contextlib.suppress(ProtocolError):
            flow = marks.parse(entry)
            marks.marking(flow, 7)
            marks.deletion(flow)


def policy_elements(data: bytes) -> None:
    """Fuzz the listed elements of policies' sets: the first byte is the set."""
    chosen = policy_kernel.SETS[data[0] % len(policy_kernel.SETS)] if data else "pairs"
    found: list[listing.Listed] = []
    try:
        for one in message.decode(data[1:]):
            found += listing.parse(one)
    except ProtocolError:
        return
    with contextlib.suppress(policy_kernel.PolicyKernelError):
        policy_kernel.encode_tables(policy_kernel.decode_tables({chosen: found}))


def netlink_conversation(data: bytes) -> None:
    """Fuzz answers to requests: each has 2 bytes of length before it; the first
    byte of all selects the request.
    """
    answers: list[bytes] = []
    rest = data[1:]
    while len(rest) > 2:
        length = int.from_bytes(rest[:2])
        answers.append(rest[2 : 2 + length])
        rest = rest[2 + length :]
    request = Request(RTM_GETLINK, 0, bytes(16), "fuzz")
    sock = NetlinkSocket(_Script(answers), timeout_s=0)
    calls: list[Callable[[], object]] = [
        lambda: sock.batch([request, request]),
        lambda: sock.dump(request),
        lambda: sock.get(request),
    ]
    with contextlib.suppress(NetlinkError):
        calls[data[0] % 3 if data else 0]()


def _attachment(add: Add) -> Attachment:
    ips = add.requested_ips or (IPv4Address("10.0.0.1"),)
    gateways = tuple(ip_address("169.254.77.1" if ip.version == 4 else "fe80::1") for ip in ips)
    mac = add.requested_mac or _MAC
    routes = routes_of(ip.version for ip in ips)
    return Attachment(add.container_id, add.if_name, ips, mac, "wl0", 7, 1500, gateways, routes)


def _cni(request: cni_wire.Request) -> None:
    try:
        command = protocol.parse(request)
    except CniError as error:
        answer = error.answer()
        assert answer.exit_code == 1
        assert json.loads(answer.stdout)["code"] == error.code
        cni_wire.encode_answer(answer)
        return
    if isinstance(command, Add):
        encoded = protocol.encode(result.success(command, _attachment(command)))
        assert json.loads(encoded)["cniVersion"] == command.version
    elif isinstance(command, protocol.Check):
        add = Add(command.version, command.container_id, command.if_name, command.netns)
        made = _attachment(add)
        whats = [f"{one} of {show(made.if_name)} inside" for one in ("MAC", "MTU")]
        whats += [f"route to {route.destination} inside" for route in made.routes]
        findings = tuple(Finding(what, "one", "another") for what in whats)
        for found in ((), findings):
            result.differences(command, Checked(made, found, entered=True))


def cni_frame(data: bytes) -> None:
    """Fuzz the data on the shim's socket, from the header on."""
    size = cni_wire.REQUEST_HEADER_SIZE
    try:
        lengths = cni_wire.parse_header(data[:size])
        request = cni_wire.parse_body(lengths, data[size:])
    except cni_wire.WireError:
        return
    again = cni_wire.encode_request(request)
    lengths = cni_wire.parse_header(again[:size])
    assert cni_wire.parse_body(lengths, again[size:]) == request
    _cni(request)


_COMMANDS: Final = ("ADD", "DEL", "CHECK", "GC", "STATUS", "VERSION")


def cni_execution(data: bytes) -> None:
    """Fuzz standard input and environment: a byte for the command, lines of the
    environment up to an empty one, the rest is standard input.
    """
    environment, _, stdin = data[1:].partition(b"\n\n")
    env = {
        "CNI_COMMAND": _COMMANDS[data[0] % 6] if data else "",
        "CNI_CONTAINERID": "c",
        "CNI_IFNAME": "eth0",
        "CNI_NETNS": "/n",
    }
    for line in environment.split(b"\n"):
        name, _, value = line.decode(errors="surrogateescape").partition("=")
        env[f"CNI_{name}"] = value
    _cni(cni_wire.Request(("cniproxy",), env, stdin))


def node_configuration(data: bytes) -> None:
    """Fuzz the configuration file of the node."""
    try:
        config.parse(data, "f")
    except config.ConfigError as error:
        assert str(error).startswith("f")


def dhcp_packet(data: bytes) -> None:
    """Fuzz packets on the uplink, and payloads without IP and UDP headers."""
    with contextlib.suppress(packet.PacketError):
        packet.decode(packet.unframe(data, checksum_ready=bool(data[0] & 1) if data else True))
    try:
        found = packet.decode(data)
    except packet.PacketError:
        return
    again = packet.decode(found.encode())
    assert again == found
    with contextlib.suppress(packet.PacketError):
        lease.parse(found, 0.0)


def dhcp_exchange(data: bytes) -> None:
    """Fuzz all answers of a client's server: options, kind and address. Earlier
    answers determine the client's state.
    """
    machine = Machine(_MAC, rand=lambda: 0.5)
    sent = machine.start(0.0)
    now, rest = 1.0, data
    while len(rest) > 6:
        kind, xid, wait, length = rest[0] % 8 + 1, sent[-1].message.xid, rest[1], rest[6]
        yours, options, rest = rest[2:6], rest[7 : 7 + length], rest[7 + length :]
        fixed = bytes([2, 1, 6, 0]) + xid.to_bytes(4) + bytes(8) + yours + bytes(8)
        body = fixed + _MAC.ljust(16, b"\0") + bytes(192) + b"\x63\x82\x53\x63"
        with contextlib.suppress(packet.PacketError):
            answer = packet.decode(body + bytes([53, 1, kind]) + options + b"\xff")
            sent += machine.receive(now, answer)
        now += wait * 100.0
        sent += machine.tick(now)
        deadline = machine.deadline
        assert deadline is None or deadline >= 0
    for one in sent:
        one.message.encode()


def _engine() -> Engine:
    kernel = FakeKernel(namespaces={"/a": 1000, "/b": 1001}, local={IPv4Address("192.0.2.7")})
    engine = Engine(FakeDatapath(kernel, parts=PARTS))
    engine.set_prefixes([ip_network("10.0.0.0/29"), ip_network("fd00::/125")])
    engine.start()
    return engine


def workload_request(data: bytes) -> None:
    """Fuzz the service with encoded requests; the first byte is the method."""
    rest, chosen = data[1:], data[0] % 6 if data else 0
    engine = _engine()
    try:
        if chosen == 0:
            made = engine.attach(wire.attach_intent(wire.decode(pb.AttachRequest, rest)))
            wire.attach_response(made)
        elif chosen == 1:
            detach = wire.decode(pb.DetachRequest, rest)
            engine.detach(detach.workload_id, detach.netns.netns_path, detach.netns.if_name)
        elif chosen == 2:
            check = wire.decode(pb.CheckRequest, rest)
            engine.check(check.workload_id, check.netns.if_name, check.netns.netns_path)
        elif chosen == 3:
            engine.list(wire.decode(pb.ListRequest, rest).workload_id)
        elif chosen == 4:
            limits = wire.decode(pb.SetBandwidthRequest, rest)
            engine.change(limits.workload_id, limits.if_name, wire.limits_to_set(limits))
        else:
            wire.decode(pb.CollectRequest, rest)
    except WorkloadError as error:
        # The text is sent in an HTTP/2 header.
        assert str(error).isprintable(), error
        assert len(str(error)) < 4096
        assert str(error).isascii() or not isinstance(error, InvalidArgument)
    finally:
        engine.close()


def policy_yaml(data: bytes) -> None:
    """Fuzz policies' files: two, at an empty line with a dash."""
    first, _, second = data.partition(b"\n-\n")
    read = convert.read_all([("a.yaml", first), ("b.yaml", second)])
    names_of = [one.name for one in read.policies]
    assert len(set(names_of)) == len(names_of)
    for one in read.policies:
        # What a file says can be kept and read back, or is refused.
        with contextlib.suppress(InvalidArgument):
            assert policy_wire.policies([policy_messages.policy(one)])


class _NoDeadline(Call):
    """See Call."""

    def time_remaining(self) -> float:
        return 1.0


def _record(number: int) -> Record:
    ips = (ip_address(f"10.0.0.{number}"), ip_address(f"fd00::{number}"))
    return Record(f"w{number}", "eth0", 1, f"wl{number}", number, 2, _MAC, 1500, ips, b"")


def _manager(directory: str, kernel: policy_fake.FakeKernel) -> Manager:
    manager = Manager(kernel, Store(directory), Conditions())
    manager.adopt([_record(1), _record(2)])
    return manager


def _is_restored(directory: str, kernel: policy_fake.FakeKernel) -> None:
    """A start finds in its files what is in force."""
    before = kernel.tables
    _manager(directory, kernel)
    assert kernel.tables == before


def policy_request(data: bytes) -> None:
    """Fuzz calls of policies: each is a byte for the method, two of length, and
    the request.
    """
    with tempfile.TemporaryDirectory(dir=_MEMORY) as directory:
        kernel = policy_fake.FakeKernel()
        manager = _manager(directory, kernel)
        methods = Methods(manager)
        calls = (methods.set_policies, methods.set_labels, methods.explain, methods.get_policies)
        rest = data
        while rest:
            length = int.from_bytes(rest[1:3])
            request, chosen, rest = rest[3 : 3 + length], rest[0] % 5, rest[3 + length :]
            try:
                if chosen < len(calls):
                    calls[chosen](request, _NoDeadline())
                else:
                    intent = wire.attach_intent(wire.decode(pb.AttachRequest, request))
                    manager.admit(_record(2), intent.identity)
            except WorkloadError as error:
                assert str(error).isprintable(), error
                assert str(error).isascii() or not isinstance(error, InvalidArgument)
        _is_restored(directory, kernel)


def policy_files(data: bytes) -> None:
    """Fuzz what a manager has kept: a byte for the file, two of length, and the
    content. What cannot be read isolates, and can be set again.
    """
    with tempfile.TemporaryDirectory(dir=_MEMORY) as directory:
        kernel = policy_fake.FakeKernel()
        manager = _manager(directory, kernel)
        manager.set_policies(Source("api", 1))
        manager.set_labels("w1", _WEB)
        kept = sorted(one for one in Path(directory).rglob("*") if one.is_file())
        rest = data
        while rest:
            length = int.from_bytes(rest[1:3])
            kept[rest[0] % len(kept)].write_bytes(rest[3 : 3 + length])
            rest = rest[3 + length :]
        manager = _manager(directory, kernel)
        _is_restored(directory, kernel)
        manager.replace_policies(Source("api"))
        assert kernel.tables == Tables()


_NODES: Final = ("me", "a", "b", "c")
_POD_NETWORKS: Final = (
    records.PodNetwork(ip_network("10.0.0.0/24"), 26),
    records.PodNetwork(ip_network("fd00::/62"), 64),
)
_OWN_KEY: Final = b"k" * 32


def _store_key(chosen: int, which: int) -> bytes:
    prefix = _POD_NETWORKS[which & 1].nth(which // 2 % 4)
    return (
        keys.CLUSTER,
        keys.member(_NODES[which % 4]),
        keys.claim(prefix),
        keys.node(_NODES[which % 4]),
    )[chosen]


def cluster_store(data: bytes) -> None:
    """Fuzz entries of the cluster's store: a byte for the kind of the key (with
    0x80: deleted; with 0x40: a valid value, by its first byte), one for its
    number, one of length, and the value.
    """
    directory, entries = Directory("me"), dict[bytes, Entry]()
    directory.set_own_keys(frozenset({_OWN_KEY}))
    me = membership.Me("me", identity=Identity(_OWN_KEY), underlay=IPv4Address("192.0.2.1"))
    peers: dict[str, Peer] = {}
    whole = records.encode_cluster(records.ClusterConfig(_POD_NETWORKS))
    rest = bytes([0x40, 0, 0]) + data
    for revision in range(1, 200):
        if len(rest) < 3:
            break
        kind, which, value, rest = rest[0], rest[1], rest[3 : 3 + rest[2]], rest[3 + rest[2] :]
        key = _store_key(kind & 3, which) if kind & 7 < 6 else keys.ROOT + value
        if kind & 0x40:
            first = value[0] if value else 0
            node_id = _NODES[first % 4]
            record = records.Record(
                _NODES[which % 4], bytes([first % 8 + 1]) * 32, None, 0,
                IPv4Address("192.0.2.2"), 1, (), "",
            )  # fmt: skip
            member = records.Member(bool(first & 1))
            value = (
                whole, records.encode_member(member), records.encode_claim(node_id),
                records.encode_record(record),
            )[kind & 3]  # fmt: skip
        if kind & 0x80:
            entries.pop(key, None)
            changes = directory.apply([Removal(key)])
        else:
            entries[key] = Entry(key, value, revision, which)
            changes = directory.apply([entries[key]])
        for note in changes.notes:
            assert note.isprintable(), note
            assert len(note) < 300, note
        peers.update(changes.peers)
        for node_id in changes.gone:
            del peers[node_id]
        shown = [key for peer in peers.values() for key in (peer.public_key, peer.next_public_key)]
        known = [key for key in shown if key is not None]
        assert len({*known, _OWN_KEY}) == len(known) + 1
        prefixes = [prefix for peer in peers.values() for prefix in peer.prefixes]
        decision = membership.decide(directory, me)
        assert not set(decision.own) & set(prefixes)
        assert len(set(prefixes)) == len(prefixes)
        me = dataclasses.replace(me, using=decision.own)
    assert directory.replace(entries.values()) == Changes()


TARGETS: Final[dict[str, Callable[[bytes], None]]] = {
    target.__name__: target
    for target in (
        netlink_messages,
        tracked_flows,
        netlink_conversation,
        cni_frame,
        cni_execution,
        node_configuration,
        dhcp_packet,
        dhcp_exchange,
        workload_request,
        cluster_store,
        policy_elements,
        policy_yaml,
        policy_request,
        policy_files,
    )
}
