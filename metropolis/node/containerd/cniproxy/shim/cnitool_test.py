# SPDX-License-Identifier: Apache-2.0
"""The CNI project's cnitool, unmodified, with our configuration, the shim, the
service and the kernel.

Runs in a network namespace of its own. CNITOOL, CNIPROXY and CONFLIST name the
files. cnitool derives the container's id from the namespace's path, and keeps
results below /var/lib/cni.
"""

import asyncio
import json
import os
import socket
import subprocess
import threading
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address, ip_interface, ip_network
from pathlib import Path
from typing import Any

import pytest

from metropolis.node import allocs
from metropolis.node.core.network.cni.server import CniServer
from metropolis.node.core.network.rules import host_ports
from metropolis.node.core.network.workloads.datapath.registry import PARTS
from metropolis.node.core.network.workloads.datapath.veth import KernelDatapath
from metropolis.node.core.network.workloads.engine.engine import Engine
from metropolis.node.core.network.workloads.model import AttachIntent
from metropolis.node.core.network.workloads.testing.lab import Pod, objects, pods, udp_round_trip
from osbase.nftables import Nftables

CNITOOL, CNIPROXY, CONFLIST = (
    Path(os.environ[name]).absolute() for name in ("CNITOOL", "CNIPROXY", "CONFLIST")
)
PREFIXES = [ip_network("10.192.0.0/24"), ip_network("fd00:10:192::/112")]
GENEROUS_S = 60.0
INET, INET6, UDP = socket.AF_INET, socket.AF_INET6, socket.SOCK_DGRAM


@pytest.fixture(scope="module", autouse=True)
def host() -> None:
    """Prepare what the network service would; and a place for results."""
    for command in (
        "ip link set lo up",
        f"ip address add {allocs.FIRST_HOP_IPV4}/32 dev lo",
        "mount -t tmpfs tmpfs /var/lib",  # of our own mount namespace
    ):
        subprocess.run(command.split(), check=True)
    with Nftables() as nft:
        nft.apply(host_ports.render())


@pytest.fixture
def engine() -> Iterator[Engine]:
    made = Engine(KernelDatapath(parts=PARTS))
    made.start()
    made.set_prefixes(PREFIXES)
    yield made
    for attachment in made.list():
        made.detach(attachment.workload_id)
    made.close()


class Cnitool:
    """cnitool and the directories that it is given."""

    def __init__(self, folder: Path) -> None:
        self.socket = folder / "run" / "cni.sock"
        conf, plugins = folder / "net.d", folder / "bin"
        conf.mkdir()
        plugins.mkdir()
        (conf / CONFLIST.name).write_bytes(CONFLIST.read_bytes())
        (plugins / "cniproxy").symlink_to(CNIPROXY)
        self._env = {
            "NETCONFPATH": str(conf),
            "CNI_PATH": str(plugins),
            "CNIPROXY_SOCKET": str(self.socket),
        }

    def run(self, command: str, pod: Pod, **env: str) -> subprocess.CompletedProcess[str]:
        """Execute it, whether it succeeds or not."""
        return subprocess.run(
            [CNITOOL, command, "metropolis", pod.path],
            env=self._env | env,
            capture_output=True,
            text=True,
            check=False,
            timeout=GENEROUS_S,
        )

    def ok(self, command: str, pod: Pod, **env: str) -> str:
        """Execute it; it must report no error."""
        done = self.run(command, pod, **env)
        assert (done.returncode, done.stderr) == (0, ""), done
        return done.stdout

    def refused(self, command: str, pod: Pod, **env: str) -> str:
        """Execute it; it must fail with this error."""
        done = self.run(command, pod, **env)
        assert done.returncode == 1, done
        return done.stderr


@pytest.fixture
def cnitool(engine: Engine, tmp_path: Path) -> Iterator[Cnitool]:
    """cnitool with the service's socket, which a thread serves."""
    made = Cnitool(tmp_path)
    loop = asyncio.new_event_loop()
    task = loop.create_task(CniServer(engine, made.socket).run())

    def serve() -> None:
        with pytest.raises(asyncio.CancelledError):
            loop.run_until_complete(task)

    thread = threading.Thread(target=serve)
    thread.start()
    # The first iteration of the loop binds; a callback put there then follows.
    asyncio.run_coroutine_threadsafe(asyncio.sleep(0), loop).result(GENEROUS_S)
    assert made.socket.exists()
    yield made
    loop.call_soon_threadsafe(task.cancel)
    thread.join(GENEROUS_S)
    assert not thread.is_alive()
    loop.close()


@pytest.fixture
def pod() -> Iterator[Pod]:
    with pods(1) as (made,):
        yield made


def addresses(result: dict[str, Any]) -> tuple[str, str]:
    """Return the addresses of both families in a result."""
    four, six = (ip_interface(one["address"]).ip for one in result["ips"])
    assert (type(four), type(six)) == (IPv4Address, IPv6Address)
    return str(four), str(six)


def test_add_prints_a_result_of_both_families(cnitool: Cnitool, pod: Pod, engine: Engine) -> None:
    result = json.loads(cnitool.ok("add", pod))
    (attachment,) = engine.list()
    assert attachment.workload_id.startswith("cnitool-")
    assert result["cniVersion"] == "1.1.0"
    assert addresses(result) == tuple(str(ip) for ip in attachment.ips)
    assert [one["gateway"] for one in result["ips"]] == ["169.254.77.1", "fe80::1"]
    (inside,) = [one for one in result["interfaces"] if one.get("sandbox") == pod.path]
    assert (inside["name"], inside["mac"]) == ("eth0", attachment.mac.hex(":"))
    eth0 = result["interfaces"].index(inside)
    assert [one["interface"] for one in result["ips"]] == [eth0, eth0]
    assert {"0.0.0.0/0", "::/0"} <= {route["dst"] for route in result["routes"]}
    # The same again is the same.
    assert json.loads(cnitool.ok("add", pod)) == result


def test_the_pod_reaches_its_first_hop(cnitool: Cnitool, pod: Pod) -> None:
    four, six = addresses(json.loads(cnitool.ok("add", pod)))
    with pod.socket(INET, UDP) as c, socket.socket(INET, UDP) as s:
        s.settimeout(GENEROUS_S)
        assert udp_round_trip(s, c, "169.254.77.1") == (four, "169.254.77.1")
    # The host asks; the pod's answers go by way of fe80::1.
    with pod.socket(INET6, UDP) as s, socket.socket(INET6, UDP) as c:
        c.settimeout(GENEROUS_S)
        assert udp_round_trip(s, c, six) == ("fe80::1", six)


def test_check(cnitool: Cnitool, pod: Pod) -> None:
    cnitool.ok("add", pod)
    assert cnitool.ok("check", pod) == ""
    run = ["nsenter", f"--net={pod.path}", "ip", "route", "del", "default"]
    subprocess.run(run, check=True)
    assert "route" in cnitool.refused("check", pod)


def test_nothing_is_left_after_del(cnitool: Cnitool, pod: Pod, engine: Engine) -> None:
    before = objects()
    cnitool.ok("add", pod)
    assert objects() != before
    for _ in range(2):
        assert cnitool.ok("del", pod) == ""
        assert engine.list() == []
        assert objects() == before
        assert [one for one in pod.objects() if "'eth0'" in one] == []
    assert cnitool.refused("check", pod)


def test_gc(cnitool: Cnitool, engine: Engine) -> None:
    """cnitool deletes what it has a result of, then asks the plugin to collect
    without a list of live ones, which is refused: other attachments stay.
    """
    with pods(3) as made:
        engine.attach(AttachIntent("other", made[2].path, "eth0"))
        for pod in made[:2]:
            cnitool.ok("add", pod)
        assert len(engine.list()) == 3
        for _ in range(2):
            assert "GC without cni.dev/valid-attachments" in cnitool.refused("gc", made[0])
            assert [one.workload_id for one in engine.list()] == ["other"]


def test_status(cnitool: Cnitool, pod: Pod, engine: Engine) -> None:
    assert cnitool.ok("status", pod) == ""
    engine.set_prefixes([])
    assert "no ADD is possible" in cnitool.refused("status", pod)


def test_what_is_asked_for(cnitool: Cnitool, pod: Pod) -> None:
    capabilities = {"ips": ["10.192.0.77", "fd00:10:192::77"], "mac": "02:ab:00:00:00:01"}
    asked = {"CAP_ARGS": json.dumps(capabilities), "CNI_IFNAME": "net1"}
    result = json.loads(cnitool.ok("add", pod, **asked))
    assert addresses(result) == ("10.192.0.77", "fd00:10:192::77")
    (inside,) = [one for one in result["interfaces"] if one.get("sandbox")]
    assert (inside["name"], inside["mac"]) == ("net1", "02:ab:00:00:00:01")


def ports(*mappings: dict[str, Any]) -> str:
    return json.dumps({"portMappings": mappings})


def test_host_ports(cnitool: Cnitool, engine: Engine) -> None:
    """By our configuration, which declares the capability."""
    web = ports({"hostPort": 5353, "containerPort": 53, "protocol": "UDP", "hostIP": "127.0.0.1"})
    with pods(2) as (first, second):
        cnitool.ok("add", first, CAP_ARGS=web)
        with first.socket(INET, UDP) as s, socket.socket(INET, UDP) as c:
            s.bind(("0.0.0.0", 53))
            s.settimeout(GENEROUS_S)
            c.settimeout(GENEROUS_S)
            c.sendto(b"?", ("127.0.0.1", 5353))
            _, source = s.recvfrom(9)
            assert source[0] == "169.254.77.1"
            s.sendto(b"!", source)
            assert c.recvfrom(9) == (b"!", ("127.0.0.1", 5353))
        assert cnitool.ok("check", first, CAP_ARGS=web) == ""
        said = cnitool.refused("add", second, CAP_ARGS=web)
        assert "udp port 5353 of 127.0.0.1" in said
        cnitool.ok("del", second, CAP_ARGS=web)
        said = cnitool.refused("add", second, CAP_ARGS=ports({"hostPort": "80"}))
        assert "portMappings[0].hostPort is '80'" in said
        cnitool.ok("del", first, CAP_ARGS=ports({"hostPort": "80"}))
        cnitool.ok("add", second, CAP_ARGS=web)
        cnitool.ok("del", second)
    assert engine.list() == []


def test_errors_are_told(cnitool: Cnitool, pod: Pod, engine: Engine) -> None:
    engine.set_prefixes([])
    assert "prefix" in cnitool.refused("add", pod)
    engine.set_prefixes(PREFIXES)
    pod.path = "/run/netns/missing"
    assert "missing" in cnitool.refused("add", pod)
    assert engine.list() == []


def test_without_the_service(tmp_path: Path, pod: Pod) -> None:
    before = objects()
    away = Cnitool(tmp_path)
    for command in ("add", "status"):
        assert "cniproxy" in away.refused(command, pod)
    assert objects() == before
