# SPDX-License-Identifier: Apache-2.0
"""A short soak; and tests that it notices the faults it looks for."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from ipaddress import ip_network
from pathlib import Path

import pytest
from pyroute2 import IPRoute

from metropolis.test.soak import census
from metropolis.test.soak.churn import Churn, Violation
from metropolis.test.soak.soak import Memory, usable
from metropolis.test.soak.world import Host

MINUTES = os.environ.get("SOAK_MINUTES", "0.2")


def soak(*arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "metropolis.test.soak.soak", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_nothing_is_left(tmp_path: Path) -> None:
    outputs = Path(os.environ.get("TEST_UNDECLARED_OUTPUTS_DIR", str(tmp_path)))
    with soak("--minutes", MINUTES, "--json", "--log", str(outputs / "services.log")) as run:
        printed, progress = run.communicate()
    print(progress, printed)
    assert run.returncode == 0
    result = json.loads(printed)
    assert result.keys() == {
        *("ok", "operations", "kills", "leaked", "rss_kib_early", "rss_kib_end"),
    }
    assert result["ok"] is True
    assert result["operations"] >= 1000
    assert result["kills"] >= 1
    kinds = ("links", "routes", "rules", "addresses", "netns", "fds", "threads")
    assert result["leaked"] == dict.fromkeys(kinds, 0)


def test_what_fits() -> None:
    prefixes = ["10.192.0.0/28", "10.193.0.0/31", "fd00::/64"]
    assert usable([ip_network(prefix) for prefix in prefixes]) == 16
    assert usable([ip_network("fd00::/126")]) == 3


def test_memory_that_grows_is_noticed() -> None:
    """For example if the pool kept all addresses ever used."""
    program = (
        "import sys\n"
        "from metropolis.node.core.network.workloads.engine import pool\n"
        "from metropolis.test.soak import turnover\n"
        "pool.REMEMBERED = 1 << 32\n"
        "turnover.main(sys.argv[1:])\n"
    )
    remembering = Memory([ip_network("10.0.0.0/16"), ip_network("fd00::/64")], seed=1)
    remembering._command[1:3] = ["-c", program]
    with remembering as memory:
        assert "cycles without a kernel: RSS" in memory.grown()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_soak_leaves_no_process(number: signal.Signals) -> None:
    with soak("--minutes", "5") as run:
        assert run.stderr is not None
        while "operations" not in (line := run.stderr.readline()):
            assert line, "it ended"
        children = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
        assert len(children) == 3  # two services, and turnover
        # Their pidfds show when they have ended, whatever their parent.
        descriptors = [os.pidfd_open(int(child)) for child in children]
        run.send_signal(number)
        _, told = run.communicate(timeout=120)
        assert run.returncode == 130
        assert "cleaned up" in told
        for descriptor in descriptors:
            with pytest.raises(ProcessLookupError):
                signal.pidfd_send_signal(descriptor, signal.SIGCONT)
            os.close(descriptor)


@pytest.fixture
def churn(tmp_path: Path) -> Iterator[Churn]:
    """Return a Churn without threads, with a real service."""
    host = Host("h", ("10.192.0.0/28", "fd00:10:192::/120"), tmp_path / "log")
    host.start()
    made = Churn(host, mortal=False, slots=40, usable=14, threads=0, seed=1)
    made.burst()
    yield made
    made.close()
    host.close()


def test_a_lost_route_is_noticed(churn: Churn, monkeypatch: pytest.MonkeyPatch) -> None:
    slot = churn._slots[0]
    churn._attach(slot)
    assert churn.verify() == 1
    monkeypatch.setattr("metropolis.test.soak.churn._SETTLE_S", 0.2)

    def remove() -> None:
        with IPRoute() as other:
            index = other.link_lookup(group=8)[0]
            other.route("del", dst=f"{slot.ips[0]}/32", oif=index, scope=253)

    churn.host.netns.inside(remove)
    with pytest.raises(Violation, match="routes and addresses differ"):
        churn.verify()


def test_an_attachment_that_nobody_knows_of_is_noticed(churn: Churn) -> None:
    slot = churn._slots[0]
    churn._attach(slot)
    churn._forget(slot)
    with pytest.raises(Violation, match=r"h-0, DETACHED with None, is listed with \('10"):
        churn.verify()


def test_a_pool_that_is_full_too_early_is_noticed(churn: Churn) -> None:
    for slot in churn._slots[:14]:
        churn._attach(slot)
    assert churn.verify() == 14
    assert churn.counts["pool full"] == 1
    churn._usable = 15
    with pytest.raises(Violation, match="14 of 15 attached; one more: RESOURCE_EXHAUSTED"):
        churn.verify()


def test_leaks_are_counted(churn: Churn) -> None:
    before = census.take(churn.host)
    churn._attach(churn._slots[0])
    more = census.take(churn.host).less(before)
    assert (more["links"], more["addresses"]) == (1, 1)
    assert more["routes"] >= 2


def test_namespaces_are_counted() -> None:
    """It runs in a new user namespace: in ours, those of other tests are dying.

    A count is too low while namespaces of the last one die, so the highest of
    some seconds counts.
    """
    program = (
        "import time\n"
        "from metropolis.test.soak import census\n"
        "from metropolis.test.world import namespaces\n"
        "namespaces.enter_namespaces()\n"
        "def highest():\n"
        "    end = time.monotonic() + 1.5\n"
        "    found = [census.room_for_namespaces(30)]\n"
        "    while time.monotonic() < end:\n"
        "        time.sleep(0.3)\n"
        "        found.append(census.room_for_namespaces(30))\n"
        "    return max(found)\n"
        "room = highest()\n"
        "held = namespaces.Netns()\n"
        "assert highest() == room - 1\n"
        "held.close()\n"
        "assert highest() == room\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)
