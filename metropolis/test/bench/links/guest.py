# SPDX-License-Identifier: Apache-2.0
"""Runs in the guest, as root: measures, and prints the results as JSON.

    guest PLAN    a file with model.Plan as JSON

    pod A: netperf ---pair---+                  +---pair--- pod B: netserver
                             host: rules, routes             (for each kind)

Kinds alternate at every operation, in another order each time, so that other
work of the machine affects all equally.
"""

import os
import platform
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from metropolis.node import allocs
from metropolis.test.bench.links import abilities, messages, traffic
from metropolis.test.bench.links.abilities import Scene
from metropolis.test.bench.links.messages import Pod
from metropolis.test.bench.links.model import Kind, LinksError, Measured, Plan, Samples
from metropolis.test.bench.links.pods import Namespace, attach, send
from osbase.netlink import netns
from osbase.netlink.link import del_link, del_links_by_group
from osbase.netlink.transport import open_raw

_KINDS = tuple(Kind)
_PER_KIND = 10_000  # numbers of pods
_FIRST_INDEX = 100_000
_FIRST_GROUP = 100
_POD_INDEX = 2
_WARM_UP = Plan(1, 3, 1, 100, 256, (), "")


@dataclass(slots=True)
class Results:
    """Values of rounds."""

    round: int = 0
    found: dict[tuple[str, str, Kind, int], list[float]] = field(default_factory=dict)

    def add(self, kind: Kind, figure: str, unit: str, value: float) -> None:
        self.found.setdefault((figure, unit, kind, self.round), []).append(value)

    def samples(self) -> Iterator[Samples]:
        for (figure, unit, kind, number), values in self.found.items():
            yield Samples(figure, unit, kind, number, tuple(values))


def turns(turn: int) -> tuple[Kind, ...]:
    """Return the kinds, beginning with another one each turn."""
    first = turn % len(_KINDS)
    return _KINDS[first:] + _KINDS[:first]


class Guest:
    """The host of the pods: the guest's first namespace."""

    def __init__(self, attaches: int) -> None:
        self._home = netns.open_current()
        self._host = open_raw()
        send(self._host, messages.host_first_hop())
        self._scenes = {kind: self._scene(number, kind) for number, kind in enumerate(_KINDS)}
        self._namespaces = {
            kind: [Namespace.new(self._home) for _ in range(attaches)] for kind in _KINDS
        }

    def _pod(self, kind: int, number: int, group: int) -> Pod:
        number += kind * _PER_KIND
        return Pod(number, _FIRST_INDEX + number, _POD_INDEX, group)

    def _scene(self, number: int, kind: Kind) -> Scene:
        pods = [self._pod(number, place, allocs.LINK_GROUP_WORKLOAD) for place in (1, 2)]
        namespaces = [Namespace.new(self._home) for _ in pods]
        for pod, namespace in zip(pods, namespaces, strict=True):
            attach(self._host, namespace, kind, pod)
        traffic.serve(namespaces[1])
        return Scene(kind, self._host, namespaces[0], pods[0], namespaces[1], pods[1])

    @property
    def scenes(self) -> Sequence[Scene]:
        return [*self._scenes.values()]

    def measure(self, plan: Plan, results: Results) -> None:
        """One round."""
        self._attach(plan, results)
        self._traffic(plan, results)

    def _attach(self, plan: Plan, results: Results) -> None:
        pods = {
            kind: [
                self._pod(number, 10 + place, _FIRST_GROUP + number)
                for place in range(plan.attaches)
            ]
            for number, kind in enumerate(_KINDS)
        }
        for place in range(plan.attaches):
            for kind in turns(place + results.round):
                namespace = self._namespaces[kind][place]
                parts = attach(self._host, namespace, kind, pods[kind][place])
                results.add(kind, "attach", "us", sum(parts))
                for name, took in zip(("pair", "pod's side", "host's side"), parts, strict=True):
                    results.add(kind, f"attach, {name}", "us", took)
        for place in range(plan.singles):
            for kind in turns(place + results.round):
                pod = pods[kind][place]
                took = send(self._host, [del_link(pod.host_index, pod.host_name)])
                results.add(kind, "delete one", "us", took)
        rest = plan.attaches - plan.singles
        for kind in turns(results.round):
            group = pods[kind][0].group
            took = send(self._host, [del_links_by_group(group)])
            results.add(kind, f"delete {rest} by group", "us", took)

    def _traffic(self, plan: Plan, results: Results) -> None:
        for turn, family in enumerate((4, 6)):
            for kind in turns(results.round + turn):
                scene = self._scenes[kind]
                for value in traffic.request_response(
                    scene.client, scene.server_pod, family, plan.transactions
                ):
                    results.add(kind, value.figure, value.unit, value.value)
            for kind in turns(results.round + turn):
                scene = self._scenes[kind]
                for value in traffic.stream(
                    scene.client, scene.server_pod, family, plan.stream_kib
                ):
                    results.add(kind, value.figure, value.unit, value.value)


def prepare(plan: Plan) -> None:
    """Give the guest a node's rules and settings."""
    # Rules first: they load conntrack, which has some of the settings.
    done = subprocess.run(
        ["nft", "-f", "-"], input=plan.rules, check=False, capture_output=True, text=True
    )
    if done.returncode:
        raise LinksError(f"nft: {done.stderr.strip()}")
    for path, value in plan.sysctls:
        Path("/proc/sys/net", path).write_text(str(value))


def versions() -> dict[str, str]:
    """Return the versions of the kernel and programs."""
    said = subprocess.run(["netperf", "-V"], check=False, capture_output=True, text=True)
    return {
        "guest_kernel": platform.release(),
        "guest_cpus": str(os.cpu_count()),
        "guest_python": platform.python_version(),
        "netperf": (said.stdout + said.stderr).strip().removeprefix("Netperf version "),
    }


def run(plan: Plan) -> Measured:
    """Run the whole plan."""
    prepare(plan)
    say("attaching the pods that talk to each other")
    guest = Guest(max(plan.attaches, _WARM_UP.attaches))
    say("asking what the kinds can do")
    answers = abilities.ask(guest.scenes)
    say("warming up")
    guest.measure(_WARM_UP, Results())
    results = Results()
    for number in range(plan.rounds):
        say(f"round {number + 1} of {plan.rounds}")
        results.round = number
        guest.measure(plan, results)
    return Measured(versions(), tuple(results.samples()), tuple(answers))


def say(message: str) -> None:
    """Progress."""
    print(f"guest: {message}", file=sys.stderr, flush=True)


def main(arguments: Sequence[str]) -> int:
    """Run the command; return the exit status."""
    try:
        print(run(Plan.from_json(Path(arguments[0]).read_text())).to_json())
    except LinksError as error:
        say(str(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
