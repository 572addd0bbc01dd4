# SPDX-License-Identifier: Apache-2.0
"""Attacks that a single node and a node in a cluster have to withstand.

Each raises AssertionError for packets that got through, and prints the traffic
on the uplink meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from ipaddress import ip_address, ip_network

from metropolis.node import allocs
from metropolis.node.core.network.rules.testing import packets
from metropolis.node.core.network.rules.testing.packets import ACK, FIN, PSH, RST, SYN, Packet
from metropolis.test.launch import checks
from metropolis.test.launch.cri import Pod
from metropolis.test.launch.lab import BRIDGE, OUTSIDE_PORT
from metropolis.test.security import frames
from metropolis.test.security.attacks import (
    END,
    FIRST_HOP,
    LIMIT_S,
    OUTSIDE,
    SERVICE_PORT,
    Site,
    address_of,
)
from osbase.test.agent.client import CommandError

# The mark of an attempt.
_PORT = 6666
_CLAIM = b"claim"
_TALK_PORT = 7002
# Seconds of silence. They prove nothing alone.
_SILENCE_S = 1
METADATA = {
    4: ("169.254.169.254", "169.254.1.2", "168.63.129.16", "100.100.100.200"),
    6: ("fd00:ec2::254", "fd20:ce::254"),
}
# How addresses begin that nobody has.
_INVENTED = ("192.0.2.", "2001:db8:bad::", "fe80::bad:")


def attempts(source: str, to: str, port: int) -> list[bytes]:
    """Return a packet of each kind that might begin or join a flow."""
    flags = (SYN, SYN | ACK, ACK, PSH | ACK, RST, FIN | ACK)
    ports = (_PORT, port)
    segments = (packets.tcp(source, to, ports, one, payload=_CLAIM) for one in flags)
    return [packets.udp(source, to, ports, _CLAIM), packets.echo(source, to, _CLAIM), *segments]


def lines(some: Iterable[Packet]) -> list[str]:
    """Return a line about each."""
    return [frames.to_text(one) for one in some]


def attempted(some: Iterable[Packet]) -> list[str]:
    """Return those that an attacker sent."""
    return lines(one for one in some if _PORT in one.ports or _CLAIM in one.data)


def show(title: str, some: Sequence[Packet]) -> None:
    """Print captured packets."""
    print(f"{title}: {len(some)} packets")
    for line in lines(some[:20]):
        print(f"    {line}")


async def nothing_enters(site: Site, victim: Pod, other: Pod, version: int) -> None:
    """An outsider, with any source, reaches no pod, TCP included."""
    to = address_of(victim, version)
    sources = (
        OUTSIDE[version],
        address_of(other, version),
        to,
        FIRST_HOP[version],
        site.address(version),
    )
    begin = len(site.sniffer.frames)
    async with routed(to, site.address(version)), knocking(to) as knock:
        tried = [one for source in sources for one in attempts(source, to, checks.PORT)]
        got = await site.into_pod(victim, version, tried)
        assert not knock.done()
    assert attempted(got) == []
    assert lines(one for one in got if checks.PORT in one.ports) == []
    told = [frames.payload(one) for one in got if one.source == OUTSIDE[version]]
    assert told == [END.encode()]
    sent = site.sent_by_node(begin)
    show(f"{len(tried)} attempts to enter, and a connection; the node sent", sent)
    assert lines(one for one in sent if one.source in (to, address_of(other, version))) == []


@contextlib.asynccontextmanager
async def routed(to: str, by: str) -> AsyncIterator[None]:
    """Make the outside route an address through the node."""
    version = ip_address(to).version

    async def route(action: str) -> int:
        process = await asyncio.create_subprocess_exec(
            "ip", f"-{version}", "route", action, to, "via", by, "dev", BRIDGE,
            "src", OUTSIDE[version],
        )  # fmt: skip
        return await process.wait()

    assert await route("add") == 0
    try:
        yield
    finally:
        assert await route("del") == 0


@contextlib.asynccontextmanager
async def knocking(to: str) -> AsyncIterator[asyncio.Task[object]]:
    """Try to connect to a pod's service, like any program."""

    async def connect() -> None:
        with contextlib.suppress(OSError):
            await asyncio.open_connection(to, checks.PORT)

    task: asyncio.Task[object] = asyncio.create_task(connect())
    # Its first segment is sent in the first step.
    await asyncio.sleep(0)
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def nothing_leaves(site: Site, attacker: Pod, version: int) -> None:
    """A pod sends packets that seem to belong to a flow; nothing leaves with
    its address, and a packet that begins a flow is masqueraded.
    """
    own, to = address_of(attacker, version), OUTSIDE[version]
    flags = (RST, RST | ACK, FIN, FIN | ACK, SYN | ACK, ACK, PSH | ACK, FIN | PSH, SYN | FIN, 0)
    tried = [
        packets.tcp(own, to, (_PORT + number, OUTSIDE_PORT), one)
        for number, one in enumerate(flags)
    ]
    # An unsolicited answer, errors about no flow of ours, and a packet that
    # begins one, to an address that does not answer: otherwise the pod's kernel
    # would send a RST, in a flow.
    nowhere = str(ip_address(to) + 1)
    about = packets.udp(to, own, (53, _PORT), _CLAIM)
    tried += [
        packets.echo(own, to, _CLAIM, reply=True),
        packets.port_unreachable(own, about),
        packets.too_big(own, about),
        packets.tcp(own, nowhere, (_PORT, OUTSIDE_PORT), SYN),
    ]
    left = await site.out_of_pod(attacker, version, tried)
    show(f"{len(tried)} packets without a flow; the node sent", left)
    assert lines(one for one in left if one.source == own) == []
    begun = [one for one in left if one.flags == SYN and one.to == nowhere]
    assert [one.source for one in begun] == [site.address(version)]
    assert lines(one for one in left if one.flags & RST) == []


async def metadata_stays(site: Site, attacker: Pod, version: int) -> None:
    """Requests to link-local addresses, and to a cloud's credential services,
    do not leave.
    """
    own = address_of(attacker, version)
    tried = [
        packet
        for to in METADATA[version]
        for packet in (
            packets.tcp(own, to, (_PORT, 80), SYN),
            packets.udp(own, to, (_PORT, 53), _CLAIM),
            packets.echo(own, to, _CLAIM),
        )
    ]
    left = await site.out_of_pod(attacker, version, tried)
    show(f"{len(tried)} questions for credentials; the node sent", left)
    assert lines(one for one in left if one.to in METADATA[version]) == []
    assert attempted(left) == []


async def sources_are_not_forged(site: Site, pod: Pod, version: int) -> None:
    """A packet from the uplink's link cannot have the source of a pod, the
    first hop or the node itself. (On that link, fe80::1 is any router's.)
    """
    to = site.address(version)
    sources = [address_of(pod, version), to]
    if version == 4:
        sources.append(FIRST_HOP[version])
    ports = (_PORT, SERVICE_PORT)
    tried = [packets.udp(one, to, ports, f"as {one}".encode()) for one in sources]
    # Other sources are allowed, and end the attempt.
    assert await site.into_node(version, tried) == [END]


async def services_are_out_of_reach(site: Site, attacker: Pod, version: int) -> None:
    """A pod reaches nothing that the node serves, and the node reaches pods."""
    own = address_of(attacker, version)
    hop = FIRST_HOP[version]
    targets = (site.address(version), hop)
    mac = await site.pod_mac(attacker)
    probes = [
        frames.ethernet(
            allocs.FIRST_HOP_MAC, mac, packets.udp(own, to, (_PORT, SERVICE_PORT), _CLAIM)
        )
        for to in targets
    ]
    scoped = [f"{hop}%eth0" if version == 6 and one == hop else one for one in targets]
    hosts = [f"[{one}]" if version == 6 else one for one in scoped]
    # All at once; the assertion shows differences.
    tries = [
        f"ping -{version} -c 1 -W {LIMIT_S:.0f} {one} >/dev/null || echo no answer from {one} &"
        for one in scoped
    ]
    tries += [
        f"wget -q -O /dev/null -T {_SILENCE_S} http://{host}:{SERVICE_PORT}/ && echo got {host} &"
        for host in hosts
    ]
    async with site.running(None, "serve", port=SERVICE_PORT, end=END) as heard:
        await site.pod_send(attacker, probes)
        done = await site.node.cri.exec(
            attacker.container, ["sh", "-c", "\n".join([*tries, "wait"])]
        )
        assert (done.status, done.stdout) == (0, ""), done
        # The services answer others.
        _, writer = await asyncio.open_connection(site.address(version), SERVICE_PORT)
        writer.close()
        assert await heard.line() == "connected"
        site.end_service(version)
        assert await heard.rest() == [END]
    fetch = checks.fetch(ip_address(own), checks.PORT, "name")
    done_by_node = await site.node.agent.run(list(fetch))
    assert done_by_node.text == attacker.name


async def neighbours_are_not_invented(site: Site, attacker: Pod) -> None:
    """Twenty forged senders leave no neighbour entries; the pod goes on."""
    mac = await site.pod_mac(attacker)
    tried = []
    for number in range(1, 21):
        ipv4, world, local = (f"{prefix}{number}" for prefix in _INVENTED)
        tried.append(frames.arp_request(mac, ipv4, FIRST_HOP[4]))
        tried += [frames.solicitation(mac, ipv6, FIRST_HOP[6]) for ipv6 in (world, local)]
    await site.pod_send(attacker, tried)
    # Its own addresses are solicited, and answered.
    await site.pod_ip(attacker, "neigh", "flush", "dev", "eth0")
    for version, hop in ((4, FIRST_HOP[4]), (6, f"{FIRST_HOP[6]}%eth0")):
        ping = ["ping", f"-{version}", "-c", "1", "-W", f"{LIMIT_S:.0f}", hop]
        done = await site.node.cri.exec(attacker.container, ping)
        assert done.status == 0, done
    known = (await site.node.agent.run(["ip", "neigh", "show"])).text
    assert [line for line in known.splitlines() if line.startswith(_INVENTED)] == []


type Forge = Callable[[str, str, tuple[int, int], tuple[int, int]], list[bytes]]


async def talk(site: Site, pod: Pod | None, version: int, forge: Forge) -> list[Packet]:
    """Connect a pod, or the node, to the outside; meanwhile send the result of
    forge(source, to, ports, sequence). Return the node's packets of the flow.

    sequence: the valid numbers. Raises CommandError if the connection ended.
    """
    outside = OUTSIDE[version]
    begin = len(site.sniffer.frames)

    def said(frame: bytes) -> Packet | None:
        one = frames.read(frame)
        if one is None or one.ports[1] != _TALK_PORT or frames.payload(one) != b"one\n":
            return None
        return one

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            line = await reader.readline()
            one = await site.sniffer.first(said, begin)
            own, acknowledged = frames.sequence(one)
            ports = (_TALK_PORT, one.ports[0])
            site.outsider_sends(forge(outside, one.source, ports, (acknowledged, own + len(line))))
            writer.write(line)
            writer.write(await reader.readline())
            await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, outside, _TALK_PORT):
        told = await site.run(pod, "talk", address=outside, port=_TALK_PORT, wait_s=LIMIT_S)
    assert told == "talked"
    sent = site.sent_by_node(begin)
    return [one for one in sent if one.ports[1] == _TALK_PORT]


def far_outside(
    source: str, to: str, ports: tuple[int, int], right: tuple[int, int]
) -> list[bytes]:
    """Return segments outside the window, which the flow has to survive."""
    own, acknowledged = right
    numbers = itertools.product((own + (1 << 30), own - (1 << 30)), (acknowledged, 0))
    return [
        packets.tcp(source, to, ports, flags, seq=seq % (1 << 32), ack=ack, payload=payload)
        for seq, ack in numbers
        for flags, payload in ((PSH | ACK, b"no\n"), (RST, b""), (RST | ACK, b""), (FIN | ACK, b""))
    ]


def exactly(source: str, to: str, ports: tuple[int, int], right: tuple[int, int]) -> list[bytes]:
    """Return a reset with exactly the numbers of the other end."""
    return [packets.tcp(source, to, ports, RST, seq=right[0], ack=right[1])]


async def segments_outside_the_window_end_nothing(
    site: Site, pod: Pod | None, version: int
) -> None:
    """They do not end the flow, and the node does not answer with a reset."""
    sent = await talk(site, pod, version, far_outside)
    show("segments far outside the window; the node sent", sent)
    assert lines(one for one in sent if one.flags & RST) == []
    # That they arrive: the one with the right number ends it.
    try:
        await talk(site, pod, version, exactly)
    except CommandError as error:
        assert "ConnectionResetError" in str(error), error
    else:
        raise AssertionError("the right reset ended nothing, so none arrives")


def of(networks: Iterable[str], some: Iterable[Packet]) -> list[str]:
    """Return the packets that are from one of the networks."""
    known = [ip_network(text) for text in networks]
    return lines(one for one in some if any(ip_address(one.source) in network for network in known))
