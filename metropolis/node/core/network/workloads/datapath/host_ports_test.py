# SPDX-License-Identifier: Apache-2.0
"""The text of host ports, what they take, and what they refuse."""

from collections.abc import Collection, Sequence
from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metropolis.node.core.network.workloads.datapath.elements import (
    Element,
    NftSet,
    found_of,
    unpack,
)
from metropolis.node.core.network.workloads.datapath.host_ports import PART
from metropolis.node.core.network.workloads.datapath.interface import Record
from metropolis.node.core.network.workloads.errors import FailedPrecondition, InvalidArgument
from metropolis.node.core.network.workloads.host_ports import (
    PORTS_MAX,
    PROTOCOLS,
    Mapping,
    parse,
    text_of,
)
from metropolis.node.core.network.workloads.model import IPAddress
from osbase.conntrack.delete import Filter, Flow
from osbase.netlink.sock_diag import Listener

NODE = ip_address("192.0.2.7")
NODE6 = ip_address("2001:db8::7")
POD, POD6 = ip_address("10.192.0.7"), ip_address("fd00:10:192::7")
IPS: dict[str, tuple[IPAddress, ...]] = {"4": (POD,), "6": (POD6,), "46": (POD, POD6)}


def record(text: str, ips: tuple[IPAddress, ...] = IPS["46"]) -> Record:
    return Record(
        workload_id="w",
        if_name="eth0",
        netns_cookie=1,
        host_interface="wl0123456789abc",
        host_ifindex=7,
        peer_ifindex=8,
        mac=bytes(6),
        mtu=1500,
        ips=ips,
        request=bytes(8),
        parts=(("h", text),),
    )


class Facts:
    """A host with two addresses, and sockets that listen."""

    def __init__(self, **sockets: tuple[str, int, str]) -> None:
        self.sockets = sockets

    def is_local(self, ip: IPAddress) -> bool:
        return ip in (NODE, NODE6) or (ip.version == 4 and ip.is_loopback)

    def listeners(self, protocol: str, ports: Collection[int]) -> Sequence[Listener]:
        found = []
        for inode, (of, port, address) in enumerate(self.sockets.values()):
            ip = ip_address(address)
            if of == protocol and port in ports:
                found.append(Listener(ip.version, port, None if ip.is_unspecified else ip, inode))
        return found

    def process_of(self, listener: Listener) -> str:
        return list(self.sockets)[listener.inode]

    def has_element(self, one: NftSet, key: bytes) -> bool:
        return False


@pytest.mark.parametrize(
    ("mappings", "text"),
    [
        ([Mapping("tcp", 80, 8080)], "t80=8080"),
        ([Mapping("udp", 53, 53, NODE)], "u53=53@192.0.2.7"),
        ([Mapping("sctp", 9, 9, NODE6)], "s9=9@2001:db8::7"),
        ([Mapping("tcp", 81, 91), Mapping("tcp", 80, 90), Mapping("tcp", 82, 92)], "t80-82=90"),
        ([Mapping("tcp", 80, 90), Mapping("tcp", 81, 92)], "t80=90,t81=92"),
        ([Mapping("tcp", 80, 90), Mapping("tcp", 82, 92)], "t80=90,t82=92"),
        ([Mapping("udp", 80, 90), Mapping("tcp", 80, 90)], "t80=90,u80=90"),
        (
            [Mapping("tcp", 80, 90, NODE), Mapping("tcp", 80, 90), Mapping("tcp", 80, 90, NODE6)],
            "t80=90,t80=90@192.0.2.7,t80=90@2001:db8::7",
        ),
        (
            [Mapping("tcp", 80, 1, ip_address("::")), Mapping("tcp", 80, 1, ip_address("0.0.0.0"))],
            "t80=1@0.0.0.0,t80=1@::",
        ),
        ([Mapping("tcp", 64512 + n, 1024 + n) for n in range(1024)], "t64512-65535=1024"),
        ([], ""),
    ],
)
def test_text(mappings: list[Mapping], text: str) -> None:
    assert text_of(mappings) == text
    assert text_of(reversed(mappings)) == text
    if text:
        assert set(parse(text)) == set(mappings)
        PART.check(text)


ports = st.integers(1, 65535)
addresses = st.one_of(st.none(), st.sampled_from([NODE, NODE6, ip_address("127.0.0.1")]))
mappings_of = st.builds(Mapping, st.sampled_from(PROTOCOLS), ports, ports, addresses)


def _key(one: Mapping) -> tuple[str, int, IPAddress | None]:
    return one.protocol, one.host_port, one.host_ip


@given(st.lists(mappings_of, min_size=1, max_size=20, unique_by=_key))
def test_what_is_written_is_read(mappings: list[Mapping]) -> None:
    assert sorted(map(str, parse(text_of(mappings)))) == sorted(map(str, mappings))
    assert set(parse(text_of(mappings))) == set(mappings)


@given(st.text(st.sampled_from("tus0123456789-=@.:,a"), max_size=40))
def test_garbage_is_refused_or_canonical(text: str) -> None:
    try:
        PART.check(text)
    except InvalidArgument as error:
        assert error.field == "port_mapping"
    else:
        assert text_of(parse(text)) == text


@pytest.mark.parametrize(
    "text",
    ["", "t80", "t80=", "t080=80", "t80=80,", "t81=1,t80=1", "t80-80=1", "t80-79=1", "t80=80@",
     "t80=80@x", "t80=1,t81=2", "t0=1", "t65536=1", "t65535=65536", "t65000-66000=1", "x80=80",
     "t1-2000=1", "t80=1@1.2.3", "t80=1@2001:DB8::7", "t80=1@2001:db8:0::7"],
)  # fmt: skip
def test_texts_that_no_attach_writes(text: str) -> None:
    with pytest.raises(InvalidArgument):
        PART.check(text)


@pytest.mark.parametrize(
    ("mappings", "why"),
    [
        ([Mapping("tcp", 0, 80)], "host_port 0: must be 1 to 65535"),
        ([Mapping("tcp", 65536, 80)], "host_port 65536: must be 1 to 65535"),
        ([Mapping("tcp", 80, 0)], "container_port 0: must be 1 to 65535"),
        ([Mapping("icmp", 80, 80)], "protocol 'icmp': must be tcp, udp or sctp"),
        ([Mapping("TCP", 80, 80)], "protocol 'TCP': must be tcp, udp or sctp"),
        ([Mapping("udp", 51820, 80)], "udp port 51820: is the node's own"),
        ([Mapping("udp", 51820, 80, NODE)], "udp port 51820 of 192.0.2.7: is the node's own"),
        ([Mapping("tcp", 80, 80), Mapping("tcp", 80, 81)], "tcp port 80: is asked for twice"),
        ([Mapping("tcp", 80, 80)] * 2, "tcp port 80: is asked for twice"),
        (
            [Mapping("tcp", 80, 80), Mapping("tcp", 80, 80, ip_address("::"))],
            "tcp port 80 of ::: is asked for twice",
        ),
        ([Mapping("tcp", 80, 80, ip_address("::1"))], "host_ip ::1: the kernel does not forward"),
        ([Mapping("tcp", 80, 80, ip_address("fe80::7"))], "host_ip fe80::7: is the address of a"),
        ([Mapping("tcp", 80, 80, ip_address("169.254.77.1"))], "169.254.77.1: is the address of"),
        ([Mapping("tcp", 80, 80, ip_address("224.0.0.1"))], "must be an address of the node"),
        ([Mapping("tcp", 80, 80, ip_address("255.255.255.255"))], "must be an address of the"),
        ([Mapping("tcp", 80, 80, ip_address("::ffff:192.0.2.7"))], "write it as 192.0.2.7"),
        ([Mapping("tcp", 1 + n, 80) for n in range(1025)], "more than 1024 ports"),
        ([Mapping("tcp", 1 + 3 * n, 80) for n in range(1024)], "recorded as .* ask for fewer"),
    ],
)
def test_requests_that_no_node_can_do(mappings: list[Mapping], why: str) -> None:
    with pytest.raises(InvalidArgument, match=why) as caught:
        text_of(mappings)
    assert caught.value.field == "port_mapping"


def test_the_error_has_all_mappings_that_are_wrong() -> None:
    wrong = [Mapping("tcp", 0, 80), Mapping("icmp", 80, 80), Mapping("tcp", 81, 70000)]
    with pytest.raises(InvalidArgument) as caught:
        text_of([*wrong, Mapping("tcp", 82, 82)])
    assert str(caught.value) == (
        "port_mapping: host_port 0: must be 1 to 65535; protocol 'icmp': must be tcp, udp or "
        "sctp; container_port 70000: must be 1 to 65535"
    )
    with pytest.raises(InvalidArgument, match=r"and 1016 more$"):
        text_of([Mapping("tcp", 0, 80)] * 1024)


def test_the_error_has_all_that_this_node_cannot_do() -> None:
    text = "t80=80@198.51.100.1,t80-81=80@198.51.100.2"
    with pytest.raises(InvalidArgument) as caught:
        PART.refuse(record(text), text, Facts())
    assert str(caught.value) == (
        "port_mapping: host_ip 198.51.100.1: is not an address of this node; "
        "host_ip 198.51.100.2: is not an address of this node"
    )
    text = "t80=80,u53=53"
    facts = Facts(nginx=("tcp", 80, "0.0.0.0"), bind=("udp", 53, "0.0.0.0"))
    with pytest.raises(FailedPrecondition) as listening:
        PART.refuse(record(text), text, facts)
    assert str(listening.value).count("listens at") == 2
    assert all(f"{one} port" in str(listening.value) for one in ("tcp", "udp"))


def test_single_ports_fit() -> None:
    """They are not successive, and have long numbers."""
    PART.check(text_of(Mapping("tcp", 65535 - 2 * n, 65535 - n) for n in range(75)))
    assert PORTS_MAX == 1024


@pytest.mark.parametrize(
    ("text", "ips", "found"),
    [
        ("t80=8080", "46", ["tcp . 80 = 10.192.0.7 . 8080", "tcp . 80 = fd00:10:192::7 . 8080"]),
        ("t80=8080", "4", ["tcp . 80 = 10.192.0.7 . 8080"]),
        ("t80=8080", "6", ["tcp . 80 = fd00:10:192::7 . 8080"]),
        ("t80=80@0.0.0.0", "46", ["tcp . 80 = 10.192.0.7 . 80"]),
        ("t80=80@::", "46", ["tcp . 80 = fd00:10:192::7 . 80"]),
        ("u5-6=7@192.0.2.7", "46",
         ["192.0.2.7 . udp . 5 = 10.192.0.7 . 7", "192.0.2.7 . udp . 6 = 10.192.0.7 . 8"]),
        ("s5=7@2001:db8::7", "46", ["2001:db8::7 . sctp . 5 = fd00:10:192::7 . 7"]),
    ],
)  # fmt: skip
def test_elements(text: str, ips: str, found: list[str]) -> None:
    elements = PART.elements(record(text, IPS[ips]), text)
    shown = [(unpack(one.set.key, one.key), unpack(one.set.data, one.data)) for one in elements]
    assert [f"{key} = {data}" for key, data in shown if data] == found
    own = [key for key, data in shown if not data]
    led = {data.partition(" . ")[0] for _, data in shown if data}
    assert own == [f"{ip} . {ip}" for ip in map(str, IPS[ips]) if ip in led]
    assert {one.set for one in elements} <= set(PART.sets)


def test_a_conflict_is_one_of_elements_and_of_resources() -> None:
    """Two attachments have a common key if and only if they have a common
    resource.
    """
    texts = ["t80=80", "t80=81@0.0.0.0", "t80=80@::", "t80=80@192.0.2.7", "t80=80@2001:db8::7",
             "u80=80", "t79-81=79", "t81=80", "s80=80@192.0.2.7", "t80=80@192.0.2.8"]  # fmt: skip
    others = (ip_address("10.192.0.8"), ip_address("fd00:10:192::8"))
    for text in texts:
        for other in texts:
            keys, resources = [], []
            for one, ips in ((text, IPS["46"]), (other, others)):
                keys.append({(e.set, e.key) for e in PART.elements(record(one, ips), one)})
                resources.append({resource.key for resource in PART.resources(one, ips)})
            assert bool(keys[0] & keys[1]) == bool(resources[0] & resources[1]), (text, other)


@pytest.mark.parametrize(
    ("text", "ips", "needed"),
    [("t80=80", "46", True), ("t80=80", "6", False), ("t80=80@192.0.2.7", "46", False),
     ("t80=80@127.0.0.1", "4", True), ("t80=80@::", "46", False), ("t8=8@127.0.0.9", "4", True)],
)  # fmt: skip
def test_route_localnet(text: str, ips: str, needed: bool) -> None:
    assert bool(PART.requests(record(text, IPS[ips]), text)) == needed


@pytest.mark.parametrize(
    ("text", "ips", "why"),
    [
        ("t80=80@198.51.100.1", "46", "host_ip 198.51.100.1: is not an address of this node"),
        ("t80=80@2001:db8::7", "4", "the workload has no IPv6 address"),
        ("t80=80@192.0.2.7", "6", "the workload has no IPv4 address"),
        ("t80=80@::", "4", "the workload has no IPv6 address"),
        ("t80=80@0.0.0.0,t80=80@::", "4", ""),
        ("t80=80@192.0.2.7,t80=80@2001:db8::7", "46", ""),
        ("t80=80", "4", ""),
    ],
)
def test_addresses(text: str, ips: str, why: str) -> None:
    if not why:
        PART.refuse(record(text, IPS[ips]), text, Facts())
        return
    with pytest.raises(InvalidArgument, match=why):
        PART.refuse(record(text, IPS[ips]), text, Facts())


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("t80=80", []),
        ("t80=80@0.0.0.0,t80=80@::", []),
        ("t81=80@127.0.0.1,t80=80@192.0.2.7,u53=53@2001:db8::7", []),
        (
            "t80=80,t80=80@192.0.2.7,t80=80@198.51.100.1,u53=53@2001:db8::9",
            ["host port 80/tcp of 198.51.100.1", "host port 53/udp of 2001:db8::9"],
        ),
        (
            "t80-85=80@198.51.100.1",
            ["host ports 80/tcp, 81/tcp, 82/tcp, 83/tcp, 2 more of 198.51.100.1"],
        ),
    ],
)
def test_addresses_that_the_node_has_lost(text: str, found: list[str]) -> None:
    findings = [*PART.host_findings(record(text, IPS["46"]), text, Facts())]
    assert [one.what for one in findings] == found
    assert {one.found for one in findings} <= {"the node has no such address now"}
    # It is no repair's business.
    assert PART.elements(record(text, IPS["46"]), text)


@pytest.mark.parametrize(
    ("text", "socket", "refused"),
    [
        ("t80=80", ("tcp", 80, "0.0.0.0"), True),
        ("t80=80", ("tcp", 80, "::"), True),
        ("t80=80", ("udp", 80, "0.0.0.0"), False),
        ("t80=80", ("tcp", 81, "0.0.0.0"), False),
        ("t79-81=1", ("tcp", 81, "0.0.0.0"), True),
        ("t80=80", ("tcp", 80, "192.0.2.7"), True),
        ("t80=80", ("tcp", 80, "127.0.0.1"), True),
        ("u53=53", ("udp", 53, "127.0.0.53"), False),
        ("u53=53", ("udp", 53, "169.254.77.1"), False),
        ("u53=53", ("udp", 53, "::1"), False),
        ("t80=80@192.0.2.7", ("tcp", 80, "192.0.2.8"), False),
        ("t80=80@192.0.2.7", ("tcp", 80, "192.0.2.7"), True),
        ("t80=80@192.0.2.7", ("tcp", 80, "0.0.0.0"), True),
        ("t80=80@192.0.2.7", ("tcp", 80, "::"), False),
        ("t80=80@::", ("tcp", 80, "0.0.0.0"), False),
    ],
)
def test_a_process_that_listens(text: str, socket: Any, refused: bool) -> None:
    facts = Facts(nginx=socket)
    if not refused:
        PART.refuse(record(text), text, facts)
        return
    with pytest.raises(FailedPrecondition, match=r"nginx listens at .*; stop it"):
        PART.refuse(record(text), text, facts)


class Both(Facts):
    """A process listens by IPv6, and gets what comes by IPv4, too."""

    def listeners(self, protocol: str, ports: Collection[int]) -> Sequence[Listener]:
        return [Listener(6, 80, None, 0, both=True)]


@pytest.mark.parametrize(
    ("text", "ips"), [("t80=80@192.0.2.7", "46"), ("t80=80", "4"), ("t80=80", "6")]
)
def test_a_socket_of_both_families(text: str, ips: str) -> None:
    with pytest.raises(FailedPrecondition, match="nginx listens at all addresses"):
        PART.refuse(record(text, IPS[ips]), text, Both(nginx=("tcp", 80, "::")))


def test_ports_of_one_address_are_taken_over() -> None:
    """From a workload with the port of all addresses; not TCP, nor others'."""
    asked = [("sctp", 53, NODE6), ("tcp", 53, NODE), ("udp", 53, NODE), ("udp", 53, NODE6),
             ("udp", 54, NODE)]  # fmt: skip
    text = text_of([Mapping(protocol, port, 1, ip) for protocol, port, ip in asked])
    theirs = text_of([Mapping(protocol, 53, 9) for protocol in ("udp", "sctp", "tcp")])
    some, others = Node(*PART.elements(record(""), theirs)), Node()
    assert set(PART.taken_over(record(text), text, some)) == {
        Filter(17, 4, 53, NODE, True), Filter(17, 6, 53, NODE6, True),
        Filter(132, 6, 53, NODE6, True),
    }  # fmt: skip
    assert not PART.taken_over(record(text), text, others)
    assert not PART.taken_over(record("u53=1"), "u53=1", some)


def test_what_an_element_has_led() -> None:
    text = text_of(
        [
            Mapping("sctp", 53, 1),
            Mapping("tcp", 53, 1),
            Mapping("udp", 54, 1, NODE),
            Mapping("udp", 55, 1, NODE6),
        ]
    )
    found = [found_of(7, one) for one in PART.elements(record(text), text)]
    assert set(PART.left_over(found)) == {
        Filter(132, 4, 53, None, True, POD), Filter(132, 6, 53, None, True, POD6),
        Filter(17, 4, 54, NODE, True, POD), Filter(17, 6, 55, NODE6, True, POD6),
    }  # fmt: skip
    for size in range(40):
        spoilt = [replace(one, key=bytes(size)) for one in found]
        assert not [one for one in PART.left_over(spoilt) if one.port]


LOCAL = {
    ip_address(one)
    for one in ("192.0.2.7", "192.0.2.8", "127.0.0.1", "127.0.0.2", "169.254.77.1",
                "2001:db8::7", "2001:db8::8", "::1", "fe80::5")
}  # fmt: skip


class Node(Facts):
    """A host with many addresses, where others have elements."""

    def __init__(self, *elements: Element) -> None:
        super().__init__()
        self.elements = {(one.set, one.key) for one in elements}

    def is_local(self, ip: IPAddress) -> bool:
        return ip in LOCAL

    def has_element(self, one: NftSet, key: bytes) -> bool:
        return (one, key) in self.elements


@pytest.mark.parametrize(
    ("text", "destination", "led_to", "stale"),
    [
        # Untranslated, at the addresses that the port has.
        ("u53=5353", "192.0.2.7", None, True),
        ("u53=5353", "2001:db8::7", None, True),
        ("u53=5353", "127.0.0.1", None, True),
        # At others: of the node's own services, and beyond the node.
        ("u53=5353", "127.0.0.2", None, False),
        ("u53=5353", "169.254.77.1", None, False),
        ("u53=5353", "::1", None, False),
        ("u53=5353", "fe80::5", None, False),
        ("u53=5353", "198.51.100.1", None, False),
        ("u53=5353", "2001:db8::99", None, False),
        ("u53=5353@192.0.2.8", "192.0.2.7", None, False),
        ("u53=5353@192.0.2.8", "192.0.2.8", None, True),
        ("u53=5353@127.0.0.2", "127.0.0.2", None, True),
        # Led: right; to another workload; to another port; by others.
        ("u53=5353", "192.0.2.7", ("10.192.0.7", 5353), False),
        ("u53=5353", "192.0.2.7", ("10.192.0.8", 5353), True),
        ("u53=5353", "192.0.2.7", ("10.192.0.7", 5354), True),
        ("u53=5353", "2001:db8::7", ("fd00:10:192::7", 5353), False),
        ("u53=5353", "2001:db8::7", ("fd00:10:192::8", 5353), True),
        ("u53=5353", "10.96.0.10", ("10.192.0.8", 5353), False),
        # Flows of another port, or protocol.
        ("u54=5353", "192.0.2.7", None, False),
        ("t53=5353", "192.0.2.7", None, False),
        # Its own port of one address goes first; so does another workload's.
        ("u53=5353,u53=9@192.0.2.8", "192.0.2.8", ("10.192.0.7", 9), False),
        ("u53=5353,u53=9@192.0.2.8", "192.0.2.8", ("10.192.0.7", 5353), True),
        ("u53=5353", "192.0.2.8", ("10.192.0.8", 9), True),
    ],
)
def test_which_flows_are_stale(
    text: str, destination: str, led_to: tuple[str, int] | None, stale: bool
) -> None:
    to = None if led_to is None else (ip_address(led_to[0]), led_to[1])
    flow = Flow(17, ip_address(destination), 53, to)
    assert PART.stale(record(text), text, Node())(flow) == stale


@pytest.mark.parametrize("destination", ["192.0.2.8", "2001:db8::8"])
def test_a_flow_of_another_workloads_port_of_one_address_is_not_stale(destination: str) -> None:
    address = ip_address(destination)
    others = PART.elements(record("u53=9"), f"u53=9@{destination}")
    led_to = (IPS["46"][address.version == 6], 9)
    stale = PART.stale(record("u53=5353"), "u53=5353", Node(*others))
    assert not stale(Flow(17, address, 53, led_to))
    assert not stale(Flow(17, address, 53, None))
    elsewhere = {4: ip_address("192.0.2.7"), 6: ip_address("2001:db8::7")}[address.version]
    assert stale(Flow(17, elsewhere, 53, led_to))


def test_constants() -> None:
    """The letter is on links: it never changes."""
    assert (PART.letter, PART.name) == ("h", "port_mapping")


def test_stale_flows_are_of_the_nodes_port() -> None:
    """Where the client sent to, not where the packet is delivered; TCP has
    none.
    """
    text = text_of(
        [
            Mapping("tcp", 80, 8080),
            Mapping("udp", 53, 5353),
            Mapping("sctp", 99, 9999, NODE6),
            Mapping("udp", 54, 5454, ip_address("0.0.0.0")),
            Mapping("udp", 55, 5555, NODE),
        ]
    )
    keys = ((17, 4, 53, None), (17, 6, 53, None), (132, 6, 99, NODE6), (17, 4, 54, None),
            (17, 4, 55, NODE))  # fmt: skip
    to = {ip.version: ip for ip in IPS["46"]}
    ends = {Filter(*key) for key in keys}
    assert set(PART.flows(record(text), text, begins=True)) == {
        replace(one, led=False) for one in ends
    }
    assert set(PART.flows(record(text), text, begins=False)) == {
        replace(one, led=True, to=to[one.version]) for one in ends
    }
    text = text_of([Mapping("udp", 53, 5353)])
    of_ipv6 = list(PART.flows(record(text, IPS["6"]), text, begins=False))
    assert of_ipv6 == [Filter(17, 6, 53, led=True, to=IPS["6"][0])]
    text = text_of([Mapping("tcp", 53, 5353)])
    assert not PART.flows(record(text), text, begins=True)
