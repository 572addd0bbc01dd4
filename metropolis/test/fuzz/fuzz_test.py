# SPDX-License-Identifier: Apache-2.0
"""The kept inputs, then a minute or so of new ones: $FUZZ_SECONDS."""

import json
import os
import subprocess
import sys

import pytest

from metropolis.test.fuzz import corpus, fuzz
from metropolis.test.fuzz.targets import TARGETS

SECONDS = os.environ.get("FUZZ_SECONDS", "64")


# Inputs that found something once.
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
    command = [sys.executable, "-m", "metropolis.test.fuzz.fuzz", "--seconds", SECONDS, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    print(done.stderr)
    assert done.returncode == 0
    result = json.loads(done.stdout)
    assert result["ok"] is True
    assert result["targets"].keys() == TARGETS.keys()
    # Some thousands a second; far fewer would mean that nothing is run.
    assert all(count > 100 for count in result["targets"].values())


def test_a_fault_is_found_and_told(tmp_path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a target that has one, in the place of another."""
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
