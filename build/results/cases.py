# SPDX-License-Identifier: Apache-2.0
"""The test cases in a JUnit report."""

import xml.etree.ElementTree as ET
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum


class Outcome(Enum):
    """How a test case ended."""

    PASSED = "passed"
    FAILED = "failed"
    SKIPPED = "skipped"


@dataclass(frozen=True)
class Case:
    """A test case. why: the reason of a skipped one."""

    name: str
    outcome: Outcome
    why: str = ""


def cases(report: bytes) -> Iterator[Case]:
    """Yield the test cases; an incomplete report has none."""
    try:
        root = ET.fromstring(report)
    except ET.ParseError:
        return
    for case in root.iter("testcase"):
        name = case.get("name", "")
        skip = case.find("skipped")
        if case.find("failure") is not None or case.find("error") is not None:
            yield Case(name, Outcome.FAILED)
        elif skip is not None:
            yield Case(name, Outcome.SKIPPED, skip.get("message", ""))
        else:
            yield Case(name, Outcome.PASSED)
