# SPDX-License-Identifier: Apache-2.0
"""A part of an attachment for tests: a whole one, in this one file.

A workload may ask for colours. Each is one workload's on the node, like a host
port; the link's `tag` (net.ipv4.conf.LINK.tag, which nothing reads) is the
number of the first; and a map has the workload's IPv4 address by the number. It
cannot be attached while a process of the host listens at RESERVED, by TCP.
"""

from collections.abc import Iterable, Sequence
from typing import Final

from metropolis.node.core.network.workloads.datapath.elements import (
    Element,
    NftSet,
    pack,
    unpack,
)
from metropolis.node.core.network.workloads.datapath.interface import Record
from metropolis.node.core.network.workloads.datapath.parts import HostFacts, LinkPart
from metropolis.node.core.network.workloads.errors import (
    FailedPrecondition,
    InvalidArgument,
)
from metropolis.node.core.network.workloads.model import Finding, IPAddress
from metropolis.node.core.network.workloads.parts import Resource
from metropolis.node.core.network.workloads.validate import show
from osbase.netlink.link import Link, set_link_ipv4_setting
from osbase.netlink.message import Request

NUMBERS: Final = {"blue": 1, "green": 2, "red": 3}
COLOURS: Final = NftSet("inet", "toy", "colours", ("mark",), ("ipv4_addr",))
TABLE: Final = "table inet toy { map colours { type mark : ipv4_addr; }; }"
RESERVED: Final = 4001
IPV4_DEVCONF_TAG: Final = 12  # linux/ip.h


class Colour(LinkPart):
    """Texts: `blue`, `blue,red`; in the order of the alphabet, each once."""

    letter = "c"
    name = "colours"
    sets = (COLOURS,)

    def check(self, text: str) -> None:
        """See Part."""
        words = text.split(",")
        if words != sorted(NUMBERS.keys() & words):
            raise InvalidArgument(f"colours {show(text)}: must be colours", field=self.name)

    def resources(self, text: str, ips: Sequence[IPAddress]) -> Iterable[Resource]:
        """See Part."""
        return [Resource(("colour", word), f"colour {word}") for word in text.split(",")]

    def refuse(self, record: Record, text: str, host: HostFacts) -> None:
        """See LinkPart."""
        for one in host.listeners("tcp", {RESERVED}):
            raise FailedPrecondition(f"colours: {host.process_of(one)} listens at {one.address}")

    def requests(self, record: Record, text: str) -> Sequence[Request]:
        """See LinkPart."""
        index, name = record.host_ifindex, record.host_interface
        return [set_link_ipv4_setting(index, name, IPV4_DEVCONF_TAG, _tag(text))]

    def elements(self, record: Record, text: str) -> Sequence[Element]:
        """See LinkPart."""
        ip = str(record.ips[0])
        return [element(str(NUMBERS[word]), ip) for word in text.split(",")]

    def findings(self, record: Record, text: str, link: Link) -> Iterable[Finding]:
        """See LinkPart."""
        tag, found = _tag(text), link.ipv4_setting(IPV4_DEVCONF_TAG)
        if found != tag:
            yield Finding(f"tag of {record.host_interface}", str(tag), str(found))


def element(key: str, data: str = "10.0.0.1", *, in_map: NftSet = COLOURS) -> Element:
    """Return an element of the map, from what nft(8) shows."""
    return Element(in_map, pack(in_map.key, key), pack(in_map.data, data))


def shown_key(key: bytes) -> str:
    """Return a key as nft(8) shows it."""
    return unpack(COLOURS.key, key)


def _tag(text: str) -> int:
    return NUMBERS[text.partition(",")[0]]


COLOUR: Final = Colour()
