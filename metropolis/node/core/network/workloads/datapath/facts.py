# SPDX-License-Identifier: Apache-2.0
"""What parts ask about the host before an attach: see parts.HostFacts."""

from collections.abc import Collection, Sequence
from ipaddress import IPv4Address, IPv6Address

from metropolis.node.core.network.workloads.datapath.host import Host
from metropolis.node.core.network.workloads.datapath.parts import Listening
from metropolis.node.core.network.workloads.model import IPAddress
from osbase.netlink.errors import BatchError
from osbase.netlink.route import RTN_LOCAL, get_route, parse_route

_ANY = {4: IPv4Address(0), 6: IPv6Address(0)}


class KernelFacts:
    """The host of the calling thread. Thread-safe."""

    def __init__(self, host: Host) -> None:
        self._host = host

    def is_local(self, ip: IPAddress) -> bool:
        """See HostFacts."""
        try:
            with self._host.sockets.socket() as sock:
                route = parse_route(sock.get(get_route(ip)))
        except BatchError:
            return False  # there is no route, or one that rejects
        return route is not None and route.kind == RTN_LOCAL

    def listening(self, protocol: str, version: int, ports: Collection[int]) -> Sequence[Listening]:
        """See HostFacts. An IPv6 socket for all addresses usually has those of
        IPv4, too (ipv6(7), IPV6_V6ONLY).
        """
        # Most attaches ask for no port.
        from osbase.netlink import sock_diag

        found = list(sock_diag.listeners(protocol, version, ports))
        if version == 4 and self._host.ipv6:
            found += [
                one
                for one in sock_diag.listeners(protocol, 6, ports)
                if one.address == _ANY[6] and not one.v6only
            ]
        return [
            Listening(
                one.port,
                None if one.address in _ANY.values() else one.address,
                sock_diag.process_of(one),
            )
            for one in found
        ]
