# SPDX-License-Identifier: Apache-2.0
"""The command, with programs in place of test targets; and the page."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from build.lint.claims import HEADER, PAGE, parse
from metropolis.node.core.network.rules import drops, policy
from metropolis.test.security import claims

# Reports that test_a and test_b passed, as pytest would.
GOOD = """\
import os, sys
assert sys.argv[1] == "--netns"
names = [one.partition("::")[2] for one in sys.argv if "::" in one]
cases = "".join(f'<testcase name="{name}"/>' for name in names)
with open(os.environ["XML_OUTPUT_FILE"], "w") as file:
    file.write(f"<testsuites><testsuite>{cases}</testsuite></testsuites>")
"""
ENDLESS = """\
import os, pathlib, signal, sys, time
there = pathlib.Path(__file__).with_name("state")
def end(*_):
    there.write_text("cleaned up")
    sys.exit(2)
signal.signal(signal.SIGINT, end)
there.write_text("runs")
time.sleep(600)
"""


def make(root: Path, rows: str, **programs: str) -> None:
    """Write a page and the programs beside it."""
    head = f"| {' | '.join(HEADER)} |\n|{'---|' * len(HEADER)}\n"
    (root / PAGE).write_text(head + rows)
    for name, text in programs.items():
        (root / name).write_text(f"#!{sys.executable}\n{text}")
        (root / name).chmod(0o755)


def row(ident: str, *tests: str) -> str:
    quoted = "<br>".join(f"`{test}`" for test in tests)
    return f"| {ident} | No. | pod | pod → node | none | single | {quoted} |\n"


A, B = "a_test.py::test_a", "b_test.py::test_b"


def test_all_is_well(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make(tmp_path, row("x", A, B) + row("y", B), a_test=GOOD, b_test=GOOD)
    assert claims.main(["--json"], tmp_path) == 0
    out = capsys.readouterr().out
    assert json.loads(out.splitlines()[-1]) == {
        "ok": True,
        "claims": [
            {"claim": "x", "test": A, "ok": True},
            {"claim": "x", "test": B, "ok": True},
            {"claim": "y", "test": B, "ok": True},
        ],
    }
    assert claims.main([], tmp_path) == 0
    assert capsys.readouterr().out.count("ok") == 3


@pytest.mark.parametrize(
    ("program", "why"),
    [
        ("raise SystemExit(3)", "status 3, no report"),
        (GOOD + "sys.exit(1)", "status 1"),
        (GOOD.replace("<testcase name", "<testcase nam"), "not ok: a_test.py::test_a"),
        ("import time; time.sleep(600)", "not done after 2 s"),
    ],
)
def test_all_is_not_well(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], program: str, why: str
) -> None:
    make(tmp_path, row("x", A) + row("y", B), a_test=program, b_test=GOOD)
    assert claims.main(["--json", "--timeout", "2"], tmp_path) == 1
    said = capsys.readouterr()
    assert [claim["ok"] for claim in json.loads(said.out)["claims"]] == [False, True]
    assert why in said.err


def test_a_target_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make(tmp_path, row("x", A))
    assert claims.main([], tmp_path) == 1
    said = capsys.readouterr()
    assert "did not run" in said.out
    assert "a_test.py is not in TESTS" in said.err


def test_some_and_the_list(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make(tmp_path, row("x", A) + row("y", B), b_test=GOOD)
    assert claims.main(["--claim", "y", "--json"], tmp_path) == 0
    assert [one["claim"] for one in json.loads(capsys.readouterr().out)["claims"]] == ["y"]
    assert claims.main(["--list"], tmp_path) == 0
    assert capsys.readouterr().out.splitlines()[1] == f"    {A}"
    assert claims.main(["--list", "--json"], tmp_path) == 0
    assert json.loads(capsys.readouterr().out)["claims"][1] == {"claim": "y", "test": B}


@pytest.mark.parametrize(
    ("rows", "given", "why"),
    [
        (row("x", A), ["--claim", "z"], "no claim z"),
        (row("x"), [], "names no test"),
        ("", [], "has no claim"),
        (row("x", A), ["--output", "/dev/null/x"], "--output /dev/null/x: Not a directory"),
    ],
)
def test_wrong_pages_and_arguments(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], rows: str, given: list[str], why: str
) -> None:
    make(tmp_path, rows, a_test=GOOD)
    assert claims.main(given, tmp_path) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert why in said.err


@pytest.mark.parametrize("seconds", ["nan", "inf", "0", "-1", "soon", ""])
def test_wrong_times(capsys: pytest.CaptureFixture[str], seconds: str) -> None:
    with pytest.raises(SystemExit) as exited:
        claims.main([f"--timeout={seconds}"], Path())
    assert exited.value.code == 2
    assert "--timeout: invalid" in capsys.readouterr().err


def test_output_is_kept(tmp_path: Path) -> None:
    root, kept = tmp_path / "root", tmp_path / "kept"
    root.mkdir()
    make(root, row("x", A), a_test="print('said')\n" + GOOD)
    assert claims.main(["--output", str(kept)], root) == 0
    assert (kept / "a_test" / "output.log").read_text() == "said\n"
    assert sorted(path.name for path in (kept / "a_test").iterdir()) == ["output.log", "report.xml"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_tests_in_good_order(tmp_path: Path, number: signal.Signals) -> None:
    make(tmp_path, row("x", A), a_test=ENDLESS)
    program = (
        "import pathlib, sys; from metropolis.test.security import claims;"
        f"sys.exit(claims.main(['--json'], pathlib.Path({str(tmp_path)!r})))"
    )
    command = [sys.executable, "-c", program]
    # A shell's background job would ignore SIGINT.
    with subprocess.Popen(command, stdout=-1, stderr=-1, env=dict(os.environ)) as process:
        assert process.stderr is not None
        while not (tmp_path / "state").exists():
            assert process.poll() is None
        process.send_signal(number)
        out, said = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert out == b""
    assert b"ended by a signal" in said
    assert (tmp_path / "state").read_text() == "cleaned up"


def test_help_says_it_all(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        claims.main(["--help"], Path())
    said = capsys.readouterr().out
    for word in ("--claim", "--list", "--json", "--output", "--timeout", "Status:"):
        assert word in said


def test_help_names_a_claim_of_the_page() -> None:
    """The example in the help works."""
    page, _ = parse(Path(PAGE).read_text())
    example = re.findall(r"--claim ([a-z-]+)", claims.__doc__ or "")
    assert example
    assert set(example) <= {claim.ident for claim in page}


def test_the_command_has_the_tests_of_the_page() -> None:
    """Its runfiles have what TESTS in BUILD.bazel names."""
    page, _ = parse(Path(PAGE).read_text())
    named = {test.partition("::")[0] for claim in page for test in claim.tests}
    here = "//metropolis/test/security"
    labels = [here + one if one.startswith(":") else one for one in os.environ["TESTS"].split()]
    assert {label.removeprefix("//").replace(":", "/") + ".py" for label in labels} == named


def test_the_page_has_the_drop_counters() -> None:
    """Name and reason of each, in the order of the modules, and no other."""
    listed = re.findall(r"^\| `(\w+)` \| ([^|]+) \|$", Path(PAGE).read_text(), re.MULTILINE)
    assert listed == [(one.label, one.comment) for one in (*drops.Reason, *policy.Denial)]
