# SPDX-License-Identifier: Apache-2.0
"""All faults of a configuration's text at once, and the place of each field.

Protobuf's parser of its text format ends at the first fault, and does not say
where a field was. So a text that has any fault is read again here: field by
field, with the message's descriptor, going on behind each fault. What could be
read is merged into a message, whose values are then checked too.

Pure. Only a text with faults comes here; protobuf's parser decides whether it
has any. Not supported, as in a node's configuration there are none: extensions,
Any, groups, enums, numbers with a fraction.

Source: protobuf.dev/reference/protobuf/textformat-spec.
"""

from __future__ import annotations

import bisect
import difflib
import re
from dataclasses import dataclass, field
from typing import Any, Final

from google.protobuf import text_format
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from osbase.net.config import quoted

FAULTS_MAX: Final = 50
"""More are not listed: the text is no configuration."""

_TOKENS: Final = re.compile(
    r"""(?P<space>\s+|\#[^\n]*)
    |(?P<string>"(?:\\[^\n]|[^"\\\n])*"|'(?:\\[^\n]|[^'\\\n])*')
    |(?P<open>["'][^\n]*)
    |(?P<word>[\w.+]+)
    |(?P<mark>.)""",
    re.VERBOSE | re.DOTALL,
)
_OPENING: Final = {"{": "}", "<": ">"}
_CLOSING: Final = frozenset("}>")
_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_WANTED: Final = {
    FieldDescriptor.TYPE_STRING: 'a text in quotes, such as "a"',
    FieldDescriptor.TYPE_UINT32: "a number from 0 to 4294967295",
    FieldDescriptor.TYPE_BOOL: "true or false",
}


@dataclass(frozen=True, slots=True)
class Place:
    """Line and column, from 1."""

    line: int
    column: int

    def __str__(self) -> str:
        return f"{self.line}:{self.column}"


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str
    text: str
    at: int


@dataclass
class Reading:
    """faults: each with its place, in the order of the text. places: of fields
    that could be read, by their path, such as "network.pod_prefix[0]".
    """

    faults: list[tuple[Place, str]] = field(default_factory=list)
    places: dict[str, Place] = field(default_factory=dict)

    def has(self, path: str) -> bool:
        """Return whether the field, or an entry of it, is in the text."""
        return path in self.places or f"{path}[0]" in self.places

    def place_of(self, path: str) -> Place | None:
        """Return the field's place, or that of the nearest one around it that
        is in the text; None: there is none.
        """
        while path:
            found = self.places.get(path) or self.places.get(f"{path}[0]")
            if found is not None:
                return found
            path = path[: path.rindex("[")] if path.endswith("]") else path.rpartition(".")[0]
        return None


class _EnoughError(Exception):
    """There are FAULTS_MAX faults."""


def read(text: str, message: Message) -> Reading:
    """Read the text, and merge what can be read into the message."""
    reader = _Reader(text)
    try:
        reader.fields(message, "", None)
    except _EnoughError:
        reader.found.faults.append((reader.place(len(text)), "and more"))
    except RecursionError:
        reader.found.faults.append((Place(1, 1), "too deep"))
    return reader.found


class _Reader:
    def __init__(self, text: str) -> None:
        self._text = text
        self._lines = [0, *(found.end() for found in re.finditer("\n", text))]
        self._tokens = [
            _Token(found.lastgroup or "", found[0], found.start())
            for found in _TOKENS.finditer(text)
            if found.lastgroup != "space"
        ]
        self._next = 0
        self.found = Reading()

    # --- Tokens ---------------------------------------------------------------

    def place(self, at: int) -> Place:
        line = bisect.bisect_right(self._lines, at)
        return Place(line, at - self._lines[line - 1] + 1)

    def _peek(self) -> _Token | None:
        return self._tokens[self._next] if self._next < len(self._tokens) else None

    def _take(self, *texts: str) -> bool:
        token = self._peek()
        if token is None or token.kind != "mark" or token.text not in texts:
            return False
        self._next += 1
        return True

    def _fault(self, at: int, what: str) -> None:
        self.found.faults.append((self.place(at), what))
        if len(self.found.faults) >= FAULTS_MAX:
            raise _EnoughError

    def _end(self) -> int:
        return len(self._text.rstrip())

    # --- Fields ---------------------------------------------------------------

    def fields(self, message: Message, path: str, closing: str | None) -> None:
        """Read fields until the closing bracket, or the text's end."""
        kind: Descriptor = message.DESCRIPTOR  # type: ignore[assignment]
        seen: dict[str, int] = {}
        while (token := self._peek()) is not None:
            if token.text in _CLOSING and token.kind == "mark":
                if closing is not None:
                    self._next += 1
                    if token.text != closing:
                        self._fault(token.at, f'"{token.text}" where "{closing}" is expected')
                    return
                self._next += 1
                self._fault(token.at, f'"{token.text}" closes nothing')
            elif token.kind != "word" or _NAME.fullmatch(token.text) is None:
                self._no_name(token)
            else:
                self._next += 1
                self._field(token, kind, message, path, seen)
                self._take(",", ";")
        if closing is not None:
            self._fault(self._end(), f'the "{_opening(closing)}" of {path} is not closed')

    def _no_name(self, token: _Token) -> None:
        self._next += 1
        if token.kind == "open":
            self._fault(token.at, "the quotes are not closed")
            return
        wanted = "where the name of a field is expected"
        if token.text == "\ufeff" and not token.at:
            self._fault(token.at, f"a byte order mark {wanted}: save the file without it")
            return
        self._fault(token.at, f"{_shown(token)} {wanted}")
        if token.text == "[":  # the name of an extension
            self._next -= 1
            self._skip_value(had_colon=True)
        self._skip_value()

    def _field(
        self, name: _Token, kind: Descriptor, message: Message, path: str, seen: dict[str, int]
    ) -> None:
        known: Any = kind.fields_by_name
        found = known.get(name.text)
        if found is None:
            where = path or "the configuration"
            self._fault(
                name.at, f"{where} has no field {quoted(name.text)}{_hint(name.text, known)}"
            )
            self._skip_value()
            return
        inner = f"{path}.{name.text}" if path else name.text
        if not found.is_repeated and name.text in seen:
            first = self.place(seen[name.text])
            self._fault(name.at, f"{inner} is there twice; the first is in line {first.line}")
            self._skip_value()
            return
        seen.setdefault(name.text, name.at)
        had_colon = self._take(":")
        if found.is_repeated and self._take("["):
            if not had_colon and found.message_type is None:
                self._fault(name.at, f'{inner}: ":" is missing after the name')
            self._list(found, message, inner)
            return
        self._value(found, message, inner, name.at, had_colon=had_colon)

    def _list(self, found: FieldDescriptor, message: Message, path: str) -> None:
        opened = self._tokens[self._next - 1].at
        comma: _Token | None = None
        while True:
            token = self._peek()
            if token is None:
                self._fault(opened, f'the "[" of {path} is not closed')
                return
            if self._take("]"):
                if comma is not None:
                    self._fault(comma.at, f'{path}: "," before the "]"')
                return
            if token.kind == "mark" and token.text not in _OPENING:
                self._next += 1
                self._fault(token.at, f"{_shown(token)} where {_wanted(found)} is expected")
                if token.text in _CLOSING:
                    return
                continue
            self._value(found, message, path, token.at, had_colon=True)
            comma = self._peek()
            if not self._take(","):
                if self._take("]"):
                    return
                at = self._peek()
                self._fault(self._end() if at is None else at.at, f'{path}: "," or "]" is missing')
                if at is None or at.text in _CLOSING or at.kind == "word":
                    return

    def _value(
        self, found: FieldDescriptor, message: Message, path: str, at: int, *, had_colon: bool
    ) -> None:
        """Read one value; `at` is where its field begins."""
        if found.is_repeated:
            path = f"{path}[{len(getattr(message, found.name))}]"
        token = self._peek()
        if found.message_type is not None:
            self.found.places.setdefault(path, self.place(at))
            if token is not None and token.kind == "mark" and token.text in _OPENING:
                self._next += 1
                part = getattr(message, found.name)
                part = part.add() if found.is_repeated else part
                part.SetInParent()
                self.fields(part, path, _OPENING[token.text])
                return
            self._fault(at, f'{path}: "{{" is missing')
            self._skip_value(had_colon=had_colon)
            return
        if not had_colon:
            self._fault(at, f'{path}: ":" is missing after the name')
        begin = self._next
        if token is not None and token.kind == "mark" and token.text == "-":
            self._next += 1
            token = self._peek()
        if token is None or token.kind in ("mark", "open"):
            if token is not None and token.kind == "open":
                self._next += 1
                self._fault(token.at, f"{path}: the quotes are not closed")
            elif token is not None and token.text == "[":
                self._fault(token.at, f"{path}: a list, where {_wanted(found)} is expected")
                self._skip_value(had_colon=True)
            else:
                self._fault(
                    self._end() if token is None else token.at,
                    f"{path}: the value is missing: {_wanted(found)}",
                )
                self._skip_value()
            return
        self._next += 1
        while (more := self._peek()) is not None and self._goes_on(token, more):
            self._next += 1
            token = more
        text = self._text[self._tokens[begin].at : token.at + len(token.text)]
        # Apart, since a part of a wrong value would stay.
        part = type(message)()
        try:
            text_format.Merge(f"{found.name}: {text}", part)
        except text_format.ParseError, ValueError:
            is_text = self._tokens[begin].kind == "string" and found.type == found.TYPE_STRING
            wanted = "UTF-8 with escapes as in C" if is_text else _wanted(found)
            self._fault(self._tokens[begin].at, f"{path}: {_cut(text)} is not {wanted}")
        else:
            message.MergeFrom(part)
            self.found.places.setdefault(path, self.place(at))

    @staticmethod
    def _goes_on(token: _Token, more: _Token) -> bool:
        """Return whether a value continues: with a further string, or, as an
        address without quotes does, without a blank.
        """
        if token.kind == "string":
            return more.kind == "string"
        touches = more.at == token.at + len(token.text)
        return touches and (more.kind == "word" or more.text in "/:%@-")

    def _skip_value(self, *, had_colon: bool = False) -> None:
        """Skip the value of a field that is not read: brackets with all that is
        inside, or what follows a colon.
        """
        had_colon = self._take(":") or had_colon
        depth = 0
        while (token := self._peek()) is not None:
            if token.kind == "mark" and token.text in "{<[":
                depth += 1
            elif token.kind == "mark" and token.text in "}>]":
                if not depth:
                    return
                depth -= 1
            elif not depth and not (had_colon or token.kind == "string"):
                return
            self._next += 1
            if not depth:
                return


def _opening(closing: str) -> str:
    return next(one for one, other in _OPENING.items() if other == closing)


def _shown(token: _Token) -> str:
    return f"'{_cut(token.text)}'" if '"' in token.text else quoted(token.text)


def _cut(text: str) -> str:
    """Return a value as it is in the text, printable and short."""
    short = text if len(text) <= 64 else f"{text[:64]}..."
    return "".join(char if " " <= char <= "~" else ascii(char)[1:-1] for char in short)


def _wanted(found: FieldDescriptor) -> str:
    if found.message_type is not None:
        return 'a "{"'
    return _WANTED.get(found.type, "a value")


def _hint(name: str, known: Any) -> str:
    names = list(known)
    close = difflib.get_close_matches(name[:64].lower(), names, 1, 0.6)
    if close:
        return f'; did you mean "{close[0]}"?'
    return f"; it has {', '.join(names)}"
