# SPDX-License-Identifier: Apache-2.0
"""Measure what network policy costs.

    ./bazelw run //metropolis/test/bench/policy -- [--json] [--parts attach,...]

connection: a new one between two pods and its first byte, us, without the
table, with the table and no policies, with policies, and with a table that has
a chain per policy. TCP_RR, stream: a byte there and back, and a MiB, of a flow
that exists. change: from a request that closes a pod, one policy among
--policies, until the answer, the last connection and the last byte that passed,
ms. attach: what policies do for an attach, ms, without the attach itself.
grpc: Attach by gRPC, ms, beside --attached others.

Both ends and the node share this machine's processors. Ratios hold where the
times do not: each is of figures that were measured in turn.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from metropolis.test.bench.common.errors import BenchError
from metropolis.test.bench.common.terminal import positive, say
from metropolis.test.bench.packets.packets import Host
from metropolis.test.bench.policy import attaches, changes, direct, packets, report
from metropolis.test.bench.policy.report import Figure
from metropolis.test.world.namespaces import WorldError, enter_namespaces
from osbase.nftables import Nftables

PARTS: Final = ("connection", "established", "change", "attach", "grpc")


def run(chosen: argparse.Namespace) -> list[Figure]:
    """Measure the chosen parts."""
    parts: Sequence[str] = chosen.parts
    found: list[Figure] = []
    counts = [max(chosen.most // 100, 1), chosen.most]
    with ExitStack() as stack:
        directory = Path(stack.enter_context(TemporaryDirectory(dir="/run")))
        nft = stack.enter_context(Nftables())
        if set(parts) & {"connection", "established", "change"}:
            with ExitStack() as world:
                host = Host(world)
                found += _packets(host, nft, directory, counts, chosen)
        if "attach" in parts:
            found += direct.measure(
                nft, directory, chosen.policies, chosen.addresses, chosen.samples
            )
        if "grpc" in parts:
            found += attaches.measure(directory, chosen.policies, chosen.attached, chosen.samples)
    return found


def _packets(
    host: Host, nft: Nftables, directory: Path, counts: Sequence[int], chosen: argparse.Namespace
) -> list[Figure]:
    found: list[Figure] = []
    if "change" in chosen.parts:
        found += changes.measure(
            host, nft, directory / "changes", chosen.policies, chosen.addresses, chosen.rounds
        )
    if not set(chosen.parts) & {"connection", "established"}:
        return found
    subjects = packets.Subjects(nft, counts, chosen.addresses)
    usable = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(usable)})
    try:
        if "connection" in chosen.parts:
            found += packets.connections(host, subjects, chosen.rounds, chosen.seconds)
        if "established" in chosen.parts:
            found += packets.established(host, subjects, chosen.rounds, chosen.seconds)
    finally:
        os.sched_setaffinity(0, usable)
    return found


def parts(text: str) -> list[str]:
    """Parse parts for argparse. Raises ArgumentTypeError."""
    found = text.split(",")
    for one in found:
        if one not in PARTS:
            raise argparse.ArgumentTypeError(f"{one!a}: want some of {','.join(PARTS)}")
    return found


def main(arguments: Sequence[str]) -> int:
    """See the module."""
    parser = argparse.ArgumentParser(
        prog="policy", usage="%(prog)s [options]", description=__doc__, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="exit status: 0 measured, 1 something failed, 2 wrong arguments, 130 after Ctrl-C",
    )  # fmt: skip
    for name, default, text in (
        ("policies", 1_000, "policies of changes and attaches"),
        ("most", 10_000, "policies of new connections; these are measured with a hundredth, too"),
        ("addresses", 10_000, "addresses of workloads"),
        ("attached", 200, "attachments beside those by gRPC"),
        ("samples", 100, "attaches of each kind"),
        ("rounds", 9, "rounds of connections and changes"),
    ):
        parser.add_argument(
            f"--{name}", metavar="N", type=positive, default=default,
            help=f"{text}; default: %(default)s",
        )  # fmt: skip
    parser.add_argument(
        "--seconds", metavar="S", type=float, default=0.3,
        help="time of each turn of connections, in seconds; default: %(default)s",
    )  # fmt: skip
    parser.add_argument(
        "--parts", metavar="PART,...", type=parts, default=list(PARTS),
        help="default: " + ",".join(PARTS),
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="JSON as the last line")
    chosen = parser.parse_args(arguments)
    if chosen.seconds <= 0:
        parser.error("--seconds: more than nothing")
    try:
        enter_namespaces()
        figures = run(chosen)
    except (BenchError, WorldError) as error:
        print(f"policy: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    say("")
    print(report.table(figures))
    if chosen.json:
        print(json.dumps({"figures": [one.as_json() for one in figures]}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
