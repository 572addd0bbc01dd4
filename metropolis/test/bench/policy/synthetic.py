# SPDX-License-Identifier: Apache-2.0
"""Policies and labels of any number, as a large node has them. Pure.

Applications are in namespaces of 20. The nth workload is of the nth
application, and round again, so each application is a class. The first policy
of an application isolates it and allows it from its own namespace and the next
one, and from half of the third at one port: 50 pairs. Each further policy of
an application allows it from one other application at one more port.
"""

from ipaddress import IPv4Address, IPv6Address
from typing import Final

from metropolis.node.core.network.policy.model import (
    NAMESPACE_NAME,
    Direction,
    Operator,
    Policy,
    Ports,
    Protocol,
    Requirement,
    Rule,
    Tier,
    Workloads,
)
from metropolis.node.core.network.workloads.datapath.interface import Record
from metropolis.node.core.network.workloads.model import Identity

APPS: Final = 1_000
"""Applications, at most; with fewer policies as many as these."""

_IN_NAMESPACE: Final = 20
_FIRST: Final = (IPv4Address("10.64.0.1"), IPv6Address("fd00:64::1"))


def policies(count: int, *, port: int = 80) -> tuple[Policy, ...]:
    """Return so many policies. port: of the first policy's rule; another one
    makes another set of policies that differs from this in one.
    """
    apps = min(count, APPS)
    first = [_first_policy(app, apps, port if not app else 80) for app in range(apps)]
    more = [_further_policy(number, apps) for number in range(apps, count)]
    return tuple(first + more)


def identity(number: int, apps: int) -> Identity:
    """Return what the nth workload is, from 0."""
    app = number % apps
    return Identity(_namespace(app), {"app": f"app-{app}", "team": "bench"})


def record(number: int) -> Record:
    """Return the nth attachment, with two addresses, which exists nowhere."""
    return Record(
        f"synthetic-{number}",
        "eth0",
        number + 1,
        f"wl{number}",
        1_000_000 + number,
        2,
        b"\2" + bytes(5),
        1500,
        tuple(one + number for one in _FIRST),
        b"",
    )


def selecting(identity_: Identity) -> Workloads:
    """Return a selector of one application."""
    app = Requirement("app", Operator.IN, (identity_.labels["app"],))
    return Workloads(_named(identity_.namespace or ""), (app,))


def _namespace(app: int) -> str:
    return f"space-{app // _IN_NAMESPACE}"


def _named(*names: str) -> tuple[Requirement, ...]:
    return (Requirement(NAMESPACE_NAME, Operator.IN, names),)


def _first_policy(app: int, apps: int, port: int) -> Policy:
    own, after, third = (_namespace((app + step * _IN_NAMESPACE) % apps) for step in range(3))
    half = [f"app-{(app + 2 * _IN_NAMESPACE) % apps // 20 * 20 + each}" for each in range(10)]
    some = Workloads(_named(third), (Requirement("app", Operator.IN, tuple(half)),))
    return Policy(
        f"{own}/app-{app}",
        Tier.NAMESPACE,
        selecting(identity(app, apps)),
        (
            Rule((Workloads(_named(own, after)),), None),
            Rule((some,), (Ports(Protocol.TCP, port, port),)),
        ),
        isolates=frozenset({Direction.INGRESS}),
    )


def _further_policy(number: int, apps: int) -> Policy:
    subject = identity(number, apps)
    peer = identity(number + 7 * _IN_NAMESPACE, apps)
    port = 1_000 + number // apps
    return Policy(
        f"{subject.namespace}/further-{number}",
        Tier.NAMESPACE,
        selecting(subject),
        (Rule((selecting(peer),), (Ports(Protocol.TCP, port, port),)),),
        isolates=frozenset({Direction.INGRESS}),
    )
