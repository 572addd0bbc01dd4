# SPDX-License-Identifier: Apache-2.0
"""Several interfaces in one namespace: each answers on its own addresses, and
leaves no routing rule behind.
"""

import contextlib
import re
import select
import socket
import subprocess
import threading
from collections.abc import Iterator
from ipaddress import ip_network

import pytest

from metropolis.node.core.network.workloads.datapath.interface import FIRST_PEER_INDEX
from metropolis.node.core.network.workloads.datapath.veth import KernelDatapath
from metropolis.node.core.network.workloads.engine.engine import Engine
from metropolis.node.core.network.workloads.errors import WorkloadError
from metropolis.node.core.network.workloads.model import AttachIntent, Attachment
from metropolis.node.core.network.workloads.testing.lab import Pod, pods

_WAIT_S = 5.0
_FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}


@pytest.fixture
def engine() -> Iterator[Engine]:
    made = Engine(KernelDatapath())
    made.set_prefixes([ip_network("10.192.0.0/28"), ip_network("fd00:10:192::/124")])
    made.start()
    yield made
    made.collect(lambda *_: False)
    made.settle()
    made.close()


@pytest.fixture
def pod() -> Iterator[Pod]:
    with pods(1) as (made,):
        yield made


def ip(pod: Pod, arguments: str) -> str:
    """Run ip(8) inside."""
    return pod.inside(lambda: subprocess.check_output(["ip", *arguments.split()], text=True))


def rules(pod: Pod) -> list[str]:
    """Return the namespace's rules that are not the kernel's."""
    found = [line for family in "46" for line in ip(pod, f"-{family} rule").splitlines()]
    return [one for one in found if not re.match(r"(0|32766|32767):", one)]


def attach(engine: Engine, pod: Pod, *if_names: str) -> list[Attachment]:
    return [engine.attach(AttachIntent("w1", pod.path, name)) for name in if_names]


@contextlib.contextmanager
def listening(pod: Pod) -> Iterator[int]:
    """Accept connections at all addresses of the namespace; yield the port."""
    with pod.socket(socket.AF_INET6, socket.SOCK_STREAM) as server:
        server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        server.bind(("::", 0))
        server.listen()
        ended = threading.Event()

        def serve() -> None:
            while not ended.is_set():
                if select.select([server], [], [], 0.05)[0]:
                    server.accept()[0].close()

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield server.getsockname()[1]
        finally:
            ended.set()
            thread.join()


def answers(made: Attachment, port: int) -> set[int]:
    """Return the IP versions in which the host reaches the attachment."""
    reached = set()
    for address in made.ips:
        with socket.socket(_FAMILIES[address.version]) as client:
            client.settimeout(_WAIT_S)
            with contextlib.suppress(OSError):
                client.connect((str(address), port))
                reached.add(address.version)
    return reached


@pytest.mark.parametrize("order", [("eth0", "eth1"), ("eth1", "eth0"), ("a", "b", "c")])
def test_each_answers_on_its_own_addresses(
    engine: Engine, pod: Pod, order: tuple[str, ...]
) -> None:
    made = attach(engine, pod, *order)
    with listening(pod) as port:
        assert [answers(one, port) for one in made] == [{4, 6}] * len(order)
    assert len(rules(pod)) == 2 * (len(order) - 1)
    for one in engine.check("w1", netns_path=pod.path):
        assert one.findings == ()
    engine.detach("w1", pod.path, until_gone=True)
    assert rules(pod) == []


@pytest.mark.parametrize(("prefix", "version"), [("10.192.0.0/28", 4), ("fd00:10:192::/124", 6)])
def test_of_one_family(engine: Engine, pod: Pod, prefix: str, version: int) -> None:
    engine.set_prefixes([ip_network(prefix)])
    made = attach(engine, pod, "eth0", "eth1")
    with listening(pod) as port:
        assert [answers(one, port) for one in made] == [{version}] * 2
    assert len(rules(pod)) == 1
    engine.detach("w1", pod.path, until_gone=True)
    assert rules(pod) == []


def test_where_ipv6_is_optional_and_off(engine: Engine, pod: Pod) -> None:
    """The attempt with IPv6 leaves no rule of it."""
    for name in ("all", "default"):
        setting = f"net.ipv6.conf.{name}.disable_ipv6=1"
        pod.inside(lambda: subprocess.check_call(["sysctl", "-qw", setting]))  # noqa: B023
    engine.set_ipv6_optional(True)
    made = attach(engine, pod, "eth0", "eth1")
    with listening(pod) as port:
        assert [answers(one, port) for one in made] == [{4}] * 2
    assert len(rules(pod)) == 1


def test_a_restart_knows_which_have_rules(pod: Pod) -> None:
    first = Engine(KernelDatapath())
    first.set_prefixes([ip_network("10.192.0.0/28")])
    first.start()
    attach(first, pod, "eth0", "eth1")
    first.close()
    again = Engine(KernelDatapath())
    again.set_prefixes([ip_network("10.192.0.0/28")])
    again.start()
    assert [one.findings for one in again.check("w1", netns_path=pod.path)] == [(), ()]
    again.detach("w1", pod.path, "eth1", until_gone=True)
    assert rules(pod) == []
    again.detach("w1", pod.path, until_gone=True)
    again.close()


def test_the_first_has_no_rule(engine: Engine, pod: Pod) -> None:
    attach(engine, pod, "eth0")
    assert rules(pod) == []


def test_one_leaves_and_the_pods_own_rules_stay(engine: Engine, pod: Pod) -> None:
    _, one, other = attach(engine, pod, "eth0", "net1", "net2")
    for family, source in (("4", "192.0.2.1"), ("6", "2001:db8::1")):
        ip(pod, f"-{family} rule add from {source} lookup 100 priority 32000")
        ip(pod, f"-{family} rule add from all fwmark 7 lookup 101")
    own = rules(pod)
    engine.detach("w1", pod.path, "net1", until_gone=True)
    gone = [line for line in own if any(f"from {address} " in line for address in one.ips)]
    assert len(gone) == 2
    assert rules(pod) == [line for line in own if line not in gone]
    with listening(pod) as port:
        assert answers(other, port) == {4, 6}


def test_the_first_leaves_and_the_second_has_the_default_route(engine: Engine, pod: Pod) -> None:
    """And a later one does not take it away."""
    attach(engine, pod, "eth0")
    (second,) = attach(engine, pod, "eth1")
    assert "dev eth0" in ip(pod, "route get 192.0.2.1")
    engine.detach("w1", pod.path, "eth0", until_gone=True)
    for target in ("192.0.2.1", "2001:db8::1"):
        assert "dev eth1" in ip(pod, f"route get {target}")
    with listening(pod) as port:
        assert answers(second, port) == {4, 6}
        (again,) = attach(engine, pod, "eth0")
        assert "dev eth1" in ip(pod, "route get 192.0.2.1")
        assert [answers(one, port) for one in (second, again)] == [{4, 6}] * 2


def test_detach_without_the_namespace_and_another_address(engine: Engine, pod: Pod) -> None:
    """A rule stays that leads nowhere; the next attach replaces it."""
    (_, second) = attach(engine, pod, "eth0", "eth1")
    engine.detach("w1", "", "eth1", until_gone=True)
    assert len(rules(pod)) == 2
    (next_one,) = attach(engine, pod, "eth1")
    assert set(next_one.ips).isdisjoint(second.ips)
    assert len(rules(pod)) == 2
    assert all(str(address) in " ".join(rules(pod)) for address in next_one.ips)
    with listening(pod) as port:
        assert answers(next_one, port) == {4, 6}


def test_an_attach_that_fails_leaves_no_rule(
    engine: Engine, pod: Pod, monkeypatch: pytest.MonkeyPatch
) -> None:
    attach(engine, pod, "eth0")
    before = pod.objects()

    def refused(*_: object) -> None:
        raise WorkloadError("no")

    monkeypatch.setattr(KernelDatapath, "_commit", refused)
    with pytest.raises(WorkloadError):
        attach(engine, pod, "eth1")
    assert pod.objects() == before


def test_a_pod_that_plays_with_its_rules(engine: Engine, pod: Pod) -> None:
    """It has removed ours, or made the same before: both are its own matter."""
    table = 0x4D000000 + FIRST_PEER_INDEX + 1
    (first,) = attach(engine, pod, "eth0")
    number = int(str(first.ips[0]).split(".")[-1])
    coming = f"10.192.0.{number + 1}"
    ip(pod, f"rule add from {coming} lookup {table} priority 32000 protocol 77")
    (second,) = attach(engine, pod, "eth1")
    assert str(second.ips[0]) == coming
    with listening(pod) as port:
        assert answers(second, port) == {4, 6}
    ip(pod, f"rule del from {coming} lookup {table}")
    (checked,) = engine.check("w1", "eth1", pod.path)
    assert [one.what for one in checked.findings] == [f"routing rule from {coming} inside"]
    ip(pod, "-6 rule flush")
    engine.detach("w1", pod.path, "eth1", until_gone=True)
    assert rules(pod) == []


def test_beside_another_programs_interface(engine: Engine, pod: Pod) -> None:
    """It has the index and the default route that ours would have."""
    ip(pod, "link add eth0 index 2 type bridge")
    ip(pod, "link set eth0 up")
    ip(pod, "addr add 192.0.2.1/24 dev eth0")
    ip(pod, "route add default via 192.0.2.2")
    (ours,) = attach(engine, pod, "net1")
    with listening(pod) as port:
        assert answers(ours, port) == {4, 6}
    engine.detach("w1", pod.path, until_gone=True)
    assert rules(pod) == []


@pytest.mark.parametrize("family", ["4", "6"])
@pytest.mark.parametrize("where", [f"table {0x4D000000 + FIRST_PEER_INDEX + 1}", "metric 2051"])
def test_the_pod_has_a_route_that_ours_would_be(
    engine: Engine, pod: Pod, family: str, where: str
) -> None:
    """In the table of the next index, or with its metric: we take another."""
    attach(engine, pod, "eth0")
    ip(pod, "link add own index 77 type bridge")
    ip(pod, "link set own up")
    ip(pod, f"-{family} route add default dev own {where}")
    (made,) = attach(engine, pod, "eth1")
    with listening(pod) as port:
        assert answers(made, port) == {4, 6}
    (checked,) = engine.check("w1", "eth1", pod.path)
    assert checked.findings == ()
    engine.detach("w1", pod.path, "eth1", until_gone=True)
    assert rules(pod) == []
    assert "dev own" in ip(pod, f"-{family} route show {where}")
