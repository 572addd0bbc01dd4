# SPDX-License-Identifier: Apache-2.0
"""The table of SECURITY.md: claims and their tests. Pure.

    claims, problems = parse(text)

A row is a claim: id, text, attackers, directions, families, place, and tests,
each as PATH::FUNCTION. The lint checks that no cell is empty and that the tests
exist; the command //metropolis/test/security:claims runs them.

Limit: it cannot check whether a test tries its row's claim. Reviewers do.
"""

import ast
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

PAGE = "SECURITY.md"
HEADER = ("id", "claim", "against", "direction", "families", "where", "tests")
ATTACKERS = frozenset({"pod", "outsider", "node", "user", "program"})
PARTIES = frozenset({"pod", "node", "outside", "overlay", "service"})
FAMILIES = ("IPv4, IPv6", "IPv4", "IPv6", "none")
WHERE = frozenset({"single", "cluster"})

_ID = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
_TEST = re.compile(r"`([\w./-]+_test\.py)::(test_\w+)`")


@dataclass(frozen=True)
class Claim:
    """A row. line: of the page. tests: PATH::FUNCTION each."""

    ident: str
    text: str
    against: tuple[str, ...]
    directions: tuple[str, ...]
    families: str
    where: tuple[str, ...]
    tests: tuple[str, ...]
    line: int


def parse(text: str) -> tuple[list[Claim], list[tuple[int, str]]]:
    """Return the claims of a page, and the problems: line and words."""
    claims: list[Claim] = []
    problems: list[tuple[int, str]] = []
    inside, tables = False, 0
    for number, line in enumerate(text.split("\n"), start=1):
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if not line.startswith("|"):
            inside = False
        elif not inside and tuple(cells) == HEADER:
            inside, tables = True, tables + 1
        elif inside and set(line) <= set("|-: "):
            continue
        elif inside and len(cells) != len(HEADER):
            problems.append((number, f"has {len(cells)} columns, want {len(HEADER)}"))
        elif inside:
            claim = _claim(cells, number)
            problems += [(number, found) for found in _wrong(claim, cells[-1])]
            if any(other.ident == claim.ident for other in claims):
                problems.append((number, f"claim {claim.ident} is there twice"))
            claims.append(claim)
    if tables != 1:
        problems.append((1, f"has {tables} tables with | {' | '.join(HEADER)} |, want one"))
    elif not claims:
        problems.append((1, "has no claim"))
    return claims, problems


def _claim(cells: list[str], line: int) -> Claim:
    ident, text, against, directions, families, where, tests = cells
    return Claim(
        ident, text, _list(against), _list(directions), families, _list(where),
        tuple(f"{path}::{name}" for path, name in _TEST.findall(tests)), line,
    )  # fmt: skip


def _list(cell: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in cell.split(",") if part.strip())


def _wrong(claim: Claim, tests: str) -> Iterator[str]:
    if _ID.fullmatch(claim.ident) is None:
        yield f"id {claim.ident!r} is not of a-z, 0-9 and -"
    if not claim.text:
        yield "claims nothing"
    for said, known, title in (
        (claim.against, ATTACKERS, "against"),
        (claim.where, WHERE, "where"),
    ):
        if not said or not set(said) <= known or len(set(said)) != len(said):
            yield f"{title}: want some of {', '.join(sorted(known))}"
    for direction in claim.directions:
        ends = direction.split(" → ")
        if len(ends) != 2 or not set(ends) <= PARTIES:
            yield f"direction {direction!r}: want A → B, of {', '.join(sorted(PARTIES))}"
    if not claim.directions:
        yield "direction: there is none"
    if claim.families not in FAMILIES:
        yield f"families {claim.families!r}: want one of {'; '.join(FAMILIES)}"
    if not claim.tests:
        yield "names no test"
    if len(set(claim.tests)) != len(claim.tests):
        yield "names a test twice"
    if left := _TEST.sub("", tests).replace("<br>", "").strip():
        yield f"tests: {left!r} is no `PATH_test.py::test_NAME`, and no <br> between two"


def functions(source: str) -> dict[str, bool]:
    """Return a module's test functions: name to whether it always runs."""
    return {
        node.name: not any("skip" in ast.unparse(one) for one in node.decorator_list)
        for node in ast.parse(source).body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }


def check(path: str, text: str, read: Callable[[str], str | None]) -> Iterator[str]:
    """Yield the problems of the page. read: returns a file's text, or None."""
    claims, problems = parse(text)
    for claim in claims:
        for test in claim.tests:
            file, _, name = test.partition("::")
            source = read(file)
            if source is None:
                problems.append((claim.line, f"{claim.ident}: there is no {file}"))
            elif name not in (known := functions(source)):
                problems.append((claim.line, f"{claim.ident}: {file} has no {name}"))
            elif not known[name]:
                problems.append((claim.line, f"{claim.ident}: {test} is skipped"))
    for line, problem in sorted(problems):
        yield f"{path}:{line}: {problem}"
