# SPDX-License-Identifier: Apache-2.0
"""From Bazel's events to the last line of CI, without Bazel."""

import json
from pathlib import Path

import pytest

from build.results import count, matched
from build.results.cases import Case, Outcome, cases
from build.results.events import Result, results

LABEL = "//x:y_test"


def event(run: int = 1, status: str = "PASSED", shard: int = 1, out: str = "/out") -> str:
    """Return a testResult of Bazel 7.7, without unused fields."""
    directory = f"file://{out}/testlogs/x/y_test/run_{run}_of_5"
    return json.dumps(
        {
            "id": {
                "testResult": {
                    "label": LABEL,
                    "run": run,
                    "shard": shard,
                    "attempt": 1,
                    "configuration": {"id": "ad0f"},
                }
            },
            "testResult": {
                "testActionOutput": [
                    {"name": "test.log", "uri": f"{directory}/test.log"},
                    {"name": "test.xml", "uri": f"{directory}/test.xml"},
                ],
                "testAttemptDurationMillis": "1234",
                "status": status,
                "executionInfo": {"strategy": "linux-sandbox"},
                "testAttemptDuration": "1.234s",
            },
        }
    )


def test_results_of_events() -> None:
    lines = [
        '{"id":{"started":{}},"children":[],"started":{"uuid":"0"}}',
        event(2, "TIMEOUT", shard=3),
        '{"id":{"testSummary":{"label":"//x:y_test"}},"testSummary":{"overallStatus":"FLAKY"}}',
        # A test that did not run has only a reason.
        '{"id":{"testResult":{"label":"//x:z"}},"aborted":{"reason":"USER_INTERRUPTED"}}',
    ]
    directory = Path("/out/testlogs/x/y_test/run_2_of_5")
    assert list(results(lines)) == [Result(LABEL, 2, 3, "TIMEOUT", directory)]


def test_names_of_files_are_unquoted() -> None:
    (one,) = results([event().replace("/out/", "/an%20out/")])
    assert one.directory == Path("/an out/testlogs/x/y_test/run_1_of_5")


def test_a_result_without_files() -> None:
    bare = json.loads(event(status="NO_STATUS"))
    del bare["testResult"]["testActionOutput"]
    assert next(results([json.dumps(bare)])).directory is None


@pytest.mark.parametrize("length", [0, 1, 30, -1])
def test_the_last_line_of_a_bazel_that_was_killed(length: int) -> None:
    assert len(list(results([event(), event()[:length]]))) == 1


REPORT = b"""<testsuites><testsuite>
    <testcase name="good"/><testcase name="passed over"><skipped message="no IPv6"/></testcase>
    <testcase name="bad[1]"><failure message="no">why</failure></testcase>
    <testcase name="broken"><error/></testcase>
    </testsuite></testsuites>"""


def test_cases_of_a_report() -> None:
    assert list(cases(REPORT)) == [
        Case("good", Outcome.PASSED),
        Case("passed over", Outcome.SKIPPED, "no IPv6"),
        Case("bad[1]", Outcome.FAILED),
        Case("broken", Outcome.FAILED),
    ]
    assert list(cases(REPORT[:50])) == []
    assert list(cases(b"")) == []


def counted(tmp_path: Path, capsys: pytest.CaptureFixture[str], *ran: str) -> tuple[int, list[str]]:
    """Return the status and the output."""
    file = tmp_path / "events"
    file.write_text("\n".join(ran))
    status = count.main([str(file)])
    return status, capsys.readouterr().out.splitlines()


def left(tmp_path: Path, report: str, run: int = 1) -> None:
    """Write the files of a run."""
    directory = tmp_path / f"testlogs/x/y_test/run_{run}_of_5"
    directory.mkdir(parents=True)
    (directory / "test.xml").write_text(f"<testsuite>{report}</testsuite>")


GOOD = '<testcase name="good"/>'
SKIPPED = '<testcase name="six"><skipped message="no IPv6"/></testcase>'
BAD = '<testcase name="bad"><failure/></testcase>'


def test_the_count(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    left(tmp_path, GOOD + SKIPPED + GOOD)
    left(tmp_path, GOOD + BAD, run=2)
    one, two = event(out=str(tmp_path)), event(2, "FAILED", out=str(tmp_path))
    skipped = "skipped: //x:y_test: six: no IPv6"
    assert counted(tmp_path, capsys, one) == (0, [skipped, "2 passed, 0 failed, 1 skipped"])
    assert counted(tmp_path, capsys, two, one) == (1, [skipped, "3 passed, 1 failed, 1 skipped"])


def test_reports_of_other_runs_are_not_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Reports of renamed or removed targets stay in place."""
    left(tmp_path, GOOD)
    left(tmp_path, BAD, run=2)
    ran = event(out=str(tmp_path))
    assert counted(tmp_path, capsys, ran) == (0, ["1 passed, 0 failed, 0 skipped"])


def test_a_run_that_did_not_pass_counts_without_a_case_that_failed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    left(tmp_path, GOOD)
    cut = event(status="TIMEOUT", out=str(tmp_path))
    status, said = counted(tmp_path, capsys, cut)
    assert (status, said[-1]) == (1, "1 passed, 1 failed, 0 skipped")
    assert "TIMEOUT" in said[0]


@pytest.mark.parametrize("report", [None, ""])
def test_a_run_without_cases_counts_as_one_that_failed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], report: str | None
) -> None:
    left(tmp_path, GOOD)
    if report is not None:
        left(tmp_path, report, run=2)
    ran = [event(run, out=str(tmp_path)) for run in (1, 2)]
    status, said = counted(tmp_path, capsys, *ran)
    assert (status, said[-1]) == (1, "1 passed, 1 failed, 0 skipped")


def test_nothing_ran(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert counted(tmp_path, capsys) == (1, ["0 passed, 0 failed, 0 skipped"])
    assert count.main([str(tmp_path / "none")]) == 1
    assert "none: No such file" in capsys.readouterr().err
    assert count.main([]) == 2


@pytest.mark.parametrize(
    ("report", "status"),
    [
        ("<testsuites><testsuite/></testsuites>", matched.NO_TESTS),
        ("<testsuites><testsuite><testcase name='a'/></testsuite></testsuites>", 0),
        ("", matched.NO_TESTS),
    ],
)
def test_a_filter_has_a_match_when_any_test_has_a_case(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], report: str, status: int
) -> None:
    for run, text in [(1, "<testsuites/>"), (2, report)]:
        folder = tmp_path / f"testlogs/x/y_test/run_{run}_of_5"
        folder.mkdir(parents=True)
        (folder / "test.xml").write_text(text)
    events = tmp_path / "events"
    events.write_text("".join(f"{event(run, out=str(tmp_path))}\n" for run in (1, 2)))
    assert matched.main([str(events)]) == status
    assert ("matches no case" in capsys.readouterr().err) == bool(status)
