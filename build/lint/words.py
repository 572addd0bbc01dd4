# SPDX-License-Identifier: Apache-2.0
"""Words that a newcomer does not understand, and their replacements. Pure.

    path:line: word: write ...

Names are the identifiers of Python; prose is comments, docstrings and Markdown
without its code. A word of the table is found in any case, and as a part of a
name with underscores (`_doomed_links`); with `exact`, only as the whole name.

Limits: a list of words finds habits, not bad sentences, and a phrase only
within a line.
"""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Word:
    """A word or phrase, and its replacement. names, prose: where to search it.

    exact: the case matters, and only a whole name counts.
    """

    word: str
    instead: str
    names: bool = True
    prose: bool = True
    exact: bool = False


WORDS = (
    Word("left_s", "time_remaining", exact=True),
    Word("doomed", "removal, or killed"),
    Word("strangers", "unlisted peers (unlisted_peers)"),
    Word("doubts", "handshake checks (handshake_checks)"),
    Word("spared", "protected"),
    Word("Turn", "WorkloadLock", prose=False, exact=True),
    Word("Home", "HostNetns", prose=False, exact=True),
    Word("is_home", "is_host_netns", prose=False, exact=True),
    Word("told", "reported", names=False),
    Word("anew", "again", names=False),
    Word("likewise", "also, or the same", names=False),
    Word("Of", "subject first: no sentence begins with Of", names=False, exact=True),
    Word("whoever", "the program, caller or node that", names=False),
    Word("nobody's", "the owner, or that there is none", names=False),
    Word("lest", "so that ... not", names=False),
    Word("as ever", "still", names=False),
    Word("for want of", "without", names=False),
    Word("without a word", "silently", names=False),
    Word("see to it", "make sure", names=False),
    Word("sees to it", "makes sure", names=False),
)


def _pattern(word: Word) -> re.Pattern[str]:
    # An underscore separates the words of a name, except where exact is set.
    inner = r"A-Za-z0-9_" if word.exact else r"A-Za-z0-9"
    text = f"(?<![{inner}]){re.escape(word.word)}(?![{inner}])"
    return re.compile(text, 0 if word.exact else re.IGNORECASE)


_PATTERNS = tuple((word, _pattern(word)) for word in WORDS)
_CODE = re.compile(r"``[^`]*``|`[^`]*`|\([^)\s]*://[^)\s]*\)|\]\([^)\s]*\)")


def habits(path: str, text: str) -> Iterator[str]:
    """Yield the findings as lines. Only .py and .md files have any."""
    for number, word, found in findings(path, text):
        yield f"{path}:{number}: {found}: write {word.instead}"


def findings(path: str, text: str) -> Iterator[tuple[int, Word, str]]:
    """Yield line, word of the table, and the spelling in the text."""
    if path.endswith(".py"):
        parts = sorted([*_names_and_comments(text), *_docstrings(text)])
    elif path.endswith(".md"):
        parts = list(_markdown(text))
    else:
        return
    for number, is_name, part in parts:
        for word, pattern in _PATTERNS:
            if word.names if is_name else word.prose:
                # Exact compares a name without its leading underscores.
                subject = part.lstrip("_") if is_name else part
                for match in pattern.finditer(subject):
                    yield number, word, match.group()


def _names_and_comments(text: str) -> Iterator[tuple[int, bool, str]]:
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.NAME:
            yield token.start[0], True, token.string
        elif token.type == tokenize.COMMENT:
            yield token.start[0], False, _CODE.sub("", token.string)


def _docstrings(text: str) -> Iterator[tuple[int, bool, str]]:
    """Yield the lines of strings that are statements: all docstrings."""
    lines = text.split("\n")
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            if isinstance(node.value.value, str):
                for number in range(node.lineno, (node.end_lineno or node.lineno) + 1):
                    yield number, False, _CODE.sub("", lines[number - 1])


def _markdown(text: str) -> Iterator[tuple[int, bool, str]]:
    """Yield the lines without code and without targets of links."""
    fenced = False
    for number, line in enumerate(text.split("\n"), start=1):
        if line.lstrip().startswith("```"):
            fenced = not fenced
        elif not fenced and not line.startswith("    "):
            yield number, False, _CODE.sub("", line)
