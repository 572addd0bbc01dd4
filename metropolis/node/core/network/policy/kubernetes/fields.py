# SPDX-License-Identifier: Apache-2.0
"""Reading a document's fields by path, with all problems at once.

A Report collects the problems of one document. The functions return what they
can read, and None for what they cannot, and have reported it then. A caller
that must know whether anything was wrong compares the report's count of errors.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from metropolis.node.core.network.policy.kubernetes.documents import (
    MERGE_KEY,
    NO_KEY,
    Unquoted,
    Value,
    printable,
)

PROBLEMS_MAX: Final = 100
"""That are kept of a document."""

_SIMPLE_KEY: Final = re.compile(r"[A-Za-z_$][A-Za-z0-9_-]*")
_GUESS_MAX: Final = 64


@dataclass(frozen=True, slots=True)
class Problem:
    """Something in a document that has to be mended. path: of the field; may be
    empty. policy: the name of the policy, if it became one. warning: the policy
    is in force, as the text says; else it is refused, and isolates its
    subjects.
    """

    source: str
    line: int
    path: str
    text: str
    policy: str = ""
    warning: bool = False

    def __str__(self) -> str:
        path = f"{self.path}: " if self.path else ""
        return f"{self.source}:{self.line}: {path}{self.text}"


@dataclass(frozen=True, slots=True)
class Finding:
    """A problem of the document that is being read."""

    line: int
    path: str
    text: str
    warning: bool


class Report:
    """The problems of one document. errors: how many, without warnings.
    dropped: how many of all are not among findings.
    """

    def __init__(self) -> None:
        self.findings: list[Finding] = []
        self.errors = 0
        self.dropped = 0

    def error(self, line: int, path: str, text: str) -> None:
        """Add an error. After PROBLEMS_MAX, it is only counted."""
        self.errors += 1
        self._add(Finding(line, path, text, warning=False))

    def warn(self, line: int, path: str, text: str) -> None:
        """Add a problem in spite of which the policy is in force."""
        self._add(Finding(line, path, text, warning=True))

    def _add(self, finding: Finding) -> None:
        if len(self.findings) < PROBLEMS_MAX:
            self.findings.append(finding)
        else:
            self.dropped += 1

    def summary(self) -> str:
        """Return the first error, and how many others there are; "": none."""
        if not self.errors:
            return ""
        first = next((found for found in self.findings if not found.warning), None)
        if first is None:
            return f"{self.errors} problems"
        said = f"{first.path}: {first.text}" if first.path else first.text
        return said if self.errors == 1 else f"{said} (and {self.errors - 1} more)"


def child(path: str, key: str) -> str:
    """Return the path of a field of a map."""
    if not _SIMPLE_KEY.fullmatch(key):
        return f'{path}["{printable(key)}"]'
    return f"{path}.{key}" if path else key


def describe(value: Value) -> str:
    """Return what a value is, for a message that says what it should be."""
    plain = value.plain
    if plain is None:
        return "null"
    if isinstance(plain, Unquoted):
        return f"{plain.what} ({printable(plain.text)})"
    if isinstance(plain, int):
        return f"the number {plain}"
    if isinstance(plain, str):
        return f'the string "{printable(plain)}"'
    return "a list" if isinstance(plain, list) else "a map"


class Fields:
    """A map of which only some fields are known; all others are reported.

    line: of the map. names: fields that are there and not null, which is the
    same as absent for Kubernetes. others: whether there are unknown fields, one
    of which may be a known one, misspelt.
    """

    def __init__(self, value: Value, path: str, report: Report, known: Collection[str]) -> None:
        self.line = value.line
        self._value = value
        self._path = path
        self._report = report
        self._items = read_map(value, path, report)
        others = self._items.keys() - set(known)
        self.others = bool(others)
        for name in sorted(others, key=lambda each: (self._items[each].line, each)):
            report.error(self._items[name].line, child(path, name), unknown(name, known))
        self.names = [name for name, item in self._items.items() if item.plain is not None]

    def get(self, name: str) -> Value | None:
        """Return a field, None if it is absent or null."""
        found = self._items.get(name)
        return None if found is None or found.plain is None else found

    def is_doubtful(self, name: str) -> bool:
        """Return whether there may be another value of a field, or one in spite
        of its absence, that could not be read.
        """
        keys = {fault.key for fault in self._value.faults}
        return not isinstance(self._value.plain, Mapping) or not keys.isdisjoint(
            {name, MERGE_KEY, NO_KEY}
        )

    def require(self, name: str) -> Value | None:
        """As get, and report its absence from the map."""
        found = self.get(name)
        if found is None and isinstance(self._value.plain, Mapping):
            self._report.error(self.line, self.path(name), "required")
        return found

    def path(self, name: str) -> str:
        """Return a field's path."""
        return child(self._path, name)


def unknown(name: str, known: Collection[str]) -> str:
    """Return the message about a field that does not exist."""
    close: Sequence[str] = ()
    if len(name) <= _GUESS_MAX:
        folded = {each.lower(): each for each in sorted(known)}
        close = difflib.get_close_matches(name.lower(), folded, n=1)
        close = [folded[each] for each in close]
    return f'unknown field; did you mean "{close[0]}"?' if close else "unknown field"


def read_map(value: Value, path: str, report: Report) -> Mapping[str, Value]:
    """Return the items of a map, {} if it is none."""
    if not isinstance(value.plain, Mapping):
        report.error(value.line, path, f"a map is expected, not {describe(value)}")
        return {}
    for fault in value.faults:
        report.error(fault.line, child(path, fault.key), fault.text)
    return value.plain


def read_list[T](
    value: Value | None, path: str, report: Report, item: Callable[[Value, str], T]
) -> list[T]:
    """Return the items of a list, as item makes them of a value and its path.
    None, or no list: [].
    """
    if value is None:
        return []
    if not isinstance(value.plain, list):
        report.error(value.line, path, f"a list is expected, not {describe(value)}")
        return []
    return [item(each, f"{path}[{index}]") for index, each in enumerate(value.plain)]


def read_string(value: Value, path: str, report: Report) -> str | None:
    """Return a string."""
    plain = value.plain
    if isinstance(plain, str):
        return plain
    if isinstance(plain, Unquoted | int):
        text = plain.text if isinstance(plain, Unquoted) else str(plain)
        what = plain.what if isinstance(plain, Unquoted) else "a number"
        text = printable(text)
        said = f'{text} is {what} in YAML, and a string is expected: quote it: "{text}"'
        report.error(value.line, path, said)
    else:
        report.error(value.line, path, f"a string is expected, not {describe(value)}")
    return None


def read_int(value: Value, path: str, report: Report, low: int, high: int) -> int | None:
    """Return an integer from low to high."""
    plain = value.plain
    if isinstance(plain, int):
        if low <= plain <= high:
            return plain
        report.error(value.line, path, f"{plain} is not within {low} to {high}")
        return None
    hint = ", without quotes" if isinstance(plain, str) and plain.isdecimal() else ""
    said = f"a decimal number from {low} to {high} is expected{hint}, not {describe(value)}"
    report.error(value.line, path, said)
    return None


def read_choice(value: Value, path: str, report: Report, choices: Collection[str]) -> str | None:
    """Return a string that is one of some."""
    text = read_string(value, path, report)
    if text is None or text in choices:
        return text
    close = [each for each in choices if each.lower() == text.lower()]
    hint = f'; did you mean "{close[0]}"?' if close else ""
    said = f'"{printable(text)}" is none of {", ".join(choices)}{hint}'
    report.error(value.line, path, said)
    return None
