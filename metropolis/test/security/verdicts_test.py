# SPDX-License-Identifier: Apache-2.0
"""The conditions for a claim that holds."""

import pytest

from build.lint.claims import Claim
from metropolis.test.security import verdicts
from metropolis.test.security.verdicts import Outcome, Verdict

PATH = "a/b_test.py"
OTHER = "c_test.py::test_c"


def claim(ident: str, *tests: str) -> Claim:
    return Claim(ident, "No.", ("pod",), ("pod → node",), "none", ("single",), tests, 1)


def report(*cases: str) -> bytes:
    inner = "".join(f'<testcase classname="a.b_test" {case}</testcase>' for case in cases)
    return f'<testsuites><testsuite name="pytest">{inner}</testsuite></testsuites>'.encode()


PASSED = 'name="test_a[4]">'
FAILED = 'name="test_a[6]"><failure message="x">y</failure>'
BROKEN = 'name="test_a[6]"><error message="fixture">y</error>'
SKIPPED = 'name="test_a[6]"><skipped message="why"/>'


@pytest.mark.parametrize(
    ("cases", "verdict"),
    [
        ([], Verdict(Outcome.MISSING, 0)),
        ([PASSED], Verdict(Outcome.PASSED, 1)),
        ([PASSED, PASSED], Verdict(Outcome.PASSED, 2)),
        ([PASSED, FAILED], Verdict(Outcome.FAILED, 2)),
        ([PASSED, BROKEN], Verdict(Outcome.FAILED, 2)),
        ([PASSED, SKIPPED], Verdict(Outcome.SKIPPED, 2)),
        ([SKIPPED, FAILED], Verdict(Outcome.FAILED, 2)),
        (['name="test_a">'], Verdict(Outcome.PASSED, 1)),
        (['name="test_a[x[0]]">'], Verdict(Outcome.PASSED, 1)),
        (['name="test_ab">', 'name="test_ab[a]">'], Verdict(Outcome.MISSING, 0)),
    ],
)
def test_a_function_and_its_cases(cases: list[str], verdict: Verdict) -> None:
    found = verdicts.read_report(PATH, ["test_a"], report(*cases))
    assert found == {f"{PATH}::test_a": verdict}
    assert found[f"{PATH}::test_a"].ok is (verdict.outcome is Outcome.PASSED)


def test_no_report() -> None:
    for data in (b"", b"<testsuites>", b"nonsense"):
        with pytest.raises(ValueError, match="a/b_test"):
            verdicts.read_report(PATH, ["test_a"], data)


def test_each_file_runs_once() -> None:
    some = [claim("x", f"{PATH}::test_a", OTHER), claim("y", f"{PATH}::test_b", f"{PATH}::test_a")]
    assert verdicts.files(some) == {PATH: ["test_a", "test_b"], "c_test.py": ["test_c"]}


def test_the_answer() -> None:
    good = {f"{PATH}::test_a": Verdict(Outcome.PASSED, 2), OTHER: Verdict(Outcome.PASSED, 1)}
    some = [claim("x", f"{PATH}::test_a", OTHER), claim("y", OTHER)]
    rows = verdicts.rows(some, good)
    assert verdicts.to_json(rows) == {
        "ok": True,
        "claims": [
            {"claim": "x", "test": f"{PATH}::test_a", "ok": True},
            {"claim": "x", "test": OTHER, "ok": True},
            {"claim": "y", "test": OTHER, "ok": True},
        ],
    }
    assert verdicts.to_table(rows).splitlines()[1:] == [
        "x      ok           2  a/b_test.py::test_a",
        "       ok           1  c_test.py::test_c",
        "y      ok           1  c_test.py::test_c",
    ]
    for outcome in (Outcome.FAILED, Outcome.SKIPPED, Outcome.MISSING):
        answer = verdicts.to_json(verdicts.rows(some, good | {OTHER: Verdict(outcome)}))
        assert answer["ok"] is False
    assert verdicts.to_json(verdicts.rows(some, {}))["ok"] is False
    assert verdicts.to_json([])["ok"] is False
