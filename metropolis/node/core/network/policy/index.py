# SPDX-License-Identifier: Apache-2.0
"""Which selectors match a workload, without asking each. Pure.

A selector with an IN requirement can match only labels that have one of its
values. So it is kept by these (key, value), and a look-up asks the selectors
under the labels that there are, and those without an IN requirement. This is
done twice: for a namespace, and for workloads in a namespace.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from metropolis.node.core.network.policy.model import Operator, Selector, Workload, Workloads
from metropolis.node.core.network.policy.selectors import Labels, matches, namespace_labels


class _Selectors:
    """Selectors by what they can match."""

    def __init__(self) -> None:
        self._by_label: dict[tuple[str, str], dict[int, Selector]] = {}
        self._others: dict[int, Selector] = {}

    def add(self, bit: int, selector: Selector) -> None:
        for shelf in self._shelves(selector):
            shelf[bit] = selector

    def remove(self, bit: int, selector: Selector) -> None:
        for shelf in self._shelves(selector):
            shelf.pop(bit, None)

    def matching(self, labels: Labels) -> Iterator[int]:
        shelves = [self._others]
        shelves += [shelf for item in labels.items() if (shelf := self._by_label.get(item))]
        for shelf in shelves:
            for bit, selector in shelf.items():
                if matches(selector, labels):
                    yield bit

    def _shelves(self, selector: Selector) -> list[dict[int, Selector]]:
        for requirement in selector:
            if requirement.operator is Operator.IN:
                return [
                    self._by_label.setdefault((requirement.key, value), {})
                    for value in requirement.values
                ]
        return [self._others]


class SelectorIndex:
    """The selectors of all policies, by the position of their bit."""

    def __init__(self, namespaces: Mapping[str, Labels]) -> None:
        self._namespaces = namespaces
        self._selectors: dict[int, Workloads] = {}
        self._of_namespaces = _Selectors()
        self._within: dict[str, _Selectors] = {}

    def add(self, bit: int, selector: Workloads) -> None:
        """Add a selector; its bit is free."""
        self._selectors[bit] = selector
        self._of_namespaces.add(bit, selector.namespaces)
        for name in self._selected(selector, self._within):
            self._within[name].add(bit, selector.workloads)

    def remove(self, bit: int) -> None:
        """Remove a selector."""
        selector = self._selectors.pop(bit)
        self._of_namespaces.remove(bit, selector.namespaces)
        for name in self._selected(selector, self._within):
            self._within[name].remove(bit, selector.workloads)

    def set_namespaces(self, namespaces: Mapping[str, Labels]) -> set[str]:
        """Replace the labels of namespaces. Return the names of those whose
        labels differ.
        """
        before, self._namespaces = self._namespaces, namespaces
        if before is namespaces or before == namespaces:
            return set()
        changed = {
            name
            for name in before.keys() | namespaces.keys()
            if namespace_labels(name, before) != namespace_labels(name, namespaces)
        }
        for name in changed:
            self._within.pop(name, None)
        return changed

    def namespaces_of(self, selector: Workloads, names: Iterable[str]) -> list[str]:
        """Return the namespaces among `names` that a selector matches."""
        return list(self._selected(selector, names))

    def bits(self, workload: Workload) -> int:
        """Return the bits of the selectors that match."""
        mask = 0
        if workload.known and workload.namespace is not None:
            for bit in self._in(workload.namespace).matching(workload.labels):
                mask |= 1 << bit
        return mask

    def _selected(self, selector: Workloads, names: Iterable[str]) -> Iterator[str]:
        for name in names:
            if matches(selector.namespaces, namespace_labels(name, self._namespaces)):
                yield name

    def _in(self, name: str) -> _Selectors:
        if (within := self._within.get(name)) is None:
            within = self._within[name] = _Selectors()
            for bit in self._of_namespaces.matching(namespace_labels(name, self._namespaces)):
                within.add(bit, self._selectors[bit].workloads)
        return within
