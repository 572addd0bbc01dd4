# SPDX-License-Identifier: Apache-2.0
"""The Go package's own tests, one by one; some use the real service."""

import os
import re
import subprocess
import threading
from collections.abc import Iterator
from ipaddress import ip_network
from pathlib import Path

import pytest

from metropolis.node import allocs
from metropolis.node.core.network.rules import host_ports
from metropolis.node.core.network.workloads.api.server import WorkloadServer
from metropolis.node.core.network.workloads.datapath.registry import PARTS
from metropolis.node.core.network.workloads.datapath.veth import KernelDatapath
from metropolis.node.core.network.workloads.engine.engine import Engine
from osbase.nftables import Nftables

PROGRAM = os.path.abspath(os.environ["CNIPROXY_TEST"])
PREFIXES = [ip_network("10.192.0.0/24"), ip_network("fd00:10:192::/112")]
LIMIT_S = 120


def names() -> list[str]:
    done = subprocess.run([PROGRAM, "-test.list", "."], capture_output=True, text=True, check=True)
    return done.stdout.split()


def run(name: str, **environment: str) -> None:
    done = subprocess.run(
        [PROGRAM, "-test.run", f"^{name}$", "-test.v", "-test.timeout", f"{LIMIT_S}s"],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=2 * LIMIT_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"--- PASS: {name}" in done.stdout


@pytest.mark.parametrize("name", [name for name in names() if name.startswith("TestClient")])
def test_client(name: str) -> None:
    run(name)


def make_netns() -> int:
    """A network namespace that lives as long as the descriptor."""
    made: list[int] = []

    def make() -> None:
        os.unshare(os.CLONE_NEWNET)
        made.append(os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC))

    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    return made[0]


@pytest.fixture
def service(tmp_path: Path) -> Iterator[tuple[Engine, str]]:
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    with Nftables() as nft:
        nft.apply(host_ports.render())
    engine = Engine(KernelDatapath(parts=PARTS))
    engine.start()
    engine.set_prefixes(PREFIXES)
    path = tmp_path / "run" / "workload.sock"
    server = WorkloadServer(engine, path)
    server.start()
    yield engine, str(path)
    server.stop()
    engine.close()


@pytest.mark.parametrize("name", [name for name in names() if name.startswith("TestService")])
def test_service(name: str, service: tuple[Engine, str]) -> None:
    engine, path = service
    descriptors = [make_netns(), make_netns()]
    paths = [f"/proc/{os.getpid()}/fd/{number}" for number in descriptors]
    try:
        run(name, CNIPROXY_SOCKET=path, CNIPROXY_NETNS=":".join(paths))
    finally:
        for number in descriptors:
            os.close(number)
    assert engine.list() == []


def test_every_test_is_run() -> None:
    assert all(re.match("Test(Client|Service)", name) for name in names())
    assert len(names()) > 8


def test_races_are_detected() -> None:
    """Read from Go's own record of how the program was built."""
    done = subprocess.run(
        ["go", "version", "-m", PROGRAM], capture_output=True, text=True, check=True
    )
    assert "-race=true" in done.stdout


def test_constants_are_the_node_s() -> None:
    """Constants that Go cannot import: the socket, the first hop's MAC."""
    program = Path(PROGRAM).read_bytes()
    assert allocs.WORKLOAD_SOCKET.encode() in program
    assert allocs.FIRST_HOP_MAC.hex(":").encode() in program
