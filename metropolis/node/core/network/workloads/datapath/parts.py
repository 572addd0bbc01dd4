# SPDX-License-Identifier: Apache-2.0
"""Parts of attachments as the datapath sees them. Pure.

A part's module says all that the datapath needs to know of it:

    sets       where its elements are
    requests   what an attach adds to the link before the commit
    elements   the nftables elements that it has
    findings   what of the link is not as `requests` left it

The datapath does the rest, for all parts alike. It writes the texts on the link
and reads them back; it creates the elements before the commit, in one
transaction with those of other parts, and removes them before the link, or when
the link is gone; a start and the reconciler put back elements that are missing,
and send `requests` again where there are findings; Check says both.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from metropolis.node.core.network.workloads.datapath import names
from metropolis.node.core.network.workloads.datapath.elements import Element, NftSet
from metropolis.node.core.network.workloads.datapath.interface import Record
from metropolis.node.core.network.workloads.errors import InvalidArgument
from metropolis.node.core.network.workloads.model import Finding, PartText
from metropolis.node.core.network.workloads.parts import Part, Resource
from osbase.netlink.link import Link
from osbase.netlink.message import Request


class LinkPart(Part):
    """A part of an attachment whose host's end is a link. Its texts, in the
    methods, have passed `check`.

    sets: all that its elements may be in; their tables are made elsewhere.
    """

    sets: tuple[NftSet, ...] = ()

    def requests(self, record: Record, text: str) -> Sequence[Request]:
        """Return what to send to the host before the commit, in one batch with
        it. The link exists, is down, and has its name. To be sent again, they
        must succeed where they have succeeded before.
        """
        return ()

    def elements(self, record: Record, text: str) -> Sequence[Element]:
        """Return its elements; keys are such that no two attachments whose
        resources differ have one in common.
        """
        return ()

    def findings(self, record: Record, text: str, link: Link) -> Iterable[Finding]:
        """Return what of the host's end is not as `requests` left it."""
        return ()


class Parts:
    """The parts that a datapath knows. ValueError: two have one letter, or one
    has none of its own, or one that a restart would not read.
    """

    def __init__(self, parts: Iterable[LinkPart] = ()) -> None:
        self.all: Final = tuple(parts)
        self._by_letter: Final = {part.letter: part for part in self.all}
        self.letters: Final = frozenset(self._by_letter)
        own = len(self.letters) == len(self.all) and not self.letters & names.OWN_LETTERS
        if not own or not all(map(names.is_letter, self.letters)):
            raise ValueError(f"letters of parts: {', '.join(part.letter for part in self.all)}")

    def __bool__(self) -> bool:
        return bool(self.all)

    @property
    def sets(self) -> Iterator[NftSet]:
        """Where elements may be."""
        return (one for part in self.all for one in part.sets)

    def understand(self, texts: Sequence[PartText]) -> bool:
        """Whether all texts are of these parts, and of this version of them."""
        try:
            for letter, text in texts:
                self._by_letter[letter].check(text)
        except KeyError, InvalidArgument:
            return False
        return True

    def resources(self, record: Record) -> Iterator[Resource]:
        """Yield what the attachment has reserved on the node."""
        for letter, text in record.parts:
            yield from self._by_letter[letter].resources(text, record.ips)

    def requests(self, record: Record) -> list[Request]:
        """Return what precedes the commit, of all parts."""
        return [
            request
            for letter, text in record.parts
            for request in self._by_letter[letter].requests(record, text)
        ]

    def elements(self, record: Record) -> list[Element]:
        """Return the elements of all parts."""
        return [
            element
            for letter, text in record.parts
            for element in self._by_letter[letter].elements(record, text)
        ]

    def findings(self, record: Record, link: Link) -> Iterator[tuple[Finding, Sequence[Request]]]:
        """Yield what differs on the link, with what puts it right."""
        for letter, text in record.parts:
            part = self._by_letter[letter]
            for finding in part.findings(record, text, link):
                yield finding, part.requests(record, text)


NO_PARTS: Final = Parts()
