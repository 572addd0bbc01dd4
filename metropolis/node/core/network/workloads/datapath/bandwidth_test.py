# SPDX-License-Identifier: Apache-2.0
"""Limits in the kernel: what they let through, what is put back, and that
nothing is left.
"""

import subprocess
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from ipaddress import ip_address, ip_network
from socket import AF_INET, AF_INET6, MSG_WAITALL, SHUT_RDWR, SOCK_STREAM, socket

import pytest

from metropolis.node import allocs
from metropolis.node.core.network.workloads.bandwidth import (
    LETTER,
    Bandwidth,
    Limit,
    changed,
    of_parts,
    part_of,
)
from metropolis.node.core.network.workloads.datapath import removal
from metropolis.node.core.network.workloads.datapath.bandwidth import PART, BandwidthLimits
from metropolis.node.core.network.workloads.datapath.host import Host
from metropolis.node.core.network.workloads.datapath.interface import Record
from metropolis.node.core.network.workloads.datapath.veth import KernelDatapath
from metropolis.node.core.network.workloads.engine.engine import Engine
from metropolis.node.core.network.workloads.errors import (
    FailedPrecondition,
    KernelRefused,
    WorkloadError,
)
from metropolis.node.core.network.workloads.model import AttachIntent, Attachment
from metropolis.node.core.network.workloads.testing.lab import Pod, await_equal, objects
from osbase.netlink import qdisc, shaping
from osbase.netlink.errors import BatchError
from osbase.netlink.message import Request
from osbase.netlink.transport import NetlinkSocket
from osbase.test.namespaces import sh

MBIT = 10**6
BOTH = Bandwidth(Limit(20 * MBIT), Limit(10 * MBIT))
WINDOW_S = 0.7
NODE: dict[int, str] = {AF_INET: "198.51.100.1", AF_INET6: "2001:db8::1"}


def started() -> Engine:
    engine = Engine(KernelDatapath((PART,)))
    engine.start()
    engine.set_prefixes([ip_network("10.0.0.0/24"), ip_network("fd00::/120")])
    return engine


@dataclass
class World:
    """An engine, and pods by workload."""

    engine: Engine = field(default_factory=started)
    pods: dict[str, Pod] = field(default_factory=dict)

    def attach(self, workload_id: str, limits: Bandwidth = BOTH) -> Attachment:
        pod = self.pods.setdefault(workload_id, Pod())
        intent = AttachIntent(workload_id, pod.path, "eth0", parts=part_of(limits))
        return self.engine.attach(intent)

    def limit(self, limits: Bandwidth, workload_id: str = "w1") -> None:
        self.engine.change(workload_id, "eth0", (LETTER, changed(limits)))

    def restart(self) -> None:
        self.engine.close()
        self.engine = started()

    def findings(self, workload_id: str = "w1") -> list[str]:
        (checked,) = self.engine.check(workload_id)
        return [one.what for one in checked.findings]


@pytest.fixture
def world() -> Iterator[World]:
    sh("ip link set lo up")
    sh("sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1")
    for address in NODE.values():
        sh(f"ip addr replace {address} dev lo nodad")
    made = World()
    before = objects()
    yield made
    made.engine.collect(lambda _, __: False)
    made.engine.settle()
    assert ifbs() == []
    made.engine.close()
    for pod in made.pods.values():
        pod.close()
    assert await_equal(objects, before) == before


def ifbs() -> list[str]:
    """The names of the links of the kind."""
    lines = sh("ip -br link show type ifb").splitlines()
    return [line.split()[0] for line in lines]


def other(made: Attachment) -> str:
    return "wb" + made.host_interface[2:]


# ---- What they let through --------------------------------------------------


def received(server: socket, client: socket, address: str, window_s: float) -> tuple[int, float]:
    """Have the client send as fast as it can; return the bytes that the server
    got, and the time since before the first one, in seconds.
    """
    server.bind((address, 0))
    server.listen()
    # Its first packet may be lost, before the carrier is noticed.
    client.connect(server.getsockname()[:2])
    taken, _ = server.accept()
    began = time.monotonic()

    def send() -> None:
        try:
            while client.send(bytes(65536)):
                pass
        except OSError:
            pass  # it is shut down

    sender = threading.Thread(target=send)
    sender.start()
    count = 0
    while time.monotonic() < began + window_s:
        count += len(taken.recv(1 << 20))
    elapsed = time.monotonic() - began
    for one in (client, taken):
        one.shutdown(SHUT_RDWR)
        one.close()
    server.close()
    sender.join()
    return count, elapsed


def within(rate: int, measured: tuple[int, float]) -> None:
    """Assert that it is not more than the rate, nor much less: a machine that
    does other things delivers less. How exact a limit is: bench/limits.
    """
    count, elapsed = measured
    share = count * 8 / (rate * elapsed)
    assert 0.2 < share < 1.03, f"{share:.3f} of {rate}"


@pytest.mark.parametrize("family", [AF_INET, AF_INET6])
@pytest.mark.parametrize("rate", [MBIT, 10 * MBIT, 100 * MBIT])
def test_from_and_to_the_node(world: World, family: int, rate: int) -> None:
    made = world.attach("w1", Bandwidth(Limit(rate), Limit(rate * 2)))
    pod, ip = world.pods["w1"], str(made.ips[family == AF_INET6])
    to = received(pod.socket(family, SOCK_STREAM), host(family), ip, WINDOW_S)
    within(rate, to)
    node = NODE[family]
    back = received(host(family), pod.socket(family, SOCK_STREAM), node, WINDOW_S)
    within(rate * 2, back)


@pytest.mark.parametrize("family", [AF_INET, AF_INET6])
def test_between_pods_of_one_node(world: World, family: int) -> None:
    """The lower limit of the two that are passed holds."""
    world.attach("w1", Bandwidth(egress=Limit(8 * MBIT)))
    made = world.attach("w2", Bandwidth(ingress=Limit(4 * MBIT)))
    one, two = (world.pods[name].socket(family, SOCK_STREAM) for name in ("w1", "w2"))
    within(4 * MBIT, received(two, one, str(made.ips[family == AF_INET6]), WINDOW_S))
    made = world.attach("w3", Bandwidth())
    one, three = (world.pods[name].socket(family, SOCK_STREAM) for name in ("w1", "w3"))
    within(8 * MBIT, received(three, one, str(made.ips[family == AF_INET6]), WINDOW_S))


def test_an_absurd_burst_changes_nothing(world: World) -> None:
    burst = 2**32 - 1
    made = world.attach("w1", Bandwidth(Limit(5 * MBIT, burst), Limit(5 * MBIT, burst)))
    pod = world.pods["w1"]
    server = pod.socket(AF_INET, SOCK_STREAM)
    within(5 * MBIT, received(server, host(AF_INET), str(made.ips[0]), WINDOW_S))
    client = pod.socket(AF_INET, SOCK_STREAM)
    within(5 * MBIT, received(host(AF_INET), client, NODE[AF_INET], WINDOW_S))


def host(family: int) -> socket:
    made = socket(family, SOCK_STREAM)
    made.settimeout(10)
    return made


# ---- Life -------------------------------------------------------------------


def test_limits_are_made_found_and_removed(world: World) -> None:
    made = world.attach("w1")
    assert ifbs() == [other(made)]
    assert world.findings() == []
    world.restart()
    assert [one.parts for one in world.engine.list()] == [part_of(BOTH)]
    assert world.findings() == []
    assert world.attach("w1") == made
    world.engine.detach("w1")
    world.engine.settle()
    assert ifbs() == []


def test_only_what_workloads_send_needs_another_link(world: World) -> None:
    world.attach("w1", Bandwidth(ingress=Limit(MBIT)))
    assert ifbs() == []
    assert world.findings() == []


TAKEN: dict[str, tuple[Callable[[Attachment], str], set[str]]] = {
    "root": (lambda made: f"tc qdisc del dev {made.host_interface} root", {"limit of wl"}),
    "rate": (
        lambda made: (
            f"tc qdisc replace dev {made.host_interface} root handle 6d77: "
            "tbf rate 1gbit burst 100k limit 100k"
        ),
        {"limit of wl"},
    ),
    "other": (lambda made: f"tc qdisc replace dev {other(made)} root pfifo", {"limit of wb"}),
    "clsact": (lambda made: f"tc qdisc del dev {made.host_interface} clsact", {"redirect of wl"}),
    "filter": (
        lambda made: f"tc filter del dev {made.host_interface} ingress",
        {"redirect of wl"},
    ),
    "down": (lambda made: f"ip link set {other(made)} down", {"state of wb"}),
    "gone": (lambda made: f"ip link del {other(made)}", {"link wb"}),
}


@pytest.mark.parametrize("what", TAKEN)
@pytest.mark.parametrize("restart", [False, True])
def test_what_others_take_away_is_put_back(world: World, what: str, restart: bool) -> None:
    take, findings = TAKEN[what]
    made = world.attach("w1")
    sh(take(made))
    assert {one.removesuffix(made.host_interface[2:]) for one in world.findings()} == findings
    if restart:
        world.restart()
    else:
        repairs = world.engine.repair(lambda _: True)
        assert [one.error for one in repairs] == [""] * len(repairs)
    assert world.findings() == []
    pod = world.pods["w1"]
    client = pod.socket(AF_INET, SOCK_STREAM)
    within(10 * MBIT, received(host(AF_INET), client, NODE[AF_INET], WINDOW_S))


def test_check_says_what_a_limit_is_as_it_was_set(world: World) -> None:
    """In bits of IP packets per second, not in bytes of Ethernet."""

    def says(command: str) -> tuple[str, str]:
        sh(f"tc qdisc {command}")
        (one,) = world.engine.check("w1")[0].findings
        return one.expected, one.found

    made = world.attach("w1")
    here = f"dev {made.host_interface} root"
    # 1000 packets of 1500 bytes in a second, each with 14 more.
    rate = "handle 6d77: tbf rate 1514000bps burst 100k limit 100k"
    assert says(f"replace {here} {rate}") == ("20000000 bit/s", "12000000 bit/s")
    assert says(f"del {here}") == ("20000000 bit/s", "nothing")
    assert says(f"add {here} tbf rate 2523333bps burst 10140b limit 90k") == (
        "20000000 bit/s, burst 80896 bit, queue 585560 bit",
        "20000000 bit/s, burst 81120 bit, queue 737280 bit",
    )


def test_a_pod_that_ends_leaves_nothing(world: World) -> None:
    world.attach("w1")
    world.pods.pop("w1").close()
    assert await_equal(lambda: len(ifbs()), 0) == 0


def test_a_start_deletes_what_belongs_to_nothing(world: World) -> None:
    """The link went while the service was away."""
    world.attach("w1")
    kept = world.attach("w2")
    world.engine.close()
    world.pods.pop("w1").close()
    assert await_equal(lambda: len(sh("ip -br link show type veth").splitlines()), 1) == 1
    assert len(ifbs()) == 2
    world.engine = started()
    assert ifbs() == [other(kept)]
    assert world.findings("w2") == []


def test_no_packet_passes_after_a_detach(world: World) -> None:
    """Nor one that waits in the other link."""
    world.attach("w1", Bandwidth(egress=Limit(8000)))
    pod, node = world.pods["w1"], NODE[AF_INET]
    server = socket(AF_INET, 2)
    server.bind((node, 0))
    server.settimeout(0.5)
    client = pod.socket(AF_INET, 2)
    client.connect(server.getsockname())
    for _ in range(10):
        client.send(bytes(1400))
    server.recv(2000)
    world.engine.detach("w1")
    server.setblocking(False)
    arrived = 0
    try:
        while server.recv(2000):
            arrived += 1
    except BlockingIOError:
        pass
    server.settimeout(2.5)
    with pytest.raises(TimeoutError):
        server.recv(2000)
    assert arrived < 8


# ---- Changes ----------------------------------------------------------------

CHANGES = {
    "none": Bandwidth(),
    "in": Bandwidth(ingress=Limit(6 * MBIT)),
    "out": Bandwidth(egress=Limit(6 * MBIT)),
    "both": Bandwidth(Limit(12 * MBIT), Limit(3 * MBIT)),
}


def rates(made: Attachment) -> tuple[bool, bool]:
    """Whether the kernel has a limit to and from the workload."""
    names = [line.split() for line in sh("tc qdisc show").splitlines() if "tbf" in line]
    links = {words[words.index("dev") + 1] for words in names}
    return made.host_interface in links, other(made) in links


@pytest.mark.parametrize("before", CHANGES)
@pytest.mark.parametrize("now", CHANGES)
def test_limits_are_changed(world: World, before: str, now: str) -> None:
    made = world.attach("w1", CHANGES[before])
    names = sh(f"ip link show {made.host_interface}").count("altname")
    for _ in range(2):
        world.limit(CHANGES[now])
        assert rates(made) == (bool(CHANGES[now].ingress.rate), bool(CHANGES[now].egress.rate))
        assert ifbs() == ([other(made)] if CHANGES[now].egress.rate else [])
        clsact = sh(f"tc qdisc show dev {made.host_interface}").count("clsact")
        assert clsact == bool(CHANGES[now].egress.rate)
        assert world.findings() == []
        assert world.engine.repair(lambda _: True) == []
        world.restart()
        (found,) = world.engine.list()
        assert of_parts(found.parts) == CHANGES[now]
    assert sh(f"ip link show {made.host_interface}").count("altname") == names + (before == "none")
    world.limit(CHANGES[before])
    assert rates(made) == (bool(CHANGES[before].ingress.rate), bool(CHANGES[before].egress.rate))


@pytest.mark.parametrize("family", [AF_INET, AF_INET6])
def test_what_passes_after_a_change(world: World, family: int) -> None:
    """The rate is the new one, up and down, in both directions."""
    made = world.attach("w1", Bandwidth())
    pod, ip = world.pods["w1"], str(made.ips[family == AF_INET6])
    for rate in (4 * MBIT, 40 * MBIT, 8 * MBIT):
        world.limit(Bandwidth(Limit(rate), Limit(rate * 2)))
        to = received(pod.socket(family, SOCK_STREAM), host(family), ip, WINDOW_S)
        within(rate, to)
        back = received(host(family), pod.socket(family, SOCK_STREAM), NODE[family], WINDOW_S)
        within(rate * 2, back)


@pytest.mark.parametrize("by", ["change", "repair"])
def test_a_long_packet_that_waits_when_the_burst_becomes_less(world: World, by: str) -> None:
    """The kernel would keep it for ever, and all that comes after it."""
    made = world.attach("w1", Bandwidth(egress=Limit(80 * MBIT if by == "change" else 8 * MBIT)))
    if by == "repair":
        sh(
            f"tc qdisc replace dev {other(made)} root handle 6d77: "
            "tbf rate 80mbit burst 40k limit 300k"
        )
    client = world.pods["w1"].socket(AF_INET, SOCK_STREAM)
    with host(AF_INET) as server, client:
        server.bind((NODE[AF_INET], 0))
        server.listen()
        client.connect(server.getsockname())
        client.settimeout(10)
        taken, _ = server.accept()
        with taken:
            sender = threading.Thread(target=client.sendall, args=(bytes(2_000_000),))
            sender.start()
            left = 2_000_000 - len(taken.recv(200_000, MSG_WAITALL))
            if by == "change":
                world.limit(Bandwidth(egress=Limit(8 * MBIT)))
            else:
                world.engine.repair(lambda _: True)
            while left:
                got = len(taken.recv(left))
                assert got
                left -= got
            sender.join()
    assert world.findings() == []


def test_open_flows_stay(world: World) -> None:
    """A connection goes on through every change."""
    made = world.attach("w1", Bandwidth())
    server = world.pods["w1"].socket(AF_INET, SOCK_STREAM)
    server.bind((str(made.ips[0]), 0))
    server.listen()
    with host(AF_INET) as client, server:
        client.connect(server.getsockname())
        taken, _ = server.accept()
        with taken:
            for limits in (*CHANGES.values(), Bandwidth()):
                world.limit(limits)
                client.sendall(b"to")
                assert taken.recv(2) == b"to"
                taken.sendall(b"fro")
                assert client.recv(3) == b"fro"


@pytest.mark.parametrize("before", CHANGES)
def test_a_change_that_is_refused_is_undone(world: World, before: str) -> None:
    """The second link's name is taken, or its place has another's qdisc."""
    made = world.attach("w1", CHANGES[before])
    seen = sh(f"tc qdisc show dev {made.host_interface}"), ifbs()
    if CHANGES[before].egress.rate:
        sh(f"tc qdisc del dev {made.host_interface} clsact")
        sh(f"tc qdisc add dev {made.host_interface} ingress")
    else:
        sh(f"ip link add {other(made)} type veth peer name theirs")
    limits = Bandwidth(Limit(9 * MBIT), Limit(9 * MBIT))
    with pytest.raises(KernelRefused, match="change 'w1': "):
        world.limit(limits)
    assert of_parts(world.engine.list()[0].parts) == CHANGES[before]
    if CHANGES[before].egress.rate:
        sh(f"tc qdisc del dev {made.host_interface} ingress")
    else:
        sh(f"ip link del {other(made)}")
    world.engine.repair(lambda _: True)
    assert world.findings() == []
    assert (sh(f"tc qdisc show dev {made.host_interface}"), ifbs()) == seen
    world.limit(limits)
    assert world.findings() == []


def test_a_link_of_an_older_version_is_not_changed() -> None:
    """It would lose the limit at the next start."""
    record = Record(
        workload_id="w1",
        if_name="eth0",
        netns_cookie=1,
        host_interface="wl0123456789abc",
        host_ifindex=7,
        peer_ifindex=2,
        mac=bytes(6),
        mtu=1500,
        ips=(ip_address("10.0.0.1"),),
        request=bytes(8),
        version=1,
    )
    now = replace(record, parts=((LETTER, changed(BOTH)),))
    with pytest.raises(FailedPrecondition, match="an older version attached it"):
        KernelDatapath((PART,)).change(record, now)


def test_a_link_that_has_lost_its_text_still_sends(world: World) -> None:
    """A start deletes the second link, which nothing asks for any more, and
    what the workload sends does not go there any more.
    """
    made = world.attach("w1")
    world.engine.close()
    shown = sh(f"ip link show {made.host_interface}").split()
    (text,) = (word for word in shown if word.startswith("mw2p.") and ".b11." in word)
    sh(f"ip link property del dev {made.host_interface} altname {text}")
    world.engine = started()
    assert ifbs() == []
    client = world.pods["w1"].socket(AF_INET, SOCK_STREAM)
    count, _ = received(host(AF_INET), client, NODE[AF_INET], WINDOW_S)
    assert count


# ---- Other programs ---------------------------------------------------------


def test_the_name_of_the_other_link_is_taken(world: World) -> None:
    """Their link stays, whatever fails of ours."""
    name = other(world.attach("w1"))
    world.engine.detach("w1", until_gone=True)
    sh(f"ip link add {name} type veth peer name theirs")
    with pytest.raises(WorkloadError, match=f"ifb {name}: EEXIST"):
        world.attach("w1")
    world.attach("w2")
    assert "theirs" in sh(f"ip -br link show {name}")
    sh(f"ip link del {name}")
    world.attach("w1")


def test_a_repair_that_fails_is_told(world: World) -> None:
    name = other(world.attach("w1"))
    sh(f"ip link del {name}")
    sh(f"ip link add {name} type veth peer name theirs")
    repairs = world.engine.repair(lambda _: True)
    assert any(f"ifb {name}: EEXIST" in one.error for one in repairs), repairs
    world.engine.detach("w1", until_gone=True)
    assert "theirs" in sh(f"ip -br link show {name}")
    sh(f"ip link del {name}")


def test_a_filter_before_ours_is_found(world: World) -> None:
    made = world.attach("w1")
    command = f"tc filter add dev {made.host_interface} ingress pref 1 protocol all bpf bytecode"
    subprocess.run([*command.split(), "1,6 0 0 0"], check=True)
    assert [one.split(" wl")[0] for one in world.findings()] == ["redirect of"]


def test_an_ingress_qdisc_is_not_taken_for_ours(world: World) -> None:
    made = world.attach("w1", Bandwidth(Limit(MBIT)))
    sh(f"tc qdisc add dev {made.host_interface} ingress")
    with NetlinkSocket() as sock, pytest.raises(BatchError, match="EINVAL"):
        sock.batch([shaping.del_clsact(made.host_ifindex, made.host_interface)])
    assert "ingress" in sh(f"tc qdisc show dev {made.host_interface}")


def test_a_link_is_not_opened_by_a_second_cut(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its clsact has the drops then, and stays."""
    world.attach("w1")
    world.attach("w2")
    records = world.engine._ledger.attached()
    removed: list[int] = []
    remove = shaping.del_clsact

    def recorded(index: int, name: str) -> Request:
        removed.append(index)
        return remove(index, name)

    monkeypatch.setattr(shaping, "del_clsact", recorded)
    datapath = world.engine._datapath
    datapath.cut_off(records[:1])
    datapath.cut_off(records)
    datapath.cut_off(records)
    assert removed == [one.host_ifindex for one in records]


def test_drops_that_were_refused_are_asked_for_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A link with a clsact and no drops is open, not cut off."""
    world.attach("w1")
    records = world.engine._ledger.attached()
    datapath = world.engine._datapath
    with monkeypatch.context() as patched:
        patched.setattr(removal, "drop_all", lambda block: qdisc.drop_all(block + 2))
        for _ in range(2):
            with pytest.raises(KernelRefused, match="drop all of block"):
                datapath.cut_off(records)
    datapath.cut_off(records)
    for block in allocs.REMOVAL_BLOCKS:
        assert "bytecode '1,6 0 0 2'" in sh(f"tc filter show block {block}")


def test_differences_of_a_part_are_repaired_once(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = world.attach("w1")
    for name in (made.host_interface, other(made)):
        sh(f"tc qdisc del dev {name} root")
    sh(f"ip link set {other(made)} down")
    asked: list[int] = []
    sent: list[int] = []
    requests, batch = BandwidthLimits.requests, Host.batch

    def counted(part: BandwidthLimits, record: Record, text: str) -> Sequence[Request]:
        asked.append(record.host_ifindex)
        return requests(part, record, text)

    def recorded(host: Host, *requests: Request, tolerate: Collection[int] = ()) -> None:
        sent.append(len(requests))
        batch(host, *requests, tolerate=tolerate)

    monkeypatch.setattr(BandwidthLimits, "requests", counted)
    monkeypatch.setattr(Host, "batch", recorded)
    repairs = world.engine.repair(lambda _: True)
    assert [one.error for one in repairs] == [""] * 3
    assert (asked, sent) == ([made.host_ifindex], [6])
    assert world.findings() == []
