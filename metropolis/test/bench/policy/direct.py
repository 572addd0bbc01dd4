# SPDX-License-Identifier: Apache-2.0
"""An attach as policies see it, and a change of one policy.

The manager is the service's, with the kernel's table and files; workloads are
synthetic. So figures are what policies add to an attach, without the attach.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from metropolis.node.core.network.policy import messages, wire
from metropolis.node.core.network.policy.live import LiveKernel
from metropolis.node.core.network.policy.manager import Manager
from metropolis.node.core.network.policy.sources import Source
from metropolis.node.core.network.policy.spec import policy_pb2 as pb
from metropolis.node.core.network.policy.store import Store
from metropolis.node.core.network.rules import host_ports
from metropolis.node.core.network.workloads.conditions import Conditions
from metropolis.node.core.network.workloads.model import Identity
from metropolis.test.bench.common.terminal import say
from metropolis.test.bench.policy import synthetic
from metropolis.test.bench.policy.report import Figure, figure
from osbase.nftables import Nftables

NEW_CLASSES: Final = 10

_PORT: Final = 20_000


class Policies:
    """A manager of synthetic workloads, in an empty table."""

    def __init__(self, nft: Nftables, directory: Path) -> None:
        nft.apply("flush ruleset\n" + host_ports.render())
        self.manager = Manager(LiveKernel(), Store(directory), Conditions())
        self.manager.adopt([])
        self._generation = 0

    def request(self, count: int, port: int = 80) -> bytes:
        """Return a request of so many policies, as callers send it; each port
        makes another one of them.
        """
        self._generation += 1
        policies = synthetic.policies(count, port=port)
        return messages.request(Source("api", self._generation, policies)).SerializeToString()

    def set(self, request: bytes) -> None:
        """Do as SetPolicies with this request."""
        message = pb.SetPoliciesRequest.FromString(request)
        self.manager.set_policies(wire.source_of(message))

    def attach(self, number: int, what: Identity | None) -> None:
        """Do what an attach of the nth workload does about policies."""
        self.manager.admit(synthetic.record(number), what)

    def detach(self, number: int) -> None:
        """Do what its end does."""
        self.manager.forget([synthetic.record(number)])


def measure(
    nft: Nftables, directory: Path, policies: int, addresses: int, samples: int
) -> list[Figure]:
    """Measure at no addresses, and at all of these."""
    found = []
    for count in (0, addresses // 2):
        say(f"policy: attaches beside {2 * count:,} addresses")
        found += _attaches(nft, directory / f"at-{count}", policies, count, samples)
    return found


def _attaches(
    nft: Nftables, directory: Path, policies: int, count: int, samples: int
) -> list[Figure]:
    node = Policies(nft, directory)
    apps = min(policies, synthetic.APPS)
    part = f"attach, {2 * count:,} addresses"
    for number in range(count):
        node.attach(number, synthetic.identity(number, apps))
    numbers = range(count, count + samples)

    def known(number: int) -> None:
        node.attach(number, synthetic.identity(number if count else 0, apps))

    none = _each(numbers, lambda number: node.attach(number, None), node.detach)
    without = _each(numbers, known, node.detach)
    node.set(node.request(policies))
    if not count:
        node.attach(count + samples, synthetic.identity(0, apps))  # the class
    with_ = _each(numbers, known, node.detach)
    new = _each(
        range(count, count + min(samples, NEW_CLASSES)),
        lambda number: node.attach(number, _of_new_class(number - count, apps)),
        node.detach,
    )
    base = figure(part, "no policies, no labels", "ms", none)
    others = {"no policies, labels": without, "known labels": with_, "new labels": new}
    made = [base, *(figure(part, name, "ms", some, base) for name, some in others.items())]
    if count:
        made.append(figure(part, "SetPolicies, one changed", "ms", _changes(node, policies)))
    return made


def _of_new_class(number: int, apps: int) -> Identity:
    """Return what no other workload is, for policies: in a namespace, but of
    none of its applications.
    """
    space = synthetic.identity(number * 20 % apps, apps).namespace
    return Identity(space, {"app": "none"})


def _each(numbers: range, do: Callable[[int], None], undo: Callable[[int], None]) -> list[float]:
    took = []
    for number in numbers:
        began = time.perf_counter()
        do(number)
        took.append((time.perf_counter() - began) * 1e3)
    for number in numbers:
        undo(number)
    return took


def _changes(node: Policies, policies: int) -> list[float]:
    took = []
    for port in range(_PORT, _PORT + NEW_CLASSES):
        request = node.request(policies, port)
        began = time.perf_counter()
        node.set(request)
        took.append((time.perf_counter() - began) * 1e3)
    return took
