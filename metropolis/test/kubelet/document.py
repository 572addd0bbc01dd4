# SPDX-License-Identifier: Apache-2.0
"""YAML documents as values that know their lines. Pure.

The values are those that Kubernetes sees: null, booleans, integers, floats,
strings, lists, and maps with strings as keys. Refused: keys that occur twice,
other tags, merge keys, and files whose depth or size after the expansion of
anchors has no reason.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import yaml

MOST_BYTES = 256 << 10
MOST_DEPTH = 40
MOST_VALUES = 20_000
"""Limits of a file, with anchors expanded."""

_TAG = "tag:yaml.org,2002:"

type Plain = bool | int | float | str | list[Value] | dict[str, Value] | None


class DocumentError(Exception):
    """The text is not a document that is read here; it begins with a line."""

    def __init__(self, line: int, text: str) -> None:
        super().__init__(f"{line}: {text}")


@dataclass(frozen=True)
class Value:
    """A value of a document. line: from 1, of its beginning."""

    plain: Plain
    line: int


def read(text: str) -> list[Value]:
    """Return the documents of a text, without those that are empty.

    Raises DocumentError.
    """
    if len(text.encode(errors="replace")) > MOST_BYTES:
        raise DocumentError(1, f"the file has more than {MOST_BYTES >> 10} KiB")
    try:
        _check_depth(text)
        nodes = list(yaml.compose_all(text, yaml.SafeLoader))
        builder = _Builder()
        found = [builder.value(node, frozenset()) for node in nodes if node is not None]
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        said = " ".join(part for part in (error.context, error.problem) if part)
        raise DocumentError(mark.line + 1 if mark else 1, f"not YAML: {said}") from error
    except yaml.YAMLError as error:
        raise DocumentError(1, f"not YAML: {str(error).splitlines()[0]}") from error
    return [value for value in found if value.plain is not None]


def _check_depth(text: str) -> None:
    """Raise DocumentError before the composer, which recurses, meets it."""
    depth = 0
    for event in yaml.parse(text, yaml.SafeLoader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > MOST_DEPTH:
                line = event.start_mark.line + 1 if event.start_mark else 1
                raise DocumentError(line, f"values are nested deeper than {MOST_DEPTH}")
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1


class _Builder:
    def __init__(self) -> None:
        self._made = 0
        self._scalars = yaml.SafeLoader("")

    def value(self, node: yaml.Node, above: frozenset[int]) -> Value:
        """above: nodes that contain this one, by id."""
        line = node.start_mark.line + 1
        self._made += 1
        if self._made > MOST_VALUES:
            raise DocumentError(
                line, f"the file has more than {MOST_VALUES} values, with anchors expanded"
            )
        if id(node) in above:
            raise DocumentError(line, "an anchor contains itself")
        inside = above | {id(node)}
        if isinstance(node, yaml.MappingNode) and node.tag == _TAG + "map":
            return Value(dict(self._items(node, inside)), line)
        if isinstance(node, yaml.SequenceNode) and node.tag == _TAG + "seq":
            return Value([self.value(item, inside) for item in node.value], line)
        if isinstance(node, yaml.ScalarNode):
            return Value(self._scalar(node, line), line)
        raise DocumentError(line, f"tag {node.tag}: only plain YAML is read")

    def _items(self, node: yaml.MappingNode, inside: frozenset[int]) -> Iterator[tuple[str, Value]]:
        seen: dict[str, int] = {}
        for key, item in node.value:
            line = key.start_mark.line + 1
            if key.tag == _TAG + "merge":
                raise DocumentError(line, "merge keys (<<) are not read; write the fields out")
            name = self.value(key, inside).plain
            if not isinstance(name, str):
                raise DocumentError(
                    line, f"a key has to be a string; quote it: '{getattr(key, 'value', '')}'"[:100]
                )
            if name in seen:
                raise DocumentError(line, f"key {name!r} again; it is in line {seen[name]} already")
            seen[name] = line
            yield name, self.value(item, inside)

    def _scalar(self, node: yaml.ScalarNode, line: int) -> bool | int | float | str | None:
        kind = node.tag.removeprefix(_TAG)
        if kind == "str":
            return str(node.value)
        if kind == "timestamp":
            # Kubernetes' reader has no type for it.
            return str(node.value)
        if kind not in ("null", "bool", "int", "float"):
            raise DocumentError(line, f"tag {node.tag}: only plain YAML is read")
        try:
            made: bool | int | float | None = self._scalars.construct_object(node)
        except (ValueError, KeyError) as error:
            # Such as !!int "x", or digits without end.
            raise DocumentError(line, f"{node.value[:40]!r} is no {kind}") from error
        return made
