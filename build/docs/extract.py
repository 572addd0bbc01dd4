# SPDX-License-Identifier: Apache-2.0
"""The parts of documents that can be checked. Pure: from text to values."""

import ast
import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass

_BAZELW = re.compile(r"\./bazelw(?:[ ][^\"'`\n;]*)?")
_INLINE = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
_LINK = re.compile(r"\]\(([^)\s]+)\)")


@dataclass(frozen=True)
class Block:
    """An indented or fenced block, dedented. language: of the fence.
    fenced: whether it is one; docstring: whether it comes from Python.
    """

    path: str
    line: int
    text: str
    language: str = ""
    fenced: bool = False
    docstring: bool = False

    def lines(self) -> Iterator[tuple[int, str]]:
        """Yield line number and text; joined where one is continued."""
        joined, begun = "", 0
        for number, line in enumerate(self.text.split("\n"), start=self.line):
            begun = begun or number
            joined += line.strip() if joined else line
            if joined.endswith("\\"):
                joined = joined[:-1]
                continue
            yield begun, joined
            joined, begun = "", 0
        if joined:
            yield begun, joined


@dataclass(frozen=True)
class Piece:
    """A part of a line: inline code, a link's target, or a mention."""

    path: str
    line: int
    text: str


def blocks(path: str, text: str) -> Iterator[Block]:
    """Yield the blocks of a Markdown or Python file."""
    if path.endswith(".md"):
        yield from _markdown(path, text)
    elif path.endswith(".py"):
        for line, doc in docstrings(text):
            yield from _indented(path, doc.split("\n"), line, docstring=True)


def docstrings(text: str) -> Iterator[tuple[int, str]]:
    """Yield line and text of all docstrings, without their indentation."""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, kinds) and (doc := ast.get_docstring(node)) is not None:
            yield node.body[0].lineno, doc


def _markdown(path: str, text: str) -> Iterator[Block]:
    plain: list[str] = []
    fence: list[str] | None = None
    language, begun = "", 0
    for number, line in enumerate(text.split("\n"), start=1):
        if line.lstrip().startswith("```"):
            if fence is None:
                fence, language, begun = [], line.strip("` "), number + 1
            else:
                yield Block(path, begun, textwrap.dedent("\n".join(fence)), language, fenced=True)
                fence = None
            plain.append("")
        elif fence is not None:
            fence.append(line)
            plain.append("")
        else:
            plain.append(line)
    yield from _indented(path, plain, 1)


def _indented(
    path: str, lines: list[str], first: int, *, docstring: bool = False
) -> Iterator[Block]:
    """Yield the runs of lines that are indented by four columns."""
    run: list[str] = []
    for number, line in enumerate([*lines, "end"], start=first):
        if line.startswith("    ") or (run and not line.strip()):
            run.append(line)
            continue
        if run:
            text = textwrap.dedent("\n".join(run)).rstrip()
            yield Block(path, number - len(run), text, docstring=docstring)
        run = []


def inline(path: str, text: str) -> Iterator[Piece]:
    """Yield the inline code of Markdown's prose."""
    for number, line in _prose(text):
        for match in _INLINE.finditer(line):
            yield Piece(path, number, match.group(1))


def links(path: str, text: str) -> Iterator[Piece]:
    """Yield the targets of Markdown's links."""
    for number, line in _prose(text):
        for match in _LINK.finditer(_INLINE.sub("", line)):
            yield Piece(path, number, match.group(1))


def _prose(text: str) -> Iterator[tuple[int, str]]:
    fenced = False
    for number, line in enumerate(text.split("\n"), start=1):
        if line.lstrip().startswith("```"):
            fenced = not fenced
        elif not fenced and not line.startswith("    "):
            yield number, line


def mentions(path: str, text: str) -> Iterator[Piece]:
    """Yield the commands of bazelw anywhere in a file that is not Markdown:
    comments, messages, help texts.
    """
    for number, line in enumerate(text.split("\n"), start=1):
        for match in _BAZELW.finditer(line):
            yield Piece(path, number, match.group())


def anchors(text: str) -> set[str]:
    """Return the anchors of Markdown's headings, as GitHub makes them."""
    found = set()
    for _, line in _prose(text):
        if match := re.match(r"#+ +(.*)", line):
            words = re.sub(r"[^\w\- ]", "", match.group(1).lower())
            found.add(words.replace(" ", "-"))
    return found


def command(line: str) -> list[str]:
    """Return the words of a printed command, without its remark: that begins
    with a #, or two blanks. Brackets, which mark what may be left out, go.

    >>> command("./bazelw run //x [-- --json]    # prints JSON")
    ['./bazelw', 'run', '//x', '--', '--json']
    """
    line = re.sub(r"(\s#|\s\s).*", "", line.strip().removeprefix("$ "))
    words = [word.strip("[]") for word in line.split()]
    return [word for word in words if word and word not in ("...", "…")]
