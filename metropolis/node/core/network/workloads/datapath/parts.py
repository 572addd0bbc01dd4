# SPDX-License-Identifier: Apache-2.0
"""Parts of attachments as the datapath sees them. Pure.

A part's module has a subclass of LinkPart, which gives the datapath:

    refuse     raises an error for what this node cannot do now
    sets       the nftables sets and maps that its elements are in
    requests   what an attach sends to set up the link, before the commit
    change     what is sent when a call changes the text of an attachment
    elements   the nftables elements of an attachment
    companion  whether the attachment has a second link on the host
    findings   differences of the link from what `requests` set
    queue_findings   the same, of queueing disciplines and the second link
    host_findings    what the host has lost that the attachment needs
    flows      tracked flows to delete when the elements have come or gone
    taken_over tracked flows of which some may go elsewhere, when they have come
    stale      which of these do
    left_over  those that elements led whose attachment is gone

The datapath does the rest, in the same way for all parts. It writes the texts
on the link and reads them from it. It creates the elements of all parts before
the commit, in one transaction, and removes them before it removes the link, or
when the link is gone. Behind both it deletes the flows, see datapath.flows. A
start and the reconciler create missing elements again,
and send `requests` again if there are findings. Check reports both, and what
host_findings has, which nothing here can repair.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Final, Protocol

from metropolis.node.core.network.workloads.datapath import names
from metropolis.node.core.network.workloads.datapath.elements import Element, Found, NftSet
from metropolis.node.core.network.workloads.datapath.interface import Record
from metropolis.node.core.network.workloads.errors import InvalidArgument
from metropolis.node.core.network.workloads.model import Finding, IPAddress, PartText
from metropolis.node.core.network.workloads.parts import Part, Resource
from osbase.netlink.link import Link
from osbase.netlink.message import Request

if TYPE_CHECKING:
    from metropolis.node.core.network.workloads.datapath.queues import Queues
    from osbase.conntrack.delete import Choice, Filter
    from osbase.netlink.sock_diag import Listener


class HostFacts(Protocol):
    """What parts may ask about the host. Raises NetlinkError or OSError."""

    def is_local(self, ip: IPAddress) -> bool:
        """Whether it is an address of the host."""

    def listeners(self, protocol: str, ports: Collection[int]) -> Sequence[Listener]:
        """Return the sockets that receive what anybody sends to these ports of
        the host. protocol: tcp, udp or sctp.
        """

    def process_of(self, listener: Listener) -> str:
        """Name the process that has the socket, for people."""

    def has_element(self, one: NftSet, key: bytes) -> bool:
        """Whether the set has an element with the key, anybody's."""


class LinkPart(Part):
    """Base of the parts' modules. The texts that its methods get have passed
    `check`.

    sets: all that its elements may be in; their tables are made elsewhere.
    queues: whether it has queue_findings.
    """

    sets: tuple[NftSet, ...] = ()
    queues: bool = False

    def refuse(self, record: Record, text: str, host: HostFacts) -> None:
        """Raise InvalidArgument or FailedPrecondition for what the host cannot
        do now. Only an attach asks; an attachment that exists stays.
        """

    def requests(self, record: Record, text: str) -> Sequence[Request]:
        """Return what to send to the host before the commit, in one batch with
        it. The link exists, is down, and has its name. A repair sends them
        again: they must succeed on a link that has the settings already.
        """
        return ()

    def change(self, record: Record, before: str, now: str) -> Sequence[Request]:
        """Return requests that change the link from one text to another, of
        which one may be "". What they remove may be gone, or be another's: see
        changes.
        """
        return ()

    def elements(self, record: Record, text: str) -> Sequence[Element]:
        """Return the attachment's elements. Two attachments without a common
        resource must not have a common key.
        """
        return ()

    def findings(self, record: Record, text: str, link: Link) -> Iterable[Finding]:
        """Return the differences of the host's end from what `requests` set."""
        return ()

    def companion(self, text: str) -> bool:
        """Return whether `requests` make a second link: see companions."""
        return False

    def queue_findings(self, record: Record, text: str, queues: Queues) -> Iterable[Finding]:
        """Return the differences of queueing disciplines, and of the second
        link, from what `requests` made.
        """
        return ()

    def host_findings(self, record: Record, text: str, host: HostFacts) -> Iterable[Finding]:
        """Return what the host had at the attach, and has no more."""
        return ()

    def flows(self, record: Record, text: str, *, begins: bool) -> Sequence[Filter]:
        """Return filters for tracked flows whose packets the kernel would send
        where they went before. begins: the elements were created; else they are
        gone. Why no other flow may match: see osbase.conntrack.delete.
        """
        return ()

    def taken_over(self, record: Record, text: str, host: HostFacts) -> Sequence[Filter]:
        """Return filters for tracked flows that had to go to another attachment
        before the elements were created; `stale` says which still do.
        """
        return ()

    def stale(self, record: Record, text: str, host: HostFacts) -> Choice:
        """Return a function of a flow: whether its next packet would go
        elsewhere if it were the first.
        """
        return lambda _: False

    def left_over(self, gone: Collection[Found]) -> Sequence[Filter]:
        """Return filters for the tracked flows that elements have led. gone:
        those of one link, which were removed since it has no attachment. Their
        data are not known.
        """
        return ()


class Parts:
    """The parts that a datapath knows. Raises ValueError if two have the same
    letter, or one has a letter of names.OWN_LETTERS, or one that a restart
    would not read.
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
        """The sets and maps that elements may be in."""
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
        """Yield the resources of the attachment."""
        for letter, text in record.parts:
            yield from self._by_letter[letter].resources(text, record.ips)

    def refuse(self, record: Record, host: HostFacts) -> None:
        """Raise the first error of a part about the host."""
        for letter, text in record.parts:
            self._by_letter[letter].refuse(record, text, host)

    def requests(self, record: Record) -> list[Request]:
        """Return the requests of all parts, which precede the commit."""
        return [
            request
            for letter, text in record.parts
            for request in self._by_letter[letter].requests(record, text)
        ]

    def change(self, before: Record, now: Record) -> Iterator[Request]:
        """Yield the requests for all texts that differ."""
        texts, others = dict(before.parts), dict(now.parts)
        for letter in sorted(texts.keys() | others.keys()):
            text, other = texts.get(letter, ""), others.get(letter, "")
            if text != other:
                yield from self._by_letter[letter].change(now, text, other)

    def elements(self, record: Record) -> list[Element]:
        """Return the elements of all parts."""
        return [
            element
            for letter, text in record.parts
            for element in self._by_letter[letter].elements(record, text)
        ]

    def findings(
        self, record: Record, link: Link, queues: Queues | None
    ) -> Iterator[tuple[Finding, Sequence[Request]]]:
        """Yield the link's differences, each with the requests to repair it:
        those of a part have the same. queues: None: unknown.
        """
        for letter, text in record.parts:
            part = self._by_letter[letter]
            found = [*part.findings(record, text, link)]
            if part.queues and queues is not None:
                found += part.queue_findings(record, text, queues)
            if found:
                requests = part.requests(record, text)
                yield from ((finding, requests) for finding in found)

    def host_findings(self, record: Record, host: HostFacts) -> Iterator[Finding]:
        """Yield those of all parts."""
        for letter, text in record.parts:
            yield from self._by_letter[letter].host_findings(record, text, host)

    def companion(self, record: Record) -> bool:
        """Whether the attachment has a second link on the host."""
        return any(self._by_letter[letter].companion(text) for letter, text in record.parts)

    def has_queues(self, record: Record) -> bool:
        """Whether a part of the attachment looks at queueing disciplines."""
        return any(self._by_letter[letter].queues for letter, _ in record.parts)

    def flows(self, record: Record, *, begins: bool) -> Iterator[Filter]:
        """Yield the filters of all parts."""
        for letter, text in record.parts:
            yield from self._by_letter[letter].flows(record, text, begins=begins)

    def taken_over(self, record: Record, host: HostFacts) -> list[Filter]:
        """Return the filters of all parts."""
        return [
            one
            for letter, text in record.parts
            for one in self._by_letter[letter].taken_over(record, text, host)
        ]

    def left_over(self, gone: Iterable[Found]) -> list[Filter]:
        """Return the filters of all parts. gone: elements of any links."""
        by_link: dict[int, list[Found]] = {}
        for one in gone:
            by_link.setdefault(one.ifindex, []).append(one)
        return [
            one for some in by_link.values() for part in self.all for one in part.left_over(some)
        ]

    def stale(self, record: Record, host: HostFacts) -> Choice:
        """Return a function of a flow: whether a part says so."""
        say = [self._by_letter[letter].stale(record, text, host) for letter, text in record.parts]
        return lambda flow: any(one(flow) for one in say)


NO_PARTS: Final = Parts()
