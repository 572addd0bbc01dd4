# SPDX-License-Identifier: Apache-2.0
"""The command runs, and its figures add up. No test asserts a speed."""

import json
import subprocess
import sys

import pytest


def test_the_breakdown_adds_up() -> None:
    command = [
        sys.executable,
        "-m",
        "metropolis.test.bench.attach.breakdown",
        "--samples=8",
        "--json",
    ]
    printed = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    answer = json.loads(printed.splitlines()[-1])
    assert answer.keys() == {"machine", "attaches", "total_us", "stages", "messages"}
    assert sum(stage["us"] for stage in answer["stages"]) == pytest.approx(
        answer["total_us"], abs=1
    )
    assert all(stage["us"] > 0 for stage in answer["stages"])
    assert sum(stage["kernel"] for stage in answer["stages"]) == 3
    sends = [message["send"] for message in answer["messages"]]
    assert [sends.count(send) for send in ("pair", "inside", "commit")] == [1, 10, 8]


def test_too_few_samples_are_refused() -> None:
    command = [sys.executable, "-m", "metropolis.test.bench.attach.breakdown", "--samples=3"]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 2
    assert "at least 4" in done.stderr
