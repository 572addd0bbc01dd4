# SPDX-License-Identifier: Apache-2.0
"""The whole command, with few samples. No test asserts a speed."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from metropolis.test.bench.attach import attach
from metropolis.test.bench.attach.catalogue import PEERS, SUBJECTS

# All except subjects that wait for duplicate address detection, which is slow.
QUICK = [name for name in SUBJECTS if name != "ptp dual DAD"]
OURS = [name for name in SUBJECTS if name.startswith(("grpc", "inner"))]
ALONE = ("ADD alone", "DEL alone")
COUNTS = [
    f"{what} of one {op}" for what in ("syscalls", "processes", "execs") for op in ("ADD", "DEL")
]


def bench(*arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "metropolis.test.bench.attach.attach", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return the result of a quick run with everything."""
    outputs = Path(os.environ.get("TEST_UNDECLARED_OUTPUTS_DIR", tmp_path_factory.mktemp("out")))
    picture = outputs / "bench.png"
    with bench("--quick", "--json", "--only", ",".join(QUICK), "--plot", str(picture)) as run:
        printed, progress = run.communicate()
    print(progress, printed)
    assert run.returncode == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "Targets" in printed
    found: dict[str, Any] = json.loads(printed.splitlines()[-1])
    return found


def values(result: dict[str, Any], figure: str) -> dict[str, float]:
    return {one["subject"]: one["p50"] for one in result["figures"] if one["figure"] == figure}


def test_the_schema(result: dict[str, Any]) -> None:
    assert result.keys() == {"machine", "figures"}
    for name in ("cpu", "cores", "kernel", "load", "python", "grpcio", "netavark", "iptables"):
        assert result["machine"][name]
    keys = ["figure", "subject", "unit", "p50", "p95", "p99", "ratio_to_ours", "ratio_to_floor"]
    for one in result["figures"]:
        assert list(one) == keys
        assert isinstance(one["p50"], (int, float))
        assert all(one[key] is None or one[key] >= 0 for key in keys[3:])


@pytest.mark.parametrize("figure", [*ALONE, "ADD at 1", "ADD at 4", "DEL at 4", *COUNTS])
def test_every_subject_has_figures(result: dict[str, Any], figure: str) -> None:
    """The rates of those with ports are not measured."""
    rate = figure.endswith((" at 1", " at 4"))
    assert values(result, figure).keys() == {
        name for name in QUICK if not rate or " port" not in name.replace("portmap", "")
    }


def test_percentiles_and_ratios(result: dict[str, Any]) -> None:
    for one in result["figures"]:
        if one["figure"] in ALONE:
            assert 0 < one["p50"] <= one["p95"] <= one["p99"]
            assert one["ratio_to_ours"] > 0
            assert one["ratio_to_floor"] > 0
        if one["subject"] == "grpc dual" and one["ratio_to_ours"] is not None:
            assert one["ratio_to_ours"] == 1


def test_beside_many(result: dict[str, Any]) -> None:
    for level in (0, 20):
        assert values(result, f"ADD with {level} attached").keys() == set(attach.BESIDE)
        assert values(result, f"RSS with {level} attached")["grpc dual"] > 1


def test_processor_time(result: dict[str, Any]) -> None:
    used = values(result, "CPU of 1,000 ADD")
    assert {*values(result, "ADD at 1"), "grpc dual, client"} <= used.keys()
    assert all(value > 0 for value in used.values())


def test_ours_starts_no_process(result: dict[str, Any]) -> None:
    for figure in COUNTS[2:]:
        found = values(result, figure)
        assert [found[name] for name in OURS] == [0] * len(OURS)
        assert found["shim dual"] == 1
        assert all(found[peer] >= 1 for peer in PEERS if peer in found)
    # ... and the counting counts.
    assert all(
        values(result, "syscalls of one ADD")[name] > 4 for name in SUBJECTS if name in QUICK
    )


def test_a_broken_peer_is_reported_of(tmp_path: Path) -> None:
    """Its error is shown; the others are still measured."""
    for name in ("ptp", "bridge", "portmap", "host-local"):
        plugin = tmp_path / name
        plugin.write_text(
            '#!/bin/sh\necho "{\\"msg\\": \\"out of order\\"}"\necho because >&2\nexit 3\n'
        )
        plugin.chmod(0o755)
    options = ("--quick", "--json", "--figures", "alone", "--only", "inner dual,ptp")
    with bench(*options, "--plugins", str(tmp_path)) as run:
        printed, progress = run.communicate()
    assert run.returncode == 1
    assert "FAILED: ptp" in progress
    assert 'ended with 3: {"msg": "out of order"} because' in progress
    result = json.loads(printed.splitlines()[-1])
    assert result["failed"].keys() == {"ptp"}
    assert values(result, "ADD alone").keys() == {"inner dual"}


def test_a_peer_that_is_not_there(tmp_path: Path) -> None:
    with bench("--quick", "--only", "ptp", "--plugins", str(tmp_path)) as run:
        printed, progress = run.communicate()
    assert (run.returncode, printed) == (1, "")
    assert f"{tmp_path}/ptp is not there" in progress


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_leaves_no_process(number: signal.Signals) -> None:
    with bench(
        "--only", "grpc dual,inner dual,ptp", "--figures", "alone", "--rounds", "1000"
    ) as run:
        assert run.stderr is not None
        while "round 1" not in (line := run.stderr.readline()):
            assert line, "it ended"
        children = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
        # Their pidfds show when they have ended, whatever their parent.
        descriptors = []
        for child in children:
            try:
                descriptors.append(os.pidfd_open(int(child)))
            except ProcessLookupError:
                continue  # a plugin
        assert len(descriptors) >= 3
        run.send_signal(number)
        _, told = run.communicate(timeout=60)
        assert run.returncode == 130
        assert "cleaned up" in told
        for descriptor in descriptors:
            with pytest.raises(ProcessLookupError):
                signal.pidfd_send_signal(descriptor, signal.SIGCONT)
            os.close(descriptor)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_plugin_that_is_interrupted_does_not_live_on(
    number: signal.Signals, tmp_path: Path
) -> None:
    """Nor what it executed itself, which is not our child."""
    told = tmp_path / "told"
    os.mkfifo(told)
    for name in ("ptp", "bridge", "portmap", "host-local"):
        plugin = tmp_path / name
        plugin.write_text(f"#!/bin/sh\nsleep 1000 &\necho $$ $! >{told}\nwait\n")
        plugin.chmod(0o755)
    options = ("--only", "ptp", "--figures", "alone", "--plugins", str(tmp_path))
    with bench(*options) as run:
        descriptors = [os.pidfd_open(int(pid)) for pid in told.read_text().split()]
        assert len(descriptors) == 2
        run.send_signal(number)
        run.communicate(timeout=60)
        assert run.returncode == 130
        for descriptor in descriptors:
            with pytest.raises(ProcessLookupError):
                signal.pidfd_send_signal(descriptor, signal.SIGKILL)
            os.close(descriptor)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--only", "cilium"], "--only 'cilium': there is grpc dual"),
        (["--figures", "luck"], "--figures 'luck': there is alone"),
        (["--rounds", "-1"], "1 or more"),
        (["--plot", "/nowhere/x.png"], "no directory /nowhere"),
    ],
)
def test_wrong_arguments(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        attach.parse(arguments, {})
    assert said in capsys.readouterr().err


def test_a_relative_picture_is_where_bazel_was_run(tmp_path: Path) -> None:
    options = attach.parse(["--plot", "x.png"], {"BUILD_WORKING_DIRECTORY": str(tmp_path)})
    assert options.plot == tmp_path / "x.png"


def test_without_bazel_it_says_how() -> None:
    environment = {key: value for key, value in os.environ.items() if "BENCH" not in key}
    command = [sys.executable, "-m", "metropolis.test.bench.attach.attach", "--quick"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "run me as ./bazelw run //metropolis/test/bench/attach" in done.stderr
