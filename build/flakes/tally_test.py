# SPDX-License-Identifier: Apache-2.0
"""The table of results, without Bazel."""

from build.flakes.tally import NOT_RUN, Tally, tally, to_json, to_table
from build.results.events import Result

LABEL = "//x:y_test"


def result(run: int = 1, status: str = "PASSED", label: str = LABEL, shard: int = 1) -> Result:
    return Result(label, run, shard, status, None)


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
    assert to_table(tallies, 2) == "1 test, 2 runs each: 1 never failed"
    assert to_table([*tallies, *tallies], 1) == "2 tests, 1 run each: 2 never failed"


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
