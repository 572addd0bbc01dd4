# SPDX-License-Identifier: Apache-2.0
"""The whole command, with few samples. No test asserts a speed."""

import json
import subprocess
import sys
from typing import Any

from metropolis.test.bench.packets.packets import OWN_FLOWS, WORKLOADS
from metropolis.test.bench.packets.report import SUBJECTS
from metropolis.test.bench.packets.traffic import KINDS


def figures(*arguments: str) -> list[dict[str, Any]]:
    command = [sys.executable, "-m", "metropolis.test.bench.packets.packets", "--rounds=1"]
    done = subprocess.run(
        [*command, "--seconds=0.01", "--json", *arguments], stdout=subprocess.PIPE, check=True
    )
    found: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])["figures"]
    for one in found:
        assert one["us"].keys() == set(SUBJECTS)
        assert all(us > 0 for us in one["us"].values())
        assert one["to_baseline"] > 0
        assert one["to_none"] > 0
    return found


def test_every_kind_of_traffic_by_every_way() -> None:
    """A packet that the rules drop would be a timeout, and an error."""
    found = figures()
    keys = {(one["kind"], one["way"], one["version"], one["workloads"]) for one in found}
    assert len(found) == len(keys) == len(KINDS) * 2 * 2 * len(WORKLOADS)


def test_beside_own_flows() -> None:
    assert [one["flows"] for one in figures("--flows")] == list(OWN_FLOWS)


def test_a_baseline_that_is_not_there() -> None:
    command = [sys.executable, "-m", "metropolis.test.bench.packets.packets", "--baseline=/nothing"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "--baseline" in done.stderr
