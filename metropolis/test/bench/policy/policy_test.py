# SPDX-License-Identifier: Apache-2.0
"""The whole command, with few samples. No test asserts a speed."""

import json
import subprocess
import sys

COMMAND = [sys.executable, "-m", "metropolis.test.bench.policy.policy"]
FEW = (
    "--policies=60", "--most=200", "--addresses=200", "--attached=2", "--samples=3",
    "--rounds=1", "--seconds=0.05",
)  # fmt: skip


def test_every_part() -> None:
    done = subprocess.run([*COMMAND, *FEW, "--json"], stdout=subprocess.PIPE, text=True, check=True)
    *table, last = done.stdout.splitlines()
    figures = json.loads(last)["figures"]
    assert len(table) == 1 + len(figures)
    parts = {one["part"] for one in figures}
    assert parts == {
        "connection", "TCP_RR", "stream", "change, 200 addresses", "attach, 0 addresses",
        "attach, 200 addresses", "grpc, 0 attached", "grpc, 2 attached",
    }  # fmt: skip
    for one in figures:
        assert one["samples"] > 0
        assert one["p99"] >= one["p50"]
    connections = {one["subject"]: one for one in figures if one["part"] == "connection"}
    assert connections["no policies"]["ratio"] == 1
    assert {"no table", "policies: 2", "policies: 200", "chains of 200"} <= connections.keys()


def test_a_part_that_is_none() -> None:
    done = subprocess.run([*COMMAND, "--parts=speed"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "'speed': want some of connection," in done.stderr
