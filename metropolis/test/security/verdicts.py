# SPDX-License-Identifier: Apache-2.0
"""The tests to run, and the verdicts in their reports. Pure."""

from __future__ import annotations

import enum
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from build.lint.claims import Claim


class Outcome(enum.Enum):
    """The outcome of a test. Only PASSED is ok."""

    PASSED = "ok"
    FAILED = "failed"
    SKIPPED = "skipped"
    MISSING = "did not run"


@dataclass(frozen=True)
class Verdict:
    """A test's outcome over all its cases. cases: how many ran."""

    outcome: Outcome
    cases: int = 0

    @property
    def ok(self) -> bool:
        """Return whether there is a case, and each passed."""
        return self.outcome is Outcome.PASSED


MISSING = Verdict(Outcome.MISSING)


def files(claims: Iterable[Claim]) -> dict[str, list[str]]:
    """Return the test functions to run by file, each once, in order."""
    found: dict[str, list[str]] = {}
    for claim in claims:
        for test in claim.tests:
            path, _, name = test.partition("::")
            names = found.setdefault(path, [])
            if name not in names:
                names.append(name)
    return found


def read_report(path: str, names: Iterable[str], xml: bytes) -> dict[str, Verdict]:
    """Return the verdicts by PATH::FUNCTION, from a JUnit report of that file.

    A test with parameters has many cases; the worst decides. A test that is
    missing in the report did not run. Raises ValueError for another file.
    """
    try:
        root = ElementTree.fromstring(xml)
    except ElementTree.ParseError as error:
        raise ValueError(f"report of {path}: {error}") from error
    outcomes: dict[str, list[Outcome]] = {name: [] for name in names}
    for case in root.iter("testcase"):
        # The parameters follow in brackets, and may have any characters.
        name = (case.get("name") or "").partition("[")[0]
        if name in outcomes:
            outcomes[name].append(_outcome(case))
    return {f"{path}::{name}": _worst(seen) for name, seen in outcomes.items()}


def _outcome(case: ElementTree.Element) -> Outcome:
    if case.find("failure") is not None or case.find("error") is not None:
        return Outcome.FAILED
    # An expected failure is a skipped test, in this format.
    return Outcome.PASSED if case.find("skipped") is None else Outcome.SKIPPED


def _worst(seen: list[Outcome]) -> Verdict:
    for outcome in (Outcome.FAILED, Outcome.SKIPPED, Outcome.PASSED):
        if outcome in seen:
            return Verdict(outcome, len(seen))
    return MISSING


@dataclass(frozen=True)
class Row:
    """One test of one claim."""

    claim: str
    test: str
    verdict: Verdict


def rows(claims: Iterable[Claim], verdicts: Mapping[str, Verdict]) -> list[Row]:
    """Return a row for each test of each claim."""
    return [
        Row(claim.ident, test, verdicts.get(test, MISSING))
        for claim in claims
        for test in claim.tests
    ]


def to_json(found: Iterable[Row]) -> dict[str, object]:
    """Return the answer of the command, for json.dumps."""
    claims = [{"claim": row.claim, "test": row.test, "ok": row.verdict.ok} for row in found]
    return {"ok": bool(claims) and all(claim["ok"] for claim in claims), "claims": claims}


def to_table(found: Iterable[Row]) -> str:
    """Return a line for each row; a claim's id is in its first."""
    lines = [("claim", "verdict", "cases", "test")]
    before = ""
    for row in found:
        ident = "" if row.claim == before else row.claim
        lines.append((ident, row.verdict.outcome.value, str(row.verdict.cases), row.test))
        before = row.claim
    widths = [max(len(line[column]) for line in lines) for column in range(3)]
    return "\n".join(
        f"{line[0]:{widths[0]}}  {line[1]:{widths[1]}}  {line[2]:>{widths[2]}}  {line[3]}"
        for line in lines
    )
