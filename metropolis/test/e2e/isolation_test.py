# SPDX-License-Identifier: Apache-2.0
"""A pod that is root in its own network cannot impersonate others.

The attacker has CAP_NET_ADMIN and CAP_NET_RAW in its network namespace, in one
case by a user namespace that owns it. Each attempt first has to succeed with
its own identity, so a check that cannot fail is found.
"""

import asyncio
import contextlib
import re
import shlex
from collections.abc import AsyncIterator, Awaitable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio

from metropolis.node import allocs
from metropolis.test.e2e.observe import ping_counts
from metropolis.test.launch import checks
from metropolis.test.launch.checks import Plan
from metropolis.test.launch.cri import CriError, Pod
from metropolis.test.launch.lab import OUTSIDE_IPV4, OUTSIDE_IPV6, OUTSIDE_PORT, Lab
from metropolis.test.launch.node import Node
from metropolis.test.launch.shared import Shared
from osbase.test.agent.client import AgentError

pytestmark = pytest.mark.asyncio(loop_scope="session")

# Seconds to wait for an answer that has to come, and for one that must not.
# The second alone proves nothing: packets are counted at their destination.
_ANSWER_S = 15
_SILENCE_S = 1
_ROOT_UID = 1 << 20


@dataclass(frozen=True)
class Scene:
    """Pods of a node. mapped: another attacker, whose user namespace owns its
    network namespace. Each test leaves them with their own addresses.
    """

    node: Node
    attacker: Pod
    mapped: Pod
    victim: Pod
    other: Pod


@contextlib.asynccontextmanager
async def four_pods(node: Node) -> AsyncIterator[Scene]:
    """Start the pods at once; remove them at the end."""
    capabilities = ("NET_ADMIN", "NET_RAW")

    def run(name: str, root_uid: int | None) -> Awaitable[Pod]:
        command = checks.pod_command(name)
        if root_uid is None:
            return node.cri.run_pod(name, command)
        return node.cri.run_pod(name, command, capabilities, root_uid)

    wanted = {"attacker": 0, "mapped": _ROOT_UID, "victim": None, "other": None}
    pods = await asyncio.gather(*(run(name, uid) for name, uid in wanted.items()))
    yield Scene(node, *pods)
    with contextlib.suppress(CriError, AgentError):
        await asyncio.gather(*(node.cri.remove_pod(pod.id) for pod in pods))


@pytest_asyncio.fixture(loop_scope="session")
async def scene(node: Node, shared: Shared) -> Scene:
    return await shared.part(four_pods, node)


@dataclass(frozen=True)
class Arrived:
    """Counts of packets that reached a namespace's own sockets."""

    ipv4_echoes: int
    ipv6_echoes: int
    tcp_segments: int

    @staticmethod
    def parse(text: str) -> Arrived:
        """Parse /proc/net/snmp followed by /proc/net/snmp6."""
        values = dict(re.findall(r"^(\w+)\s+(\d+)$", text, re.MULTILINE))
        lines = [line.split() for line in text.splitlines() if ": " in line]
        for names, numbers in zip(lines[::2], lines[1::2], strict=True):
            pairs = zip(names[1:], numbers[1:], strict=True)
            values |= {names[0] + name: number for name, number in pairs}
        return Arrived(
            int(values["Icmp:InEchos"]),
            int(values["Icmp6InEchos"]),
            int(values["Tcp:InSegs"]),
        )

    def since(self, before: Arrived) -> Arrived:
        """Return the difference."""
        return Arrived(
            self.ipv4_echoes - before.ipv4_echoes,
            self.ipv6_echoes - before.ipv6_echoes,
            self.tcp_segments - before.tcp_segments,
        )


async def arrived(node: Node, pod: Pod | None = None) -> Arrived:
    """Return the counts of a pod, or of the node itself."""
    command = ["cat", "/proc/net/snmp", "/proc/net/snmp6"]
    if pod is None:
        return Arrived.parse((await node.agent.run(command)).text)
    return Arrived.parse(await inside(node, pod, *command))


async def inside(node: Node, pod: Pod, *command: str) -> str:
    """Run a command in a pod, which has to succeed; return its output."""
    done = await node.cri.exec(pod.container, command)
    assert done.status == 0, done
    return done.stdout


async def script(node: Node, pod: Pod, *lines: str) -> str:
    """Run a script in a pod, all of which has to succeed; return its output."""
    return await inside(node, pod, "sh", "-ec", "\n".join(lines))


async def spoofed(node: Node) -> tuple[int, int]:
    """Return the packets dropped for their source, IPv4 and IPv6."""
    text = (await node.agent.run(["nft", "list", "table", "inet", allocs.NFTABLES_TABLE])).text
    counts = []
    for name in ("spoofed_ipv4", "spoofed_ipv6"):
        found = re.search(rf"counter {name} {{[^}}]*packets (\d+)", text)
        assert found is not None, text
        counts.append(int(found[1]))
    return counts[0], counts[1]


def add(pod: Pod) -> list[str]:
    """Return script lines that give eth0 the addresses of `pod`."""
    return [
        f"ip addr add {pod.ipv4}/32 dev eth0",
        f"ip -6 addr add {pod.ipv6}/128 dev eth0",
        "while ip -6 addr show dev eth0 | grep -q tentative; do sleep 0.1; done",
    ]


def drop(pod: Pod) -> list[str]:
    """Return script lines that take the addresses of `pod` from eth0."""
    return [
        f"ip addr del {pod.ipv4}/32 dev eth0",
        f"ip -6 addr del {pod.ipv6}/128 dev eth0",
    ]


def become(pod: Pod, instead_of: Pod) -> list[str]:
    """Return script lines that give eth0 the addresses of one pod only."""
    hop = allocs.FIRST_HOP_IPV4
    return [
        *add(pod),
        *drop(instead_of),
        # The route was removed with its preferred source address.
        f"ip route replace default via {hop} dev eth0 src {pod.ipv4}",
        # The following packets are really sent.
        *(f"ip route get {ip}" for ip in (hop, OUTSIDE_IPV4)),
        f"ip -6 route get {OUTSIDE_IPV6}",
    ]


def probes(sender: Pod, source: Pod, other: Pod, wait_s: int) -> list[Plan]:
    """Return the attempts of `sender` with the addresses of `source`."""
    plans = []
    for own, hop, peer, outside in (
        (source.ipv4, allocs.FIRST_HOP_IPV4, other.ipv4, OUTSIDE_IPV4),
        (source.ipv6, allocs.FIRST_HOP_IPV6, other.ipv6, OUTSIDE_IPV6),
    ):
        assert own is not None
        assert peer is not None
        targets = (("first hop", hop), ("pod", peer), ("outside", outside))
        for target, ip in targets:
            scoped = f"{ip}%eth0" if ip.is_link_local and ip.version == 6 else str(ip)
            ping = (
                *("ping", f"-{ip.version}", "-c", "2", "-i", "0.2", "-W", str(wait_s)),
                *("-I", str(own), scoped),
            )
            plans.append(Plan(sender.name, f"ping {target}", ip.version, ip, ping, None))
        for target, ip, port, path in (
            ("pod", peer, checks.PORT, "name"),
            ("outside", outside, OUTSIDE_PORT, ""),
        ):
            host = f"[{ip}]" if ip.version == 6 else str(ip)
            url = f"http://{host}:{port}/{path}"
            fetch = ("wget", "-q", "-O", "-", "-T", str(wait_s), url)
            plans.append(Plan(sender.name, f"fetch {target}", ip.version, ip, fetch, None))
    return plans


async def answered(
    node: Node, sender: Pod, plans: Sequence[Plan], first: Sequence[str] = ()
) -> list[str]:
    """Run the plans, after lines of a script that have to succeed; return the
    names of the plans that got an answer.
    """
    # One command: starting one in a container is slow.
    lines = ["set -e", *first, "set +e", checks.script(plans)]
    outcome = checks.judge(plans, await inside(node, sender, "sh", "-c", "\n".join(lines)))
    assert len(outcome) == len(plans)
    # A plan that did not run proves nothing.
    assert [check for check in outcome if check.detail.endswith("(status -)")] == []
    return [check.name for check in outcome if check.ok]


def names(plans: Sequence[Plan]) -> list[str]:
    """Return the names of the plans."""
    return [planned.name for planned in plans]


async def all_answered(node: Node, sender: Pod, other: Pod, first: Sequence[str] = ()) -> None:
    """Everything works with the sender's own addresses."""
    plans = probes(sender, sender, other, _ANSWER_S)
    before = await arrived(node, other)
    assert await answered(node, sender, plans, first) == names(plans)
    got = (await arrived(node, other)).since(before)
    assert (got.ipv4_echoes, got.ipv6_echoes) == (2, 2)
    assert got.tcp_segments > 0


@pytest.mark.parametrize("root_uid", [0, _ROOT_UID], ids=["node-userns", "own-userns"])
async def test_nothing_is_sent_as_another(scene: Scene, lab: Lab, root_uid: int) -> None:
    node, victim, other = scene.node, scene.victim, scene.other
    attacker = scene.attacker if root_uid == 0 else scene.mapped
    mapped = (await inside(node, attacker, "cat", "/proc/self/uid_map")).split()
    assert mapped[:2] == ["0", str(root_uid)]
    pid, _ = await node.cri.sandbox_process(attacker.id)
    owner = await node.shell(f"stat -c %u /proc/{pid}")
    assert int(owner) == root_uid
    await all_answered(node, attacker, other)

    # Its only address is the victim's.
    lab.seen.clear()
    before = await asyncio.gather(arrived(node, other), arrived(node), spoofed(node))
    plans = probes(attacker, victim, other, _SILENCE_S)
    assert await answered(node, attacker, plans, become(victim, attacker)) == []
    after = await asyncio.gather(arrived(node, other), arrived(node), spoofed(node))
    assert after[0].since(before[0]) == Arrived(0, 0, 0)
    on_node = after[1].since(before[1])
    assert (on_node.ipv4_echoes, on_node.ipv6_echoes) == (0, 0)
    assert lab.seen == []
    # Two pings to each of three, and at least one SYN to each of two. In IPv6
    # the solicitation of the first hop is also spoofed, and the other packets
    # may wait for its answer in vain.
    dropped = (after[2][0] - before[2][0], after[2][1] - before[2][1])
    print(f"dropped for their source, IPv4 and IPv6: {dropped}")
    assert dropped[0] >= 8
    assert dropped[1] >= 3

    await all_answered(node, attacker, other, become(attacker, victim))


async def test_traffic_to_a_taken_address_has_its_rightful_owner(scene: Scene) -> None:
    node, attacker, victim, other = scene.node, scene.attacker, scene.victim, scene.other
    # Announcements that a neighbour on an Ethernet would believe.
    claim = f"arping -U -c 2 -I eth0 -s {victim.ipv4} {victim.ipv4} || true"
    await script(node, attacker, *add(victim), claim)
    before = await asyncio.gather(arrived(node, attacker), arrived(node, victim))
    for _ in range(2):
        # From other pods and from the node.
        plans = [
            one
            for one in checks.plan([other, victim], [], [OUTSIDE_IPV4, OUTSIDE_IPV6], OUTSIDE_PORT)
            if one.target == "pod"
        ]
        pings = [("ping", "-c", "1", "-W", str(_ANSWER_S), str(ip)) for ip in victim.ips]
        plans += [
            Plan(other.name, "victim", ip.version, ip, ping, None)
            for ip, ping in zip(victim.ips, pings, strict=True)
        ]
        outcome, *_ = await asyncio.gather(
            checks.run(node.cri, [other, victim], plans),
            node.shell(" && ".join(map(shlex.join, pings))),
        )
        assert len(outcome) == 6
        assert [check for check in outcome if not check.ok] == []
    after = await asyncio.gather(arrived(node, attacker), arrived(node, victim))
    assert after[0].since(before[0]) == Arrived(0, 0, 0)
    got = after[1].since(before[1])
    assert (got.ipv4_echoes, got.ipv6_echoes) == (4, 4)
    # And the attacker would have been counted: its own address is.
    await inside(node, other, "ping", "-c", "1", "-W", str(_ANSWER_S), str(attacker.ipv4))
    assert (await arrived(node, attacker)).since(after[0]).ipv4_echoes == 1
    await script(node, attacker, *drop(victim))


async def test_another_mac_brings_nothing(scene: Scene) -> None:
    node, attacker, victim, other = scene.node, scene.attacker, scene.victim, scene.other
    own = (await inside(node, attacker, "cat", "/sys/class/net/eth0/address")).strip()
    theirs = (await inside(node, victim, "cat", "/sys/class/net/eth0/address")).strip()
    assert own != theirs
    # So that it would accept packets for the victim.
    await script(node, attacker, *add(victim))
    for mac in (theirs, allocs.FIRST_HOP_MAC.hex(":")):
        before = await asyncio.gather(arrived(node, attacker), arrived(node, victim))
        # During the victim's traffic, the MAC changes and is announced.
        talk = [f"ping -q -c 10 -i 0.2 -W {_ANSWER_S} {ip} &" for ip in victim.ips]
        change = [
            f"ip link set dev eth0 address {mac}",
            f"ping -c 2 -i 0.2 -W {_SILENCE_S} -I {victim.ipv4} {other.ipv4} &",
            f"ping -6 -c 2 -i 0.2 -W {_SILENCE_S} -I {victim.ipv6} {other.ipv6} &",
            "wait",
            "cat /sys/class/net/eth0/address",
        ]
        changed, talked = await asyncio.gather(
            script(node, attacker, *change), script(node, other, *talk, "wait")
        )
        assert changed.split()[-1] == mac
        # And again after that.
        more = [f"ping -q -c 3 -i 0.2 -W {_ANSWER_S} {ip} &" for ip in victim.ips]
        talked_after = await script(node, other, *more, "wait")
        assert [ping_counts(talked), ping_counts(talked_after)] == [[(10, 10)] * 2, [(3, 3)] * 2]
        after = await asyncio.gather(arrived(node, attacker), arrived(node, victim))
        assert after[0].since(before[0]) == Arrived(0, 0, 0)
        got = after[1].since(before[1])
        assert (got.ipv4_echoes, got.ipv6_echoes) == (13, 13)
    # With its original MAC everything works as before.
    back = [f"ip link set dev eth0 address {own}", *drop(victim)]
    await all_answered(node, attacker, other, back)


async def test_the_service_is_out_of_reach(scene: Scene) -> None:
    node, attacker = scene.node, scene.attacker
    sockets = (allocs.WORKLOAD_SOCKET, allocs.CNI_SOCKET)
    stat = ["stat", "-c", "%n %F %a %u:%g", allocs.RUNTIME_DIR, *sockets]
    assert (await node.agent.run(stat)).text.splitlines() == [
        f"{allocs.RUNTIME_DIR} directory 700 0:0",
        *(f"{path} socket 600 0:0" for path in sockets),
    ]
    there = await node.shell(f"find {Path(allocs.RUNTIME_DIR).parent} -type s")
    assert set(sockets) <= set(there.splitlines())
    # The pod has neither the directory nor any socket of the node.
    done = await node.cri.exec(attacker.container, ["ls", "/run/metropolis"])
    assert done.status != 0
    assert "No such file" in done.stderr
    assert await inside(node, attacker, "find", "/", "-xdev", "-type", "s") == ""
    # Abstract sockets belong to the network namespace: there are none.
    listed = "/proc/net/unix"
    assert allocs.RUNTIME_DIR in await node.shell(f"cat {listed}")
    assert len((await inside(node, attacker, "cat", listed)).splitlines()) == 1
