# SPDX-License-Identifier: Apache-2.0
"""Which pod prefixes overlap a used network or address. Pure.

    in use                                   refuses a pod prefix that
    a network on a link                      shares an address with it
    a network behind a gateway               equals or contains it
    one address (host, gateway, name         contains it
    server, etcd, another node's underlay)
    a network whose route is preferred       shares an address with it
    to the main table's, as some VPNs' are

A route to more than the prefix is ordinary: with 10.0.0.0/8 through a router
and pods in 10.192.0.0/24, only other traffic goes to the router.

In a conflict the pod prefix always loses: without its address or underlay a
node reaches nobody, not even the operator who could correct it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Final

from metropolis.node import allocs
from osbase.ip import IPAddress, IPNetwork
from osbase.net.occupied import Kind, Occupied

_BY_ADDRESS: Final = {2: "by router advertisement"}
"""By IFA_PROTO (linux/if_addr.h)."""

_BY_ROUTE: Final = {4: "by hand", 9: "by router advertisement", 16: "by DHCP"}
"""By rtm_protocol (linux/rtnetlink.h)."""


@dataclass(frozen=True)
class Used:
    """A used network or address. text: for people. behind: via a gateway."""

    network: IPNetwork
    text: str
    behind: bool = False


@dataclass(frozen=True)
class Refusal:
    """A refused pod prefix or network. cause: what it overlaps."""

    prefix: IPNetwork
    cause: Used

    def __str__(self) -> str:
        """Return the refused one and its cause."""
        return f"pod prefix {self.prefix} overlaps {self.cause.text}"


def of_kernel(found: Iterable[Occupied], by_hand: Collection[IPNetwork]) -> list[Used]:
    """Return what the kernel uses. by_hand: networks of the uplink, as
    configured; its others come from DHCP.
    """
    return [Used(one.network, _text(one, by_hand), one.kind is Kind.ROUTE) for one in found]


def of_address(address: IPAddress, what: str) -> Used:
    """Return an address in use; `what` is "name server" or the like."""
    return Used(ip_network(address), f"{what} {address}")


def _text(one: Occupied, by_hand: Collection[IPNetwork]) -> str:
    if one.origin == allocs.ROUTE_PROTOCOL_UPLINK:
        origin = "as configured" if one.network in by_hand else "by DHCP"
    else:
        origin = (_BY_ADDRESS if one.by_address else _BY_ROUTE).get(one.origin, "")
    where = f" on {one.link} ({origin})" if origin else f" on {one.link}"
    match one.kind:
        case Kind.NETWORK:
            return f"{one.network}{where}"
        case Kind.ROUTE | Kind.PREFERRED:
            via = f" via {one.gateway}" if one.gateway is not None else ""
            return f"{one.kind.value} {one.network}{via}{where}"
        case Kind.ADDRESS | Kind.GATEWAY:
            return f"{one.kind.value} {one.network.network_address}{where}"


def conflicts(
    prefixes: Iterable[IPNetwork],
    in_use: Sequence[Used],
    before: Mapping[IPNetwork, Refusal] | None = None,
) -> dict[IPNetwork, Refusal]:
    """Return the refused ones, each with the first that it overlaps.

    before: the former refusals. A cause that still holds is kept, since a
    second one is no news.
    """
    known = before or {}
    found = {}
    for prefix in prefixes:
        causes = [one for one in in_use if overlap(prefix, one)]
        if not causes:
            continue
        last = known.get(prefix)
        kept = last is not None and last.cause in causes
        found[prefix] = last if last is not None and kept else Refusal(prefix, causes[0])
    return found


def overlap(prefix: IPNetwork, used: Used) -> bool:
    """Return whether the prefix cannot be the pods'; see above."""
    return _within(used.network, prefix) if used.behind else share(prefix, used.network)


def share(one: IPNetwork, other: IPNetwork) -> bool:
    """Return whether both share an address."""
    return _within(one, other) or _within(other, one)


def inside(prefix: IPNetwork, networks: Iterable[IPNetwork]) -> IPNetwork | None:
    """Return the network that contains the prefix, if any."""
    return next((network for network in networks if _within(prefix, network)), None)


def _within(one: IPNetwork, other: IPNetwork) -> bool:
    if isinstance(one, IPv4Network) and isinstance(other, IPv4Network):
        return one.subnet_of(other)
    if isinstance(one, IPv6Network) and isinstance(other, IPv6Network):
        return one.subnet_of(other)
    return False


@dataclass(frozen=True)
class Verdict:
    """What may be used. networks: the pods', for the rules. prefixes: for
    addresses of workloads. refusals: by refused prefix or network, and by
    prefix inside of such a network. withheld: refused networks of the cluster,
    where pods of other nodes still are. in_use: what others use in these.
    """

    networks: tuple[IPNetwork, ...] = ()
    prefixes: tuple[IPNetwork, ...] = ()
    refusals: Mapping[IPNetwork, Refusal] = field(default_factory=dict)
    withheld: tuple[IPNetwork, ...] = ()
    in_use: tuple[IPNetwork, ...] = ()

    @property
    def causes(self) -> tuple[Refusal, ...]:
        """Return each refusal once, however many prefixes it covers here."""
        return tuple(dict.fromkeys(self.refusals.values()))


def judge(
    prefixes: Sequence[IPNetwork],
    networks: Sequence[IPNetwork],
    in_use: Sequence[Used],
    before: Mapping[IPNetwork, Refusal] | None = None,
) -> Verdict:
    """Return which of a node's prefixes and its cluster's networks to use.

    With a network all its prefixes are refused: their pods could reach no
    other node. All others are judged one by one, so one IP version continues
    without the other.
    """
    of_network = {prefix: inside(prefix, networks) for prefix in prefixes}
    whole = (*networks, *(prefix for prefix in prefixes if of_network[prefix] is None))
    refused = conflicts(whole, in_use, before)
    refusals = dict(refused)
    for prefix, network in of_network.items():
        if network is not None and network in refused:
            refusals[prefix] = refused[network]
    withheld = tuple(network for network in networks if network in refused)
    return Verdict(
        tuple(one for one in whole if one not in refused),
        tuple(prefix for prefix in prefixes if prefix not in refusals),
        refusals,
        withheld,
        tuple(
            dict.fromkeys(
                one.network
                for one in in_use
                if any(share(one.network, network) for network in withheld)
            )
        ),
    )


def lacking(prefixes: Iterable[IPNetwork], verdict: Verdict, optional: Collection[int]) -> str:
    """Return why a workload would lack an address; "": it would not.

    It lacks one if all prefixes of an IP version are refused. optional: the
    versions that workloads may do without.
    """
    wanted = [prefix for prefix in prefixes if prefix.version not in optional]
    served = {prefix.version for prefix in verdict.prefixes}
    why = [verdict.refusals[prefix] for prefix in wanted if prefix.version not in served]
    return "; ".join(map(str, dict.fromkeys(why)))
