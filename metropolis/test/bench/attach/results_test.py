# SPDX-License-Identifier: Apache-2.0
"""Percentiles, ratios, medians of rounds."""

from metropolis.test.bench.attach.results import OURS, Results


def results() -> Results:
    """Three rounds, of which the second is on a machine twice as slow."""
    made = Results()
    for subject, ipv6 in ((OURS, True), ("ptp", False), ("floor dual", True)):
        made.know(subject, ipv6=ipv6)
    made.know("floor ipv4", ipv6=False)
    for round_, slow in enumerate((1, 2, 1)):
        made.add("ADD alone", OURS, "ms", round_, [2.0 * slow, 2.2 * slow, 1.8 * slow])
        made.add("ADD alone", "ptp", "ms", round_, [20.0 * slow])
        made.add("ADD alone", "ptp", "ms", round_, [20.0 * slow])
        made.add("ADD alone", "floor dual", "ms", round_, [1.0 * slow])
        made.add("ADD alone", "floor ipv4", "ms", round_, [0.5 * slow])
    return made


def test_ratios_are_taken_within_rounds() -> None:
    figures = {one.subject: one for one in results().figures()}
    assert [figures[OURS].p50, figures[OURS].ratio_to_ours] == [2.0, 1.0]
    assert figures["ptp"].ratio_to_ours == 10
    assert figures[OURS].ratio_to_floor == 2


def test_without_ipv6_the_floor_is_another() -> None:
    figures = {one.subject: one for one in results().figures()}
    assert figures["ptp"].ratio_to_floor == 40


def test_a_ratio_needs_a_round_that_both_have() -> None:
    made = results()
    made.add("x", OURS, "ms", 0, [1.0])
    made.add("x", "ptp", "ms", 1, [1.0])
    assert made.ratio(("x", "ptp"), ("x", OURS)) is None
    assert made.ratio(("x", "nobody"), ("x", OURS)) is None


def test_single_values_have_no_spread() -> None:
    made = results()
    for round_, value in enumerate((1.0, 9.0, 2.0)):
        made.set("ADD at 8", OURS, "1/s", round_, value)
    made.set("ADD at 8", OURS, "1/s", 0, 4.0)  # replaces
    (figure,) = [one for one in made.figures() if one.figure == "ADD at 8"]
    assert (figure.p50, figure.p95, figure.p99) == (4.0, None, None)


def test_what_was_not_measured_says_why() -> None:
    made = results()
    made.note("ADD with 2000 attached", "ptp", "ms", "no room")
    (figure,) = [one for one in made.figures() if one.figure.startswith("ADD with")]
    assert (figure.p50, figure.note) == (None, "no room")


def test_json_has_exactly_its_keys() -> None:
    keys = {"figure", "subject", "unit", "p50", "p95", "p99", "ratio_to_ours", "ratio_to_floor"}
    for figure in results().figures():
        assert figure.as_json().keys() == keys
