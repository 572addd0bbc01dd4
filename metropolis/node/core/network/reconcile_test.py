# SPDX-License-Identifier: Apache-2.0
"""Node core puts back what firewalls, sysctl files and network scripts change.

The world is conftest's. Whatever was changed, at the end a pod's new flows
reach the server, masqueraded, and the first hop answers the pod.
"""

from __future__ import annotations

import contextlib
import json
import select
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from pathlib import Path

import grpc
import pytest

from metropolis.node import allocs
from metropolis.node.core.network.testing.nodecore import NodeCore
from metropolis.node.core.network.workloads.spec import workload_pb2
from osbase.ip import IPAddress
from osbase.test.namespaces import LIMIT_S, inside, sh

SERVER: dict[int, IPAddress] = {4: IPv4Address("192.0.2.1"), 6: IPv6Address("2001:db8:2::1")}
FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}
POD_NETWORKS = {4: ip_network("10.192.0.0/24"), 6: ip_network("fd00:10:192::/112")}
PORT = 7777
REPAIRS = 5
TABLE = f"inet {allocs.NFTABLES_TABLE}"


def nft(command: str) -> None:
    subprocess.run(["nft", command], check=True)


def setting(path: str, value: int) -> None:
    Path("/proc/sys/net", path).write_text(str(value))


def masquerade() -> str:
    """The rule that masquerades, for `nft delete rule`."""
    chain = ""
    for line in sh(f"nft --handle list table {TABLE}").splitlines():
        words = line.split()
        if words[:1] == ["chain"]:
            chain = words[1]
        if chain and "masquerade" in words:
            return f"{TABLE} {chain} handle {words[-1]}"
    raise AssertionError("nothing is masqueraded")


@pytest.fixture
def node(uplink: None, core: NodeCore) -> NodeCore:
    """Run node core with an uplink and pod-a."""
    core.start()
    core.wait_for("up0 has 192.0.2.50/24")
    core.wait_for("reachable by 192.0.2.50, 2001:db8:2:")
    core.attach("pod-a")
    assert_pod_reaches_world()
    return core


def assert_pod_reaches_world() -> None:
    """New flows of both families, masqueraded; the first hop is asked for."""
    sh("nsenter --net=/run/netns/pod-a ip neigh flush all")
    for version, server in SERVER.items():
        with inside("srv"):
            receiver = socket.socket(FAMILY[version], socket.SOCK_DGRAM)
        with inside("pod-a"):
            pod = socket.socket(FAMILY[version], socket.SOCK_DGRAM)
        with receiver, pod:
            receiver.bind((str(server), PORT))
            deadline = time.monotonic() + LIMIT_S
            while True:
                assert time.monotonic() < deadline, f"nothing arrives in IPv{version}"
                with contextlib.suppress(OSError):
                    pod.sendto(b"hello", (str(server), PORT))
                if select.select([receiver], [], [], 0.1)[0]:
                    seen = ip_address(receiver.recvfrom(100)[1][0])
                    # What was sent before it was put back may still come.
                    if seen not in POD_NETWORKS[version]:
                        break


def repaired(node: NodeCore, ward: str) -> str:
    """Wait for the next line that says that something was put back."""
    node.seen.clear()
    return node.wait_for(f".ward-{ward}: put back: ")


def pod_link() -> str:
    """The host's end of the only pod's link."""
    (link,) = json.loads(sh("ip -json link show group 8"))
    return str(link["ifname"])


def change(command: str) -> None:
    """nft(8), ip(8), or a setting and its value."""
    command = command.replace("LINK", pod_link()) if "LINK" in command else command
    for version in (4, 6):
        if f"POD{version}" in command:
            routes = sh(f"ip -{version} route show proto 77 dev {pod_link()}")
            pod = next(line for line in routes.splitlines() if not line.startswith("fe80"))
            command = command.replace(f"POD{version}", pod.split()[0])
    if "NODE6" in command:
        line = sh("ip -6 -oneline address show dev up0 scope global")
        command = command.replace("NODE6", line.split()[3].partition("/")[0])
    program, _, rest = command.partition(" ")
    if program == "nft":
        nft(rest.replace("MASQUERADE", masquerade()) if "MASQUERADE" in rest else rest)
    elif program == "ip":
        sh(command)
    else:
        setting(program, int(rest))


CHANGES: list[tuple[str, list[str]]] = [
    ("rules", ["nft flush ruleset"]),
    ("rules", [f"nft delete table {TABLE}"]),
    ("rules", [f"nft flush table {TABLE}"]),
    ("rules", [f"nft add table {TABLE} {{ flags dormant ; }}"]),
    ("rules", ["nft delete rule MASQUERADE"]),
    ("sysctls", ["ipv4/ip_forward 0"]),
    ("sysctls", ["ipv6/conf/all/forwarding 0"]),
    ("sysctls", ["ipv4/conf/all/rp_filter 2"]),
    ("sysctls", ["ipv4/conf/all/arp_ignore 1"]),
    # Links of which it was never set take it over at once.
    ("sysctls", ["ipv4/conf/default/arp_ignore 8"]),
    # Routes go with it; the ward that puts them back needs it, perhaps first.
    ("workloads", [f"ip address del {allocs.FIRST_HOP_IPV4}/32 dev lo"]),
    ("sysctls", ["ipv6/conf/lo/disable_ipv6 1"]),
    ("host", ["ip address flush dev lo"]),
    ("host", ["ip link set lo down"]),
    ("host", ["ip rule flush", "ip -6 rule flush"]),
    ("workloads", ["ip route flush proto 77"]),
    ("workloads", ["ip -6 route flush proto 77"]),
    ("workloads", ["ip link set LINK down"]),
    ("workloads", ["ipv4/conf/LINK/forwarding 0"]),
    # Neighbours have no events; a flush of the rules has one.
    (
        "workloads",
        [
            *(
                f"ip neigh replace {pod} lladdr 02:00:00:00:00:99 dev LINK nud permanent"
                for pod in ("POD4", "POD6")
            ),
            "ip rule flush",
        ],
    ),
    ("workloads", ["ip address flush dev LINK"]),
    ("workloads", ["ipv6/conf/all/disable_ipv6 1"]),
    ("uplink", ["ip -4 address flush dev up0"]),
    ("uplink", ["ip route flush proto 76"]),
    ("uplink", ["ip route del table local local 192.0.2.50 dev up0"]),
    ("uplink", ["ip -6 route del table local local NODE6 dev up0"]),
    ("uplink", ["ip route del 192.0.2.0/24 dev up0"]),
    ("uplink", ["ip link set up0 down"]),
    ("uplink", ["ip link set up0 arp off", "ip rule flush"]),
    ("uplink", ["ipv4/conf/up0/forwarding 0"]),
    ("uplink", ["ipv4/conf/up0/arp_ignore 8"]),
    # As a firewall that is reloaded, beside a sysctl file and a script.
    ("rules", ["nft flush ruleset", "ipv4/ip_forward 0", "ip rule flush"]),
]
AT_ONCE = 5  # changes that one node core puts back, one after the other


def dealt(count: int) -> list[list[tuple[str, list[str]]]]:
    """The changes, some for each node core, of as many wards as can be: none
    puts so much back that it is taken for a fight.
    """
    groups = -(-len(CHANGES) // count)
    return [CHANGES[first::groups] for first in range(groups)]


@pytest.mark.parametrize("changes", dealt(AT_ONCE))
def test_changes_are_put_back(node: NodeCore, changes: list[tuple[str, list[str]]]) -> None:
    """Logged, with traffic as before, and Status is OK."""
    for ward, commands in changes:
        # The consequences of the change before are over.
        node.drain()
        began = time.monotonic()
        for command in commands:
            change(command)
        repaired(node, ward)
        print(f"{commands}: put back in {time.monotonic() - began:.2f} s")
        assert_pod_reaches_world()
        assert node.problem() == "", commands
        status = node.stub().Status(workload_pb2.StatusRequest(), timeout=LIMIT_S)
        assert f"{ward} " in {note.name: note.text for note in status.notes}["repairs"]


def fight(node: NodeCore, ward: str, command: str) -> None:
    """Until it is left."""
    for _ in range(REPAIRS):
        change(command)
        repaired(node, ward)
    node.seen.clear()
    change(command)
    node.wait_for("put back 5 times within 60 s and changed again by another program: left so")


def until(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_fight_is_left_said_and_forgiven(node: NodeCore) -> None:
    """A setting: the other program gives up, and then it is guarded again."""
    fight(node, "sysctls", "ipv4/ip_forward 0")
    problem = node.problem()
    assert "net.ipv4.ip_forward was 0, not 1; put back 5 times" in problem
    assert Path("/proc/sys/net/ipv4/ip_forward").read_text().strip() == "0"
    checked = node.stub().Check(workload_pb2.CheckRequest(workload_id="pod-a"), timeout=LIMIT_S)
    assert "net.ipv4.ip_forward was 0, not 1" in str(checked)
    # The others are still guarded.
    nft("flush ruleset")
    repaired(node, "rules")
    assert node.problem() == problem
    change("ipv4/ip_forward 1")
    node.wait_for("root.network.ward-sysctls: all is as it should be again")
    assert node.problem() == ""
    change("ipv4/ip_forward 0")
    repaired(node, "sysctls")
    assert_pod_reaches_world()


def test_a_fight_about_rules(node: NodeCore) -> None:
    """A firewall that flushes all, and one day loads what it had saved."""
    saved = sh("nft list ruleset")
    fight(node, "rules", "nft flush ruleset")
    assert f"{TABLE.partition(' ')[0]} table" in node.problem()
    assert sh("nft list ruleset") == ""
    subprocess.run(["nft", "-f", "-"], input=saved, text=True, check=True)
    node.wait_for("root.network.ward-rules: all is as it should be again")
    assert node.problem() == ""
    assert_pod_reaches_world()


def test_two_wards_at_once(node: NodeCore) -> None:
    """Everything at once, several times over."""
    for _ in range(3):
        node.seen.clear()
        for command in ("nft flush ruleset", "ipv4/ip_forward 0", "ip rule flush"):
            change(command)
        for ward in ("rules", "sysctls", "host"):
            node.wait_for(f".ward-{ward}: put back: ")
    assert_pod_reaches_world()


def test_foreign_commits_are_no_damage(node: NodeCore) -> None:
    """A kube-proxy that commits all day: nothing is put back, and what is
    damaged meanwhile is.
    """
    stop = threading.Event()

    def busy() -> None:
        number = 0
        while not stop.wait(0.02):
            number += 1
            nft(f"add table ip proxy; add chain ip proxy c{number}")
            nft("delete table ip proxy")

    proxy = threading.Thread(target=busy)
    proxy.start()
    try:
        node.seen.clear()
        change("ip rule flush")
        node.wait_for("root.network.ward-host: put back: ")
        assert not [line for line in node.seen if "ward-rules" in line]
        nft(f"delete table {TABLE}")
        node.wait_for("root.network.ward-rules: put back: ")
    finally:
        stop.set()
        proxy.join()
    assert_pod_reaches_world()


def test_attaches_beside_repairs(node: NodeCore) -> None:
    """Pods come and go while somebody breaks what there is: none fails, and
    no part of a removal is put back.
    """
    stub = node.stub()
    failures: list[Exception] = []
    stop = threading.Event()

    def churn() -> None:
        try:
            while not stop.is_set():
                node.attach("pod-b")
                stub.Detach(workload_pb2.DetachRequest(workload_id="pod-b"), timeout=LIMIT_S)
        except grpc.RpcError as error:
            failures.append(error)

    thread = threading.Thread(target=churn)
    thread.start()
    try:
        for command, ward in (
            ("nft flush ruleset", "rules"),
            ("ip rule flush", "host"),
            ("ipv4/ip_forward 0", "sysctls"),
        ):
            change(command)
            repaired(node, ward)
    finally:
        stop.set()
        thread.join()
    assert failures == []
    assert "ward-workloads: put back" not in "".join(node.seen)
    assert_pod_reaches_world()
    assert node.problem() == ""


def test_what_changes_while_the_service_is_away(node: NodeCore) -> None:
    """It is right when it is back."""
    assert node.stop() == 0
    for command in ("nft flush ruleset", "ipv4/ip_forward 0", "ip rule flush"):
        change(command)
    node.start()
    node.wait_for("reachable by 192.0.2.50, 2001:db8:2:")
    assert_pod_reaches_world()


def test_settings_that_are_read_only(uplink: None, core: NodeCore) -> None:
    """As /proc/sys is in many containers: Status says so, nothing else fails;
    the node has its uplink, and running pods have their network.
    """
    core.start()
    core.wait_for("up0 has 192.0.2.50/24")
    core.attach("pod-a")
    assert core.stop() == 0
    setting("ipv4/conf/all/send_redirects", 1)
    sh("mount --bind /proc/sys /proc/sys")
    try:
        sh("mount -o remount,bind,ro /proc/sys")
        core.start()
        core.wait_for("up0 has 192.0.2.50/24")
        core.wait_for("reachable by 192.0.2.50, 2001:db8:2:")
        assert "net.ipv4.conf.all.send_redirects = 0: EROFS" in core.problem()
        assert_pod_reaches_world()
    finally:
        sh("umount --lazy /proc/sys")  # node core keeps files of it open
    core.wait_for("root.network.ward-sysctls: put back: ")
    until(lambda: core.problem() == "")


def test_a_quiet_node_puts_nothing_back(node: NodeCore) -> None:
    """Not after its start, nor after an attach, a removal, a restart."""
    node.attach("pod-b")
    node.stub().Detach(workload_pb2.DetachRequest(workload_id="pod-b"), timeout=LIMIT_S)
    # Each ward has looked since, at the latest when something was restored.
    for command, ward in (
        ("ipv4/ip_forward 0", "sysctls"),
        ("nft flush ruleset", "rules"),
        ("ip rule flush", "host"),
    ):
        change(command)
        node.wait_for(f".ward-{ward}: put back: ")
    lines = [line for line in node.seen if ": put back: " in line]
    assert len(lines) == 3, lines
