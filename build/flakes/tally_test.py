# SPDX-License-Identifier: Apache-2.0
"""From Bazel's events to the table, without Bazel."""

import json
from pathlib import Path

import pytest

from build.flakes.events import Result, results
from build.flakes.tally import NOT_RUN, Tally, failed_cases, tally, to_json, to_table

LABEL = "//x:y_test"


def event(run: int = 1, status: str = "PASSED", label: str = LABEL, shard: int = 1) -> str:
    """A testResult as Bazel 7.7 writes it, less what is not read."""
    directory = f"file:///out/testlogs/x/y_test/run_{run}_of_5"
    return json.dumps(
        {
            "id": {
                "testResult": {
                    "label": label,
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


def result(run: int = 1, status: str = "PASSED", label: str = LABEL, shard: int = 1) -> Result:
    return Result(label, run, shard, status, None)


def test_results_of_events() -> None:
    lines = [
        '{"id":{"started":{}},"children":[],"started":{"uuid":"0"}}',
        event(2, "TIMEOUT", shard=3),
        '{"id":{"testSummary":{"label":"//x:y_test"}},"testSummary":{"overallStatus":"FLAKY"}}',
        # Of a test that was not run: only why.
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


def test_runs_are_counted_not_shards() -> None:
    found = [result(1, "FAILED", shard=s) for s in (1, 2)] + [result(2), result(2, "TIMEOUT")]
    found += [result(3, "FAILED", shard=2), result(3), result(4), result(4, shard=2)]
    (one,) = tally([LABEL], 4, found, {})
    assert one.bad == {1: "FAILED", 2: "TIMEOUT", 3: "FAILED"}


def test_what_did_not_run_did_not_pass() -> None:
    tallies = tally([LABEL, "//x:z_test"], 2, [result(1)], {})
    assert [one.bad for one in tallies] == [{2: NOT_RUN}, {1: NOT_RUN, 2: NOT_RUN}]
    assert to_json(tallies, 2) == {"ok": False, "runs": 2, "failed": {LABEL: 1, "//x:z_test": 2}}


def test_after_an_interruption_only_failures_count() -> None:
    found = [result(1), result(2, "FAILED"), result(3, "INCOMPLETE"), result(4, "NO_STATUS")]
    (one,) = tally([LABEL], 5, found, {}, interrupted=True)
    assert one.bad == {2: "FAILED"}


def test_all_passed() -> None:
    tallies = tally([LABEL], 2, [result(2), result(1)], {})
    assert to_json(tallies, 2) == {"ok": True, "runs": 2, "failed": {}}
    assert to_table(tallies, 2) == "1 tests, 2 runs each: 1 never failed"


def test_the_table() -> None:
    tallies = [
        Tally("//a:rare_test", 6, {4: "TIMEOUT"}, {}),
        Tally("//a:good_test", 6, {}, {}),
        Tally(
            "//a:often_test",
            6,
            {1: "FAILED", 2: "FAILED", 3: "FAILED", 5: "TIMEOUT", 6: "FAILED"},
            {"test_b": 1, "test_c": 4, "test_a": 1},
        ),
    ]
    assert to_table(tallies, 6).splitlines() == [
        "//a:often_test  5 of 6  FAILED in 1-3, 6; TIMEOUT in 5",
        "                  4 x test_c",
        "                  1 x test_a",
        "                  1 x test_b",
        "//a:rare_test   1 of 6  TIMEOUT in 4",
        "3 tests, 6 runs each: 1 never failed",
    ]


def test_cases_of_a_report() -> None:
    report = b"""<testsuites><testsuite>
        <testcase name="good"/><testcase name="skipped"><skipped/></testcase>
        <testcase name="bad[1]"><failure message="no">why</failure></testcase>
        <testcase name="broken"><error/></testcase>
        </testsuite></testsuites>"""
    assert failed_cases(report) == ["bad[1]", "broken"]
    assert failed_cases(report[:50]) == []
    assert failed_cases(b"") == []
