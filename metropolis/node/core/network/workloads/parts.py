# SPDX-License-Identifier: Apache-2.0
"""Parts of an attachment: what a request may ask for besides addresses.

Host ports or a bandwidth are parts. One module has all of a part; the engine,
the ledger and the datapath iterate over the parts that they are given, so
adding one touches no other. This is what the engine and the ledger see:

    check       whether a text is one that the part understands
    resources   what must be reserved on the node for it

What the datapath sees besides is in datapath.parts. Everything is pure.

A part of an attachment is a letter, which says of which part it is, and a text,
which the part's module alone understands. The text is in canonical form: two
requests ask for the same if and only if their texts are equal. It is written on
the link as it is, which is how a restart reads it back, and it is in the digest
of the request.
"""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from metropolis.node.core.network.workloads.errors import InvalidArgument
from metropolis.node.core.network.workloads.model import IPAddress, PartText
from metropolis.node.core.network.workloads.validate import show

TEXT_MAX: Final = 981
"""Characters: what nine alternative names of a link hold. A few host ports need
three of them, as many as a workload id; ports of single IPv6 addresses are
longer, and many.
"""


@dataclass(frozen=True, slots=True)
class Resource:
    """What one attachment of a node has at most, such as a host port.

    key: equal for two resources that conflict, of whatever part. text: for
    people, `tcp port 80`.
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

        It has 1 to TEXT_MAX printable ASCII characters. A text on a link that
        is refused is one of a newer version.
        """

    def resources(self, text: str, ips: Sequence[IPAddress]) -> Iterable[Resource]:
        """Return what is reserved for an attachment with these addresses. The
        text has passed `check`.
        """
        return ()


def check_texts(parts: Sequence[Part], texts: Sequence[PartText]) -> None:
    """Raise InvalidArgument unless every text is of one of the parts, which
    understands it, and they are in the order of their letters, one a part.
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
