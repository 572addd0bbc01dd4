# SPDX-License-Identifier: Apache-2.0
"""The command, with a fake bazelw that reports fixed runs."""

import json
import os
import re
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from build.flakes import flakes

# Runs //x:good_test, //x:bad_test (fails in run 2) and //x:stuck_test (waits
# for SIGINT); writes down how it was called and which loops ran beside it.
BAZELW = """\
import json, os, pathlib, signal, sys, time
command, *given = sys.argv[1:]
here = pathlib.Path(__file__).parent
with (here / "calls").open("a") as calls:
    print(json.dumps([command, *given]), file=calls)
print(command, "says", file=sys.stderr)
if command == "query":
    if "//absent" in given[-1]:
        sys.exit(7)
    for name in ("good", "bad", "stuck"):
        if name in given[-1]:
            print(f"//x:{name}_test")
    sys.exit(0)
options = dict(one.removeprefix("--").split("=", 1) for one in given if "=" in one)
labels = pathlib.Path(options["target_pattern_file"]).read_text().split()
if command == "build":
    print("on stdout")
    sys.exit(int(os.environ.get("FAKE_BUILD", "0")))
parent = pathlib.Path(f"/proc/{os.getppid()}/task/{os.getppid()}/children").read_text().split()
(here / "loops").write_text(" ".join(pid for pid in parent if int(pid) != os.getpid()))
events = open(options["build_event_json_file"], "w")
def report(label, run, status):
    logs = here / "logs" / label.replace(":", "/").strip("/") / f"run_{run}"
    logs.mkdir(parents=True)
    (logs / "test.log").write_text(f"log of {run}")
    case = "<failure/>" if status == "FAILED" else ""
    (logs / "test.xml").write_text(f'<t><testcase name="test_a">{case}</testcase></t>')
    print(json.dumps({
        "id": {"testResult": {"label": label, "run": run, "shard": 1}},
        "testResult": {"status": status, "testActionOutput": [
            {"name": "test.log", "uri": (logs / "test.log").as_uri()}]},
    }), file=events, flush=True)
(here / "pid").write_text(str(os.getpid()))
caught = []
signal.signal(signal.SIGINT, lambda number, _: caught.append(number))
status = 0
for label in labels:
    for run in range(1, int(options["runs_per_test"]) + 1):
        if "stuck" in label:
            (here / "stuck").touch()
            while not caught:
                time.sleep(0.01)
            (here / "interrupted").touch()
            sys.exit(8)
        failed = "bad" in label and run == 2
        status = 3 if failed else status
        report(label, run, "FAILED" if failed else "PASSED")
sys.exit(int(os.environ.get("FAKE_TEST", status)))
"""
NAMES = {"good": "//x:good_test", "bad": "//x:bad_test", "stuck": "//x:stuck_test"}


class Workspace:
    """A directory with a bazelw."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "bazelw").write_text(f"#!{sys.executable}\n{BAZELW}")
        (root / "bazelw").chmod(0o755)

    def start(self, *given: str, **extra: str) -> subprocess.Popen[str]:
        """Start the command as `bazel run` does."""
        return subprocess.Popen(
            [sys.executable, "-m", "build.flakes.flakes", *given],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "BUILD_WORKSPACE_DIRECTORY": str(self.root), **extra},
        )

    def run(self, *given: str, **extra: str) -> tuple[int, str, str]:
        """Return its status, stdout and stderr."""
        with self.start(*given, **extra) as process:
            out, said = process.communicate()
        return process.returncode, out, said

    def calls(self) -> list[list[str]]:
        """Return the arguments of bazelw's calls."""
        return [json.loads(line) for line in (self.root / "calls").read_text().splitlines()]

    def loops(self) -> list[int]:
        """Return the process ids of the loops beside the tests."""
        return [int(pid) for pid in (self.root / "loops").read_text().split()]


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path)


def kept_in(said: str) -> Path:
    found = re.search(r"logs, reports and the table are in (\S+)$", said, re.MULTILINE)
    assert found, said
    return Path(found[1])


def test_a_failure_is_counted_and_its_logs_are_kept(workspace: Workspace) -> None:
    status, out, said = workspace.run(NAMES["good"], "--runs", "3", NAMES["bad"], "--json")
    assert status == 1
    assert json.loads(out) == {"ok": False, "runs": 3, "failed": {"//x:bad_test": 1}}
    kept = kept_in(said)
    found = sorted(str(path.relative_to(kept)) for path in kept.rglob("*") if path.is_file())
    assert found == ["table", "x/bad_test/run_2/test.log", "x/bad_test/run_2/test.xml"]
    assert (kept / "x/bad_test/run_2/test.log").read_text() == "log of 2"
    table = (kept / "table").read_text()
    assert "//x:bad_test  1 of 3  FAILED in 2" in table
    assert "1 x test_a" in table
    assert table in said
    assert workspace.run(NAMES["bad"], "--runs", "3", f"--output={kept}")[1] == (
        (kept / "table").read_text()
    )


def test_nothing_fails_and_nothing_is_kept(workspace: Workspace) -> None:
    before = set(Path("/tmp").glob("flakes-*"))
    status, out, said = workspace.run("--json", NAMES["good"], "--runs=2")
    assert (status, json.loads(out)) == (0, {"ok": True, "runs": 2, "failed": {}})
    assert set(Path("/tmp").glob("flakes-*")) == before
    # bazelw's output is kept, and is not on our stdout.
    assert "on stdout" in said
    assert "test says" in said


def test_how_bazel_is_called(workspace: Workspace) -> None:
    assert workspace.run(NAMES["good"], "--runs", "4")[0] == 0
    query, build, test = workspace.calls()
    assert query[0] == "query"
    assert build[0] == "build"
    assert test[0] == "test"
    assert {"--runs_per_test=4", "--nocache_test_results", "--flaky_test_attempts=1"} <= {*test}
    # The same options, so that Bazel does not analyse everything again.
    assert {*test} - {*build} == {"test", test[-1]}


def test_each_core_is_busy_and_no_longer_than_that(workspace: Workspace) -> None:
    assert workspace.run(NAMES["good"], "--runs", "1")[0] == 0
    loops = workspace.loops()
    assert len(loops) == len(os.sched_getaffinity(0))
    assert not [pid for pid in loops if Path(f"/proc/{pid}").exists()]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_all_in_good_order(workspace: Workspace, number: signal.Signals) -> None:
    with workspace.start("--json", "--runs=3", NAMES["bad"], NAMES["stuck"]) as process:
        while not (workspace.root / "stuck").exists():
            assert process.poll() is None
        process.send_signal(number)
        out, said = process.communicate()
    assert process.returncode == 128 + number
    assert out == ""
    assert "no verdict: 3 of 6 runs had ended" in said
    assert (workspace.root / "interrupted").exists()
    assert not [pid for pid in workspace.loops() if Path(f"/proc/{pid}").exists()]
    # What failed before is there.
    assert (kept_in(said) / "x/bad_test/run_2/test.log").exists()
    assert "//x:bad_test  1 of 3" in said
    assert "NOT RUN" not in said


def test_when_it_is_killed_the_kernel_ends_the_rest(workspace: Workspace) -> None:
    with workspace.start("--runs=1", NAMES["stuck"]) as process:
        while not (workspace.root / "stuck").exists():
            assert process.poll() is None
        bazelw = int((workspace.root / "pid").read_text())
        watches = [os.pidfd_open(pid) for pid in (*workspace.loops(), bazelw)]
        process.kill()
    for watch in watches:
        # Readable once the process has ended.
        assert select.select([watch], [], [])[0]
        os.close(watch)


@pytest.mark.parametrize(
    ("given", "extra", "why"),
    [
        (["//absent:x"], {}, "//absent:x: not targets, see above (bazel query: status 7)"),
        (["//x:nothing"], {}, "there is no test without a virtual machine; see --vm"),
        (["//x:nothing", "--vm"], {}, "there is no test that boots a virtual machine"),
        ([NAMES["good"]], {"FAKE_BUILD": "1"}, "the tests do not build, see above"),
        ([NAMES["good"]], {"FAKE_TEST": "37"}, "bazel test: status 37"),
        (["--output=/dev/null/x"], {}, "--output /dev/null/x: Not a directory"),
    ],
)
def test_it_does_not_come_to_runs(
    workspace: Workspace, given: list[str], extra: dict[str, str], why: str
) -> None:
    status, out, said = workspace.run(*given, "--runs=1", "--json", **extra)
    assert (status, out) == (2, "")
    assert why in said
    assert "Traceback" not in said


def test_a_test_that_bazel_did_not_come_to(workspace: Workspace) -> None:
    """With --keep_going, one of them does not build."""
    given = [NAMES["good"], "--runs=1", "--json"]
    assert workspace.run(*given, FAKE_TEST="1")[0] == 0
    text = (workspace.root / "bazelw").read_text()
    (workspace.root / "bazelw").write_text(text.replace("for label in labels", "for label in []"))
    status, out, said = workspace.run(*given, FAKE_TEST="1")
    assert status == 1
    assert json.loads(out)["failed"] == {"//x:good_test": 1}
    assert "NOT RUN in 1" in said


@pytest.mark.parametrize(
    "given",
    [["--runs=0"], ["--runs=-1"], ["--runs=1001"], ["--runs=many"], ["--runs"], ["--fast"], [""],
     ['//x:"y"'], ["//x y"]],
)  # fmt: skip
def test_wrong_arguments(capsys: pytest.CaptureFixture[str], given: list[str]) -> None:
    with pytest.raises(SystemExit) as exited:
        flakes.main(given)
    assert exited.value.code == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert "flakes: error: " in said.err


def test_outside_of_bazel_run(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("BUILD_WORKSPACE_DIRECTORY", raising=False)
    assert flakes.main([]) == 2
    assert "./bazelw run //build:flakes" in capsys.readouterr().err


def test_which_tests_are_meant() -> None:
    several = 'let several = tests(set("//a/..." "b:all")) in '
    vm = 'attr("tags", "[\\[ ]vm[,\\]]", $several)'
    manual = 'attr("tags", "[\\[ ]manual[,\\]]", $several)'
    assert flakes.query(["//a/...", "b:all"], machines=False) == (
        f"({several}(($several except {vm}) except {manual}))"
    )
    assert flakes.query(["//a/...", "b:all"], machines=True) == (
        f"({several}(($several intersect {vm}) except {manual}))"
    )
    assert flakes.query([":x_test", "//c"], machines=True) == '(tests(set(":x_test" "//c")))'
    assert flakes.query(["//a", "//b/..."], machines=False).endswith(') union (tests(set("//a")))')


def test_help_says_it_all(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        flakes.main(["--help"])
    said = capsys.readouterr().out
    for word in ("TARGETS", "--runs", "--vm", "--json", "--output", "TEST_RANDOM_SEED", "Status:"):
        assert word in said
