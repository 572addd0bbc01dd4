# SPDX-License-Identifier: Apache-2.0
"""The truth table of host ports, whole; and tests that it notices faults."""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from metropolis.test.ports import oracle
from metropolis.test.ports.oracle import Client, HostIP, Mapping, Setting
from metropolis.test.ports.table import SERVER, Table
from metropolis.test.ports.world import World

LIMIT_S = 300.0
COMMAND = [sys.executable, "-P", "-m", "metropolis.test.ports.matrix"]
ENVIRONMENT = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
SETTING = Setting(access=False, listening=False)
ANY, OF_NODE = Mapping(HostIP.ANY), Mapping(HostIP.NODE, 4)


def outputs(tmp_path: Path) -> Path:
    return Path(os.environ.get("TEST_UNDECLARED_OUTPUTS_DIR", str(tmp_path)))


def test_every_cell(tmp_path: Path) -> None:
    """All cells of all settings, and all cases: as claimed."""
    log = outputs(tmp_path) / "node-core.log"
    done = subprocess.run(
        [*COMMAND, "--json", "--log", str(log)],
        env=ENVIRONMENT, text=True, capture_output=True, timeout=LIMIT_S, check=False,
    )  # fmt: skip
    assert done.stdout, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    wrong = [
        f"{one['cell']}: expected {one['expected']}, got {one['got']}" for one in said["wrong"]
    ]
    assert not wrong, "\n".join([done.stderr, *wrong])
    assert (done.returncode, said["ok"]) == (0, True)
    assert said["cells"] > 4900
    assert all(one["why"] for one in said["skipped"])


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """A world in which node core runs."""
    with contextlib.closing(World(outputs(tmp_path) / "faults.log")) as made:
        made.build()
        made.start(access=False, versions=(4, 6))
        yield made


type Wrong = dict[str, str]


def wrong(table: Table, *mappings: Mapping) -> Wrong:
    """Return what is wrong of the cells of some mappings, by TCP and UDP."""
    cells = [
        one
        for one in oracle.cells(SETTING)
        if one.mapping in mappings and one.protocol in ("tcp", "udp")
    ]
    prefix = f"{SETTING}/"
    return {one.cell.removeprefix(prefix): one.got for one in table.run(cells) if not one.ok}


def test_faults_are_noticed(world: World) -> None:
    """Whatever the rules or elements lack shows as the cells concerned, and no
    others. Node core is dead meanwhile, or it would restore them.
    """
    table = Table(world, SETTING, answer_s=1.5)
    table.prepare()
    (address, link), nft = (world.attached[SERVER][4], world.links[SERVER]), world.node.run
    world.core.stop(signal.SIGKILL)
    assert wrong(table, ANY, OF_NODE) == {}
    assert table.elements().ok

    element = "element inet metropolis_workloads any4 { tcp . 20001 %s }"
    nft(["nft", "delete " + element % ""])
    found = wrong(table, ANY, OF_NODE)
    at = ("node4", "second4")
    assert found.keys() == {
        *(f"{client}/any/{one}/tcp" for client in Client for one in at),
        "node/any/loopback4/tcp",
    }
    assert found["outside/any/node4/tcp"] == "refused"
    assert table.elements().got == f"any4 lacks tcp . 20001 : {address} . 7001"
    nft(["nft", "add " + element % f": {address} . 7001"])

    # The port of one address answers at all of them.
    extra = "element inet metropolis_workloads any4 { udp . 20004 %s }"
    nft(["nft", "add " + extra % f": {address} . 7004"])
    found = wrong(table, ANY, OF_NODE)
    assert found.keys() == {
        *(f"{client}/node4/second4/udp" for client in Client),
        "node/node4/loopback4/udp",
    }
    assert "any4 has udp . 20004" in table.elements().got
    nft(["nft", "delete " + extra % ""])

    # A client's source is lost.
    nft(["nft", "add table ip other"])
    nft(["nft", "add chain ip other post { type nat hook postrouting priority 90; }"])
    nft(["nft", f"add rule ip other post oifname {link} ip saddr 198.51.100.2 masquerade"])
    found = wrong(table, ANY, OF_NODE)
    assert {one.split("/")[0] for one in found} == {"outside"}
    assert found["outside/any/second4/udp"].startswith("pod-a port 7001, which sees ")
    nft(["nft", "delete table ip other"])

    world.node.sysctls([(f"net/ipv4/conf/{link}/route_localnet", "0")])
    assert wrong(table, ANY).keys() == {f"node/any/loopback4/{one}" for one in ("tcp", "udp")}
    world.node.sysctls([(f"net/ipv4/conf/{link}/route_localnet", "1")])
    assert wrong(table, ANY, OF_NODE) == {}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_no_process_is_left(number: signal.Signals, tmp_path: Path) -> None:
    """After Ctrl-C, in the middle: helpers and node core end, the status is
    130.
    """
    command = [*COMMAND, "--only", "case", "--log", str(tmp_path / "log")]
    with subprocess.Popen(command, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True) as run:
        assert run.stderr is not None
        while "case/" not in (line := run.stderr.readline()):
            assert line, "it ended"
        children = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
        assert len(children) >= 5
        handles = [os.pidfd_open(int(child)) for child in children]
        run.send_signal(number)
        _, said = run.communicate(timeout=LIMIT_S)
        assert run.returncode == 130
        assert said.endswith("matrix: stopped; nothing remains\n")
        for handle in handles:
            # One that was just made ends with its pipes, not by our hand.
            assert select.select([handle], [], [], LIMIT_S)[0]
            os.close(handle)


def test_no_such_cell_is_2() -> None:
    done = subprocess.run(
        [*COMMAND, "--only", "elsewhere"],
        env=ENVIRONMENT, text=True, capture_output=True, timeout=LIMIT_S, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.endswith("matrix: --only elsewhere: no cell has such a name\n")
