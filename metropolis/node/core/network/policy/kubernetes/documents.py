# SPDX-License-Identifier: Apache-2.0
"""YAML documents as values that know their lines. Pure.

The values are null, integers, strings, lists, and maps with strings as keys.
Policies have no field for a boolean or a fraction, but YAML makes them of
unquoted words such as `no`, `on`, `1.10`: these are an Unquoted, so that the
reader of a field can say what to quote.

A text is cut at its document separators first, so that a document that is not
YAML stops no other. What is wrong with one map, such as a key that occurs
twice, is a fault of that map: the rest of the document can still be read.

The parser's events are used, not its composer, which recurses, and expands
anchors without a limit.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

import yaml

BYTES_MAX: Final = 4 << 20
DEPTH_MAX: Final = 40
VALUES_MAX: Final = 100_000
DOCUMENTS_MAX: Final = 10_000
"""Limits of a text; values are counted with anchors expanded, documents without
the items of lists.
"""

MERGE_KEY: Final = "<<"
NO_KEY: Final = "?"
"""The key of a fault whose key is no string; it may be any."""

_TAG: Final = "tag:yaml.org,2002:"
_SEPARATOR: Final = re.compile(
    "(?:^|(?<=[\n\r\x85\u2028\u2029]))---(?=[ \t\r\n\x85\u2028\u2029]|$)"
)
_NO_CONTENT: Final = re.compile(r"(?:[ \t]*(?:#.*)?(?:\r?\n|$)|%.*(?:\r?\n|$))*")
_NOT_PRINTABLE: Final = re.compile(
    "[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]"
)
_UNDECODED: Final = range(0xDC80, 0xDD00)  # of surrogateescape
_INDENT: Final = re.compile(" *\t")
_INT: Final = re.compile(r"-?(?:0|[1-9][0-9]{0,17})")
# YAML 1.1's numbers, and what Kubernetes' reader knows besides: 1e3, 0o17.
_NUMBER: Final = re.compile(
    r"[-+]?(?:[0-9][0-9_]*\.?[0-9_]*|\.[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)?"
    r"|[-+]?0[box][0-9a-fA-F_]+"
    r"|[-+]?[0-9][0-9_]*(?::[0-5]?[0-9])+(?:\.[0-9_]*)?"
    r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
)
_NULLS: Final = frozenset({"", "~", "null", "Null", "NULL"})
_BOOLEANS: Final = frozenset(
    form
    for word in ("true", "false", "yes", "no", "on", "off", "y", "n")
    for form in (word, word.capitalize(), word.upper())
)


@dataclass(frozen=True, slots=True)
class Unquoted:
    """A plain word that is no string in YAML. what: "a boolean", "a number"."""

    text: str
    what: str


@dataclass(frozen=True, slots=True)
class Fault:
    """Something wrong with a key of a map. key: as far as it can be read."""

    line: int
    key: str
    text: str


type Plain = int | str | list[Value] | Mapping[str, Value] | Unquoted | None


@dataclass(frozen=True, slots=True)
class Value:
    """A value of a document. line: from 1, of its beginning. faults: of a map;
    keys that have one are not in it, or with the first of their values.
    """

    plain: Plain
    line: int
    faults: tuple[Fault, ...] = ()


@dataclass(frozen=True, slots=True)
class Document:
    """A document, or an item of a list of Kubernetes'.

    path: of the item in its document, such as "items[2]"; else empty. kind,
    version: of the items of a typed list, for those that do not repeat them;
    else empty. value: None if it cannot be read: error says why, and line
    where.
    """

    source: str
    line: int
    value: Value | None
    error: str = ""
    path: str = ""
    kind: str = ""
    version: str = ""


class _RefusedError(Exception):
    def __init__(self, line: int, text: str) -> None:
        super().__init__(text)
        self.line = line


def load(text: str | bytes, source: str) -> list[Document]:
    """Return the documents of a text, without those that are empty, and the
    items of lists in the place of the lists. Raises nothing.

    source: the name of the file, for people.
    """
    if isinstance(text, bytes):
        too_large = len(text) > BYTES_MAX
        text = "" if too_large else text.decode("utf-8", "surrogateescape")
    else:
        too_large = len(text) > BYTES_MAX or len(text.encode(errors="replace")) > BYTES_MAX
    if too_large:
        return [Document(source, 1, None, f"the text has more than {BYTES_MAX >> 20} MiB")]
    found: list[Document] = []
    budget = _Budget()
    for index, (chunk, line) in enumerate(_chunks(text.removeprefix("\ufeff"))):
        if index == DOCUMENTS_MAX:
            error = f"the text has more than {DOCUMENTS_MAX} documents"
            found.append(Document(source, line, None, error))
            break
        try:
            for value in _values(chunk, line, budget):
                if value.plain is not None:
                    _expand(found, Document(source, value.line, value))
        except _RefusedError as refused:
            found.append(Document(source, refused.line, None, str(refused)))
    return found


_LIST_FIELDS: Final = frozenset({"apiVersion", "kind", "metadata", "items"})


def _expand(found: list[Document], document: Document) -> None:
    """Append a document, or the items of a list; nested ones, too."""
    kind = _list_kind(document.value)
    value = document.value
    if kind is None or value is None or not isinstance(value.plain, Mapping):
        found.append(document)
        return
    prefix = f"{document.path}." if document.path else ""
    for fault in value.faults:
        error = f"{prefix}{fault.key}: {fault.text}"
        found.append(Document(document.source, fault.line, None, error))
    for name in sorted(value.plain.keys() - _LIST_FIELDS):
        error = f"{prefix}{printable(name)}: unknown field of a list"
        found.append(Document(document.source, value.plain[name].line, None, error))
    items = value.plain.get("items", Value(None, value.line))
    if items.plain is None:
        return
    if not isinstance(items.plain, list):
        error = f"{prefix}items: a list is expected"
        found.append(Document(document.source, items.line, None, error))
        return
    version = value.plain.get("apiVersion")
    of_items = Document(document.source, items.line, None, kind=kind)
    if kind and version is not None and isinstance(version.plain, str):
        of_items = dataclasses.replace(of_items, version=version.plain)
    for index, item in enumerate(items.plain):
        path = f"{prefix}items[{index}]"
        _expand(found, dataclasses.replace(of_items, line=item.line, value=item, path=path))


def _list_kind(value: Value | None) -> str | None:
    """Return the kind of a list's items, "" if they say it themselves; None if
    it is no list of Kubernetes'.
    """
    if value is None or not isinstance(value.plain, Mapping):
        return None
    kind = value.plain.get("kind")
    if kind is None or not isinstance(kind.plain, str):
        return None
    if kind.plain == "List":
        return ""
    return kind.plain.removesuffix("List") if kind.plain.endswith("PolicyList") else None


def printable(text: str) -> str:
    """Return a text from outside for a message: short, without controls."""
    short = text if len(text) <= 80 else text[:77] + "..."
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode()
        for c in short
    )


def _chunks(text: str) -> Iterator[tuple[str, int]]:
    """Yield the documents' texts, and the lines in which they begin.

    Directives and comments belong to the document behind them.
    """
    start = 0
    line = 1
    for found in _SEPARATOR.finditer(text):
        if _NO_CONTENT.fullmatch(text, start, found.start()):
            continue
        yield text[start : found.start()], line
        line += text.count("\n", start, found.start())
        start = found.start()
    yield text[start:], line


def _values(text: str, first_line: int, budget: _Budget) -> Iterator[Value]:
    """Yield the documents of a text. Raises _RefusedError."""
    bad = _NOT_PRINTABLE.search(text)
    if bad is not None:
        line = first_line + text.count("\n", 0, bad.start())
        code = ord(bad.group())
        if code in _UNDECODED:
            raise _RefusedError(line, "not UTF-8")
        raise _RefusedError(line, f"not YAML: the character U+{code:04X} is not allowed")
    builder = _Builder(first_line, budget)
    try:
        for event in yaml.parse(text, yaml.CSafeLoader):
            value = builder.feed(event)
            if value is not None:
                yield value
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        said = " ".join(part for part in (error.context, error.problem) if part)
        line = first_line + (mark.line if mark else 0)
        # The mark may be behind the last line.
        if mark and any(map(_INDENT.match, text.split("\n")[mark.line : mark.line + 1])):
            said += "; the line begins with a tab: indent it with spaces"
        raise _RefusedError(line, f"not YAML: {said}") from error
    except yaml.YAMLError as error:
        said = next(iter(str(error).splitlines()), "")
        raise _RefusedError(first_line, f"not YAML: {said}") from error


@dataclass(slots=True)
class _Budget:
    """Values that may still be made of a text."""

    left: int = VALUES_MAX

    def take(self, count: int, line: int) -> None:
        self.left -= count
        if self.left < 0:
            self.left = 0
            raise _RefusedError(
                line, f"the text has more than {VALUES_MAX} values, with anchors expanded"
            )


@dataclass(frozen=True, slots=True)
class _Node:
    """A value, how many values it has, and how deep they are."""

    value: Value
    size: int = 1
    height: int = 0


@dataclass(slots=True)
class _Open:
    """A collection whose end was not met yet. key: the last one, without its
    value yet.
    """

    line: int
    anchor: str | None
    is_map: bool
    nodes: list[Value] = field(default_factory=list)
    items: dict[str, Value] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    key: Value | None = None
    size: int = 1
    height: int = 0

    def add(self, node: _Node) -> None:
        self.size += node.size
        self.height = max(self.height, node.height + 1)
        if not self.is_map:
            self.nodes.append(node.value)
        elif self.key is None:
            self.key = node.value
        else:
            self._add_item(self.key, node.value)
            self.key = None

    def _add_item(self, key: Value, value: Value) -> None:
        plain = key.plain
        if isinstance(plain, Unquoted | int):
            text = plain.text if isinstance(plain, Unquoted) else str(plain)
            what = plain.what if isinstance(plain, Unquoted) else "a number"
            said = f'the key is {what} in YAML: quote it: "{printable(text)}"'
            self.faults.append(Fault(key.line, printable(text), said))
        elif not isinstance(plain, str):
            self.faults.append(Fault(key.line, NO_KEY, "a key has to be a string"))
        elif plain == MERGE_KEY:
            said = "merge keys are not read: write the fields out"
            self.faults.append(Fault(key.line, plain, said))
        elif plain in self.items:
            said = f"the key is there already, in line {self.items[plain].line} or above"
            self.faults.append(Fault(key.line, printable(plain), said))
        else:
            self.items[plain] = value

    def node(self) -> _Node:
        plain: Plain = self.items if self.is_map else self.nodes
        return _Node(Value(plain, self.line, tuple(self.faults)), self.size, self.height)


class _Builder:
    """Makes values of the parser's events."""

    def __init__(self, first_line: int, budget: _Budget) -> None:
        self._first_line = first_line
        self._budget = budget
        self._open: list[_Open] = []
        self._anchors: dict[str, _Node] = {}

    def feed(self, event: yaml.Event) -> Value | None:
        """Return a document's value when it ends. Raises _RefusedError."""
        line = self._first_line + (event.start_mark.line if event.start_mark else 0)
        if isinstance(event, yaml.DocumentStartEvent):
            self._anchors.clear()
        elif isinstance(event, yaml.CollectionStartEvent):
            is_map = isinstance(event, yaml.MappingStartEvent)
            if event.tag not in (None, "!", _TAG + ("map" if is_map else "seq")):
                raise _RefusedError(line, f"tag {printable(str(event.tag))} is not read")
            self._budget.take(1, line)
            self._open.append(_Open(line, event.anchor, is_map))
            self._check_depth(0, line)
        elif isinstance(event, yaml.CollectionEndEvent):
            done = self._open.pop()
            return self._place(done.node(), done.anchor)
        elif isinstance(event, yaml.ScalarEvent):
            self._budget.take(1, line)
            return self._place(_Node(Value(_scalar(event, line), line)), event.anchor)
        elif isinstance(event, yaml.AliasEvent):
            return self._place(self._alias(event, line), None)
        return None

    def _alias(self, event: yaml.AliasEvent, line: int) -> _Node:
        node = self._anchors.get(str(event.anchor))
        if node is None:
            # Also one that is not complete: it would contain itself.
            raise _RefusedError(line, f"no anchor {printable(str(event.anchor))} above")
        self._budget.take(node.size, line)
        self._check_depth(node.height + 1, line)
        return node

    def _check_depth(self, more: int, line: int) -> None:
        if len(self._open) + more > DEPTH_MAX:
            raise _RefusedError(line, f"values are nested deeper than {DEPTH_MAX}")

    def _place(self, node: _Node, anchor: str | None) -> Value | None:
        if anchor is not None:
            self._anchors[anchor] = node
        if not self._open:
            return node.value
        self._open[-1].add(node)
        return None


def _scalar(event: yaml.ScalarEvent, line: int) -> Plain:
    tag, text = event.tag, str(event.value)
    if tag in ("!", _TAG + "str"):
        return text
    if tag is not None:
        raise _RefusedError(line, f"tag {printable(str(tag))} is not read")
    return _resolve(text) if event.implicit[0] else text


def _resolve(text: str) -> Plain:
    """Return what a word without quotes is."""
    if text in _NULLS:
        return None
    if _INT.fullmatch(text):
        return int(text)
    if text in _BOOLEANS:
        return Unquoted(text, "a boolean")
    if _NUMBER.fullmatch(text):
        return Unquoted(text, "a number")
    return text  # also a date: Kubernetes has no type for it
