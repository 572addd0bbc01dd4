# SPDX-License-Identifier: Apache-2.0
"""Parts of an attachment: what a request may ask for besides addresses.

Host ports or a bandwidth are parts. One module has all of a part; the engine,
the ledger and the datapath iterate over the parts that they are given, so a new
part changes none of them: the package says which files it touches. The engine
and the ledger use two of a part's methods:

    check       raises an error for a text that the part does not understand
    resources   the resources that a text needs

The datapath uses more of them: see datapath.parts, whose LinkPart is the base
of the parts' modules. All methods are pure.

In a request and on a link, a part is a letter, which names the part, and a
text, which only the part's module understands. The text is in canonical form:
two requests ask for the same if and only if their texts are equal. The text is
written on the link unchanged, where a restart reads it, and it is in the digest
of the request.

A part may let a call change its text while the attachment lives. Such a text
begins with CHANGED, so that the request of the attach, when it is repeated,
still gets its attachment.
"""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from metropolis.node.core.network.workloads.errors import InvalidArgument
from metropolis.node.core.network.workloads.model import IPAddress, PartText
from metropolis.node.core.network.workloads.validate import show

TEXT_MAX: Final = 981
"""Characters: as many as nine alternative names of a link hold. A few host
ports need three names, as a workload id does; many ports, or ports of single
IPv6 addresses, need more.
"""

CHANGED: Final = "="
"""The first character of a text that a call has set after the attach."""


@dataclass(frozen=True, slots=True)
class Resource:
    """Something that at most one attachment of the node has: a host port.

    key: two resources conflict if their keys are equal, also if they are of two
    parts. text: for people, `tcp port 80`.
    """

    key: Hashable
    text: str


class Part:
    """Base of all parts; override what the part has. Instances have no state.

    letter: a lower-case letter that no other part has; see datapath.names.
    name: for people and for the fields of errors, `host_ports`.
    """

    letter: str
    name: str

    def check(self, text: str) -> None:
        """Raise InvalidArgument, its field the part's name, for a text that the
        part does not understand or that is not canonical.

        text: 1 to TEXT_MAX printable ASCII characters. If a text on a link is
        refused, a newer version made the link.
        """

    def resources(self, text: str, ips: Sequence[IPAddress]) -> Iterable[Resource]:
        """Return the resources of an attachment with these addresses. The text
        has passed `check`.
        """
        return ()


def is_of_request(now: Iterable[PartText], asked: Iterable[PartText]) -> bool:
    """Return whether an attachment has the parts that a request asked for, but
    for those that were changed since.
    """
    changed = {letter for letter, text in now if text.startswith(CHANGED)}
    there, wanted = ([one for one in some if one[0] not in changed] for some in (now, asked))
    return there == wanted


def with_text(texts: Iterable[PartText], letter: str, text: str) -> tuple[PartText, ...]:
    """Return the texts with another one for the letter, in order."""
    return tuple(sorted([*(one for one in texts if one[0] != letter), (letter, text)]))


def check_texts(parts: Sequence[Part], texts: Sequence[PartText]) -> None:
    """Raise InvalidArgument unless each text has the letter of one of the
    parts, that part understands it, and the letters ascend.
    """
    known: Mapping[str, Part] = {part.letter: part for part in parts}
    before = ""
    for letter, text in texts:
        part = known.get(letter)
        if part is None:
            raise InvalidArgument(f"parts {show(letter)}: is not known", field="parts")
        if letter <= before:
            raise InvalidArgument(
                f"parts {show(letter)}: comes after {show(before)}; must be in the order of the "
                "letters, each once",
                field="parts",
            )
        before = letter
        if not text or len(text) > TEXT_MAX or not (text.isascii() and text.isprintable()):
            raise InvalidArgument(
                f"{part.name} {show(text)}: must be 1 to {TEXT_MAX} printable ASCII characters",
                field=part.name,
            )
        part.check(text)
