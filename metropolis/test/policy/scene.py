# SPDX-License-Identifier: Apache-2.0
"""What a case is, and the pods that it is played with. Pure.

Three namespaces x, y, z with three pods a, b, c each, and one address outside
of each family. Each pod listens at 80 and 81 by TCP, UDP and SCTP, and so does
the outside. Cases are data: steps, each with everything that is in force.

Addresses are not known when a case is written. A string of the form
`@NAME:VERSION/LENGTH` in a policy stands for the prefix of that length around
an address, `@x/a:4/32` for one alone; `resolve` fills them in.

    pods        @x/a:4/32  @y/c:6/64
    outside     @outside:4/32

A step's `cluster` is what the oracle judges, its `probes` what to ask, its
`expected` both together.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from typing import Any, Final, NamedTuple

from metropolis.test.policy import oracle
from metropolis.test.policy.fields import Labels, Manifest
from metropolis.test.policy.oracle import IP, Cluster, Pod

type Addresses = Callable[[str, int], IP]
"""The address of a pod (`x/a`) or of OUTSIDE in a family, 4 or 6."""

OUTSIDE: Final = "outside"
PROTOCOLS: Final = ("TCP", "UDP", "SCTP")
PORTS: Final = (80, 81)
VERSIONS: Final = (4, 6)
FULL: Final = {4: 32, 6: 128}
ANYWHERE: Final = {4: "0.0.0.0/0", 6: "::/0"}

NAMESPACES: Final[Mapping[str, Labels]] = {
    "x": {"ns": "x", "team": "red"},
    "y": {"ns": "y", "team": "blue", "env": "prod"},
    "z": {"ns": "z", "team": "blue", "env": "test"},
}
_OF_POD: Final[Mapping[str, Labels]] = {
    "a": {"pod": "a", "tier": "web"},
    "b": {"pod": "b", "tier": "db"},
    "c": {"pod": "c"},
}
PODS: Final[Mapping[str, Labels]] = {
    f"{namespace}/{name}": labels for namespace in NAMESPACES for name, labels in _OF_POD.items()
}
_MIXED: Final = {"a": ("TCP", 80), "b": ("TCP", 81), "c": ("UDP", 80)}


class Probe(NamedTuple):
    """One connection to try. source, destination: a pod's name, or OUTSIDE."""

    source: str
    destination: str
    protocol: str
    port: int
    version: int

    def __str__(self) -> str:
        return f"{self.source} to {self.destination} {self.protocol} {self.port} IPv{self.version}"


@dataclass(frozen=True)
class Step:
    """A state of the cluster. what: how it differs from the step before.

    policies: all in force, with marks for addresses. namespaces, pods: labels
    by name; a pod that was not there before is to be made.
    """

    what: str
    policies: tuple[Manifest, ...] = ()
    namespaces: Mapping[str, Labels] = field(default_factory=lambda: NAMESPACES)
    pods: Mapping[str, Labels] = field(default_factory=lambda: PODS)

    def cluster(self, addresses: Addresses) -> Cluster:
        """Return what the oracle judges."""
        pods = [_pod(name, labels, addresses) for name, labels in self.pods.items()]
        return Cluster(self.namespaces, pods, [resolve(p, addresses) for p in self.policies])

    def probes(self) -> Iterator[Probe]:
        """Yield each pod to each pod, and to and from the outside."""
        ends = [*self.pods, OUTSIDE]
        for source, destination in itertools.product(ends, ends):
            if (source, destination) != (OUTSIDE, OUTSIDE):
                for rest in itertools.product(PROTOCOLS, PORTS, VERSIONS):
                    yield Probe(source, destination, *rest)

    def answers(self, addresses: Addresses) -> Iterator[tuple[Probe, bool]]:
        """Yield each probe, and whether the oracle allows it."""
        cluster = self.cluster(addresses)
        pods = {str(pod): pod for pod in cluster.pods}

        def end(name: str, version: int) -> Pod | IP:
            return pods[name] if name in pods else addresses(name, version)

        for one in self.probes():
            source, destination = (end(name, one.version) for name in one[:2])
            yield one, oracle.allowed(cluster, source, destination, *one[2:])

    def expected(self, addresses: Addresses) -> dict[Probe, bool]:
        """Return for each probe whether the oracle allows it."""
        return dict(self.answers(addresses))


@dataclass(frozen=True)
class Case:
    """A named sequence of steps, each probed before the next."""

    name: str
    tags: frozenset[str]
    steps: tuple[Step, ...]

    def __str__(self) -> str:
        return self.name


def ports(pod: str) -> dict[str, tuple[str, int]]:
    """Return the named ports of a pod: serve-80-tcp and so on, and `mixed`,
    which is another port on each of a, b and c.
    """
    found = {
        f"serve-{port}-{protocol.lower()}": (protocol, port)
        for port, protocol in itertools.product(PORTS, PROTOCOLS)
    }
    letter = pod.rpartition("/")[2]
    return found | ({"mixed": _MIXED[letter]} if letter in _MIXED else {})


def resolve(manifest: Manifest, addresses: Addresses) -> dict[str, Any]:
    """Return a policy with the addresses for its marks."""
    resolved = _resolve(manifest, addresses)
    assert isinstance(resolved, dict)
    return resolved


def example(name: str, version: int) -> IP:
    """Return addresses for a run without a cluster."""
    if name == OUTSIDE:
        return ip_address("203.0.113.9" if version == 4 else "2001:db8::9")
    namespace, _, letter = name.partition("/")
    number = 16 * "xyz".index(namespace) + ord(letter) - ord("a") + 2
    return ip_address(f"10.192.0.{number}" if version == 4 else f"fd00::{number:x}")


_MARK: Final = re.compile(r"@([a-z/]+):([46])/([0-9]+)")


def _resolve(part: Any, addresses: Addresses) -> Any:
    if isinstance(part, Mapping):
        return {key: _resolve(value, addresses) for key, value in part.items()}
    if isinstance(part, list | tuple):
        return [_resolve(value, addresses) for value in part]
    if isinstance(part, str) and (match := _MARK.fullmatch(part)):
        address = addresses(match[1], int(match[2]))
        return str(ip_network((address, int(match[3])), strict=False))
    return part


def _pod(name: str, labels: Labels, addresses: Addresses) -> Pod:
    namespace, _, own = name.partition("/")
    ips = tuple(addresses(name, version) for version in VERSIONS)
    return Pod(namespace, own, labels, ips, ports(name))
