# SPDX-License-Identifier: Apache-2.0
"""Policies and what they are about, as values. Pure.

A policy says which new connections pass between workloads, and between
workloads and the world. Kubernetes' two kinds fit:

    NetworkPolicy v1               tier NAMESPACE: rules allow. A subject is
                                   isolated in the directions that the policy
                                   names: what no rule allows is denied
    ClusterNetworkPolicy v1alpha2  tier ADMIN or BASELINE: rules accept, deny or
                                   pass in the order of `priority`, and within
                                   a policy in their order; the first that
                                   matches decides

The tiers are asked in the order ADMIN, NAMESPACE, BASELINE. NAMESPACE decides
whatever the subject is isolated for. PASS skips the rest of its tier. What no
tier decides is allowed. Both ends are asked: the source for egress, the
destination for ingress; a connection passes if both allow it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from metropolis.node.core.network.workloads.model import IPAddress, IPNetwork

NAMESPACE_NAME: Final = "kubernetes.io/metadata.name"
"""The label that each namespace has, with its name (Kubernetes sets it)."""


class Operator(Enum):
    """How a requirement compares."""

    IN = "In"
    NOT_IN = "NotIn"  # also where the label is missing
    EXISTS = "Exists"
    DOES_NOT_EXIST = "DoesNotExist"


@dataclass(frozen=True, slots=True)
class Requirement:
    """What a label must be. values: of IN and NOT_IN, else empty."""

    key: str
    operator: Operator
    values: tuple[str, ...] = ()


type Selector = tuple[Requirement, ...]
"""All must hold; () matches everything. `matchLabels` are IN of one value."""


@dataclass(frozen=True, slots=True)
class Workloads:
    """Workloads that have labels: whose namespace matches one selector, and
    they themselves the other.
    """

    namespaces: Selector = ()
    workloads: Selector = ()


@dataclass(frozen=True, slots=True)
class Networks:
    """Addresses outside of workloads: in one of `prefixes`, and in none of
    `excepts`, which lie within them.
    """

    prefixes: tuple[IPNetwork, ...]
    excepts: tuple[IPNetwork, ...] = ()


type Peer = Workloads | Networks
"""NetworkPolicy's ipBlock matches workloads' addresses, too: see Policy."""


class Protocol(Enum):
    """The protocol of a port. The values are names of the IP protocols."""

    TCP = "tcp"
    UDP = "udp"
    SCTP = "sctp"


@dataclass(frozen=True, slots=True)
class Ports:
    """first to last, both inclusive, of the destination; 0 to 65535: all of the
    protocol.
    """

    protocol: Protocol
    first: int = 0
    last: int = 65535


@dataclass(frozen=True, slots=True)
class NamedPort:
    """A port that the destination names, if it does with this protocol. The
    world has none. protocol None: any.
    """

    name: str
    protocol: Protocol | None = Protocol.TCP


class Action(Enum):
    """What a rule does."""

    ACCEPT = "Accept"
    DENY = "Deny"
    PASS = "Pass"


@dataclass(frozen=True, slots=True)
class Rule:
    """peers: one must match; None: everybody, the world too. (): nobody. ports:
    one must match; None: all ports, and protocols without ports. name: for
    people, may be empty.
    """

    peers: tuple[Peer, ...] | None
    ports: tuple[Ports | NamedPort, ...] | None
    action: Action = Action.ACCEPT
    name: str = ""


class Tier(Enum):
    """In the order in which they are asked."""

    ADMIN = "Admin"
    NAMESPACE = "Namespace"
    BASELINE = "Baseline"


class Direction(Enum):
    """As seen by the subject."""

    INGRESS = "Ingress"
    EGRESS = "Egress"


@dataclass(frozen=True, slots=True)
class Policy:
    """name: unique; NetworkPolicy: NAMESPACE/NAME. isolates: of the tier
    NAMESPACE, the directions in which subjects are isolated; else empty.
    priority: 0 to 1000, lower first; equal ones by name. ingress, egress: in
    their order. error: why the policy cannot be read; then its subjects are
    isolated in both directions, and no rule of it allows anything.

    Networks match by address in every tier, workloads' addresses too, as the
    texts of both kinds have it ("cluster-external" is a recommendation to
    users, not a rule).
    """

    name: str
    tier: Tier
    subject: Workloads
    ingress: tuple[Rule, ...] = ()
    egress: tuple[Rule, ...] = ()
    isolates: frozenset[Direction] = frozenset()
    priority: int = 0
    error: str = ""


@dataclass(frozen=True, slots=True)
class Workload:
    """A workload that policies may be about. ips: at most one per family.

    namespace: None: it has none, and no labels: no selector matches it, also
    not the empty one, but Networks do. known: whether its labels are known; if
    not, it is isolated in both directions as long as there is any policy, and
    no selector matches it, nor Networks.
    ports: protocol and number by the name of the port.
    """

    key: str
    ips: tuple[IPAddress, ...]
    namespace: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    ports: Mapping[str, tuple[Protocol, int]] = field(default_factory=dict)
    known: bool = True


@dataclass(frozen=True, slots=True)
class World:
    """All that verdicts depend on. namespaces: labels by name; one that is
    missing has NAMESPACE_NAME alone, and the others have it as well.
    """

    policies: tuple[Policy, ...] = ()
    namespaces: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    workloads: tuple[Workload, ...] = ()


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a connection passes, and who decided. policy "": no policy does.
    rule: its index among the rules of the direction; None: no rule matched, and
    the policy isolates. direction: of the deciding policy; of an allowed
    connection, the last one asked that has a policy, INGRESS behind EGRESS.
    reason: a sentence for people.
    """

    allowed: bool
    direction: Direction | None = None
    tier: Tier | None = None
    policy: str = ""
    rule: int | None = None
    reason: str = ""
