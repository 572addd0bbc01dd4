# SPDX-License-Identifier: Apache-2.0
"""The whole command, with few samples. No test asserts a speed."""

import json
import subprocess
import sys

import pytest

COMMAND = [sys.executable, "-m", "metropolis.test.bench.limits.limits"]


def test_every_way_in_both_families() -> None:
    done = subprocess.run(
        [*COMMAND, "--rounds=1", "--rates=10M", "--json"], stdout=subprocess.PIPE, check=True
    )
    *table, last = done.stdout.splitlines()
    figures = json.loads(last)["figures"]
    assert len(table) == 1 + len(figures)
    cells = {(one["direction"], one["version"]) for one in figures}
    assert cells == {("to", 4), ("to", 6), ("from", 4), ("from", 6)}
    for one in figures:
        assert one["rate"] == 10**7
        assert all(one[name] > 0 for name in ("sent", "received", "worst", "idle_ms", "loaded_ms"))


@pytest.mark.parametrize("rates", ["", "1.5M", "10m", "0", "1M,,"])
def test_rates_that_are_none(rates: str) -> None:
    done = subprocess.run(
        [*COMMAND, f"--rates={rates}"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "want rates such as 500k,10M,1G" in done.stderr
