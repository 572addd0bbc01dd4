# SPDX-License-Identifier: Apache-2.0
"""The kept inputs, then new ones: the same each time, so that results depend on
changes only; with $FUZZ_SECONDS set, others for that time.
"""

import json
import os
import subprocess
import sys

import pytest

from metropolis.test.fuzz import corpus, fuzz
from metropolis.test.fuzz.targets import TARGETS

SECONDS = os.environ.get("FUZZ_SECONDS")
RUNS = 8_000  # of each target: this takes seconds


# Inputs that once found a fault.
FOUND = {
    # A link with our records whose interface name is not UTF-8: the service
    # did not start.
    "netlink_messages": ""
    "ec0000001000000001000000000000000000000088130000431000000000000014000300776c3031"
    "3233343536373839616263000a000100029c52fe6d0a000008000400dc0500000800050002000000"
    "070014007731000008001b0008000000100012800900010076657468000000007c0034801f003500"
    "6d77316b2e303030303030303030303030303030392effffffff0000560035006d7731722e313338"
    "382e3032396335326665366430612e303030303030303030303030303030302e3061303030303031"
    "2e6664303030303030303030303030303030303030303030303030303030303031000000",
    # An errno of 2^31: it has no name, nor fits strerror(3).
    "netlink_conversation": ""
    "00002c2c0000000200000501002900000000000000ffff1000000010000500010000000000000006"
    "000100780000007a2424000000020000000200000000000000000000801000000010000500020000"
    "0000000000",
    # An empty option overload inside the overloaded file field was taken for
    # an option, which no message can carry.
    "dhcp_packet": ""
    "020106008000000000000000000000000a0000090000000000000000020000000001000000000000"
    "0000000000000000000000000008000000000000ffffffff00000000000000000700000000000000"
    "00000000000000000000000000000000000000000000000000000000000000000000000000000000"
    "0000000000000000d70000000000340000000000000000000000000000000000000000000000ff00"
    "00000000000000000000000000000000000000000000000000000000000000000000000000000000"
    "0000000000000000000a000009003b00000000000002000000000100000000000000000063825363"
    "34010336040a0000820101010100000000350101010101010101010101040000010000001c01f4ff",
}


@pytest.mark.parametrize("target", FOUND)
def test_what_was_found(target: str) -> None:
    TARGETS[target](bytes.fromhex(FOUND[target]))


@pytest.mark.parametrize("target", TARGETS)
def test_kept_inputs(target: str) -> None:
    kept = corpus.load(target)
    assert kept
    for one in kept:
        TARGETS[target](one)


def test_every_target_is_run() -> None:
    assert tuple(TARGETS) == fuzz._NAMES


def test_new_inputs() -> None:
    limits = ["--seconds", SECONDS] if SECONDS else ["--runs", str(RUNS), "--seed", "1"]
    command = [sys.executable, "-m", "metropolis.test.fuzz.fuzz", *limits, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    print(done.stderr)
    assert done.returncode == 0
    result = json.loads(done.stdout)
    assert result["ok"] is True
    assert result["targets"].keys() == TARGETS.keys()
    # With a time: some thousands a second; far fewer, and nothing is run.
    assert all(count > 100 for count in result["targets"].values())


def test_a_fault_is_found_and_reported(tmp_path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A target with a fault replaces another."""
    program = (
        "import sys\n"
        "from metropolis.test.fuzz import fuzz, targets\n"
        "def fault(data):\n"
        "    assert data[:1] != b'\\xff'\n"
        "targets.TARGETS['dhcp_packet'] = fault\n"
        "fuzz._child('dhcp_packet', ['-runs=200000', '-artifact_prefix=' + sys.argv[1] + '/'])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert "AssertionError" in done.stdout + done.stderr
