# SPDX-License-Identifier: Apache-2.0
"""What parts ask about the host: see parts.HostFacts."""

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from metropolis.node.core.network.workloads.datapath.elements import Elements, NftSet
from metropolis.node.core.network.workloads.datapath.host import Host
from metropolis.node.core.network.workloads.model import IPAddress
from osbase.netlink.errors import BatchError
from osbase.netlink.route import RTN_LOCAL, get_route, parse_route

if TYPE_CHECKING:
    from osbase.netlink.sock_diag import Listener


class KernelFacts:
    """The host of the calling thread. Thread-safe."""

    def __init__(self, host: Host, elements: Elements) -> None:
        self._host = host
        self._elements = elements

    def is_local(self, ip: IPAddress) -> bool:
        """See HostFacts."""
        try:
            with self._host.sockets.socket() as sock:
                route = parse_route(sock.get(get_route(ip)))
        except BatchError:
            return False  # there is no route, or one that rejects
        return route is not None and route.kind == RTN_LOCAL

    def listeners(self, protocol: str, ports: Collection[int]) -> Sequence[Listener]:
        """See HostFacts."""
        from osbase.netlink import sock_diag  # most attaches ask for no port

        return sock_diag.listeners(protocol, ports)

    def process_of(self, listener: Listener) -> str:
        """See HostFacts."""
        from osbase.netlink import sock_diag

        return sock_diag.process_of(listener)

    def has_element(self, one: NftSet, key: bytes) -> bool:
        """See HostFacts."""
        return self._elements.has(one, key)
