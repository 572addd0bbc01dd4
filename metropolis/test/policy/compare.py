# SPDX-License-Identifier: Apache-2.0
"""Compares the product with the oracle, in random worlds, without packets.

    ./bazelw run //metropolis/test/policy:compare -- --worlds 20000
    ./bazelw run //metropolis/test/policy:compare -- --first 4711 --worlds 1

Each world's policies go through all of it: YAML, converter, evaluator (what
`Explain` says), compiler, tables. Each question is answered by the evaluator,
by the tables, and by the oracle; and again after changes of the world, which
the compiler follows. A difference is reported by its seed.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from random import Random
from typing import Final

from metropolis.node.core.network.policy.compiler import Compiler
from metropolis.node.core.network.policy.evaluate import Evaluator
from metropolis.node.core.network.policy.kubernetes import convert
from metropolis.node.core.network.policy.lookup import Lookup
from metropolis.node.core.network.policy.model import Policy, Protocol, Workload, World
from metropolis.test.policy import oracle, worlds
from metropolis.test.policy.oracle import IP, Cluster, Pod
from metropolis.test.policy.worlds import Question

_SHOWN: Final = 20
_REPORT_S: Final = 5.0


@dataclass(frozen=True)
class Wrong:
    """A question that the product answers otherwise than the oracle. seed: of
    the world; change: how many times it was changed.
    """

    seed: int
    change: int
    question: str
    oracle: str
    evaluator: str
    tables: str


def world_of(cluster: Cluster) -> World:
    """Return a cluster as the product sees it. Raises ValueError if the
    converter finds anything wrong.
    """
    policies: list[Policy] = []
    for manifest in cluster.policies:
        read = convert.read(json.dumps(manifest), "world")
        if errors := [one for one in read.problems if not one.warning]:
            raise ValueError(f"{errors[0]}: {manifest}")
        policies += read.policies
    workloads = tuple(
        Workload(
            str(pod),
            pod.ips,
            pod.namespace,
            pod.labels,
            {name: (Protocol[protocol], port) for name, (protocol, port) in pod.ports.items()},
        )
        for pod in cluster.pods
    )
    return World(tuple(policies), cluster.namespaces, workloads)


def compare(seed: int, questions: int, changes: int) -> Iterator[Wrong | None]:
    """Ask questions about a world and about what it changes to; yield each
    wrong answer, and None for each right one.
    """
    cluster, rng, compiler = worlds.random_cluster(seed), Random(seed), Compiler()
    for change in range(changes + 1):
        world = world_of(cluster)
        evaluator, lookup = Evaluator(world), Lookup(compiler.update(world).tables)
        for _ in range(questions):
            question = worlds.random_question(cluster, rng)
            yield _asked(seed, change, cluster, question, evaluator, lookup)
        cluster = worlds.changed(cluster, rng)


def _asked(
    seed: int,
    change: int,
    cluster: Cluster,
    question: Question,
    evaluator: Evaluator,
    lookup: Lookup,
) -> Wrong | None:
    protocol, port, version = Protocol[question.protocol], question.port, question.version
    ends = question.source, question.destination
    source, destination = (str(one) if isinstance(one, Pod) else one for one in ends)
    expected = oracle.explain(cluster, *question)
    found = evaluator.verdict(source, destination, protocol, port, version)
    at = [_address(one, version) for one in ends]
    told = lookup.allows(at[0], at[1], protocol, port)
    if expected.allowed is found.allowed is told:
        return None
    words = f"tables: {'allowed' if told else 'denied'}"
    return Wrong(seed, change, str(question), str(expected), found.reason, words)


def _address(end: Pod | IP, version: int) -> IP:
    if not isinstance(end, Pod):
        return end
    return next(ip for ip in end.ips if ip.version == version)


def main(arguments: Sequence[str]) -> int:
    """Run the command; return the exit status."""
    given = _parse(arguments)
    begun = reported = time.monotonic()
    asked, wrong = 0, list[Wrong]()
    for number in range(given.worlds):
        for one in compare(given.first + number, given.questions, given.changes):
            asked += 1
            wrong += [] if one is None else [one]
        if time.monotonic() - reported > _REPORT_S:
            reported = time.monotonic()
            print(f"compare: {number + 1} worlds, {len(wrong)} wrong", file=sys.stderr, flush=True)
    seconds = round(time.monotonic() - begun, 1)
    if given.json:
        fields = {"ok": not wrong, "worlds": given.worlds, "questions": asked}
        print(json.dumps(fields | {"wrong": [asdict(one) for one in wrong], "seconds": seconds}))
        return 1 if wrong else 0
    for one in wrong[:_SHOWN]:
        print(f"WRONG seed {one.seed}, change {one.change}: {one.question}")
        print(f"    oracle:    {one.oracle}\n    evaluator: {one.evaluator}\n    {one.tables}")
    print(f"{len(wrong)} wrong: {given.worlds} worlds, {asked} questions in {seconds} s")
    return 1 if wrong else 0


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="compare",
        usage="%(prog)s [options]",
        description=__doc__,
        epilog="exit status: 0 no answer differs; 1 some do; 2 wrong arguments",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--first", metavar="SEED", type=int, default=0,
        help="seed of the first world; the others follow; default: %(default)s",
    )  # fmt: skip
    parser.add_argument(
        "--worlds", metavar="N", type=int, default=1000, help="how many; default: %(default)s"
    )
    parser.add_argument(
        "--questions", metavar="N", type=int, default=20,
        help="asked about each state of a world; default: %(default)s",
    )  # fmt: skip
    parser.add_argument(
        "--changes", metavar="N", type=int, default=2,
        help="of each world; default: %(default)s",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print one line of JSON")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
