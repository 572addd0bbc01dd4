# SPDX-License-Identifier: Apache-2.0
"""Measure the cost of the rules for a packet.

    ./bazelw run //metropolis/test/bench/packets -- [--json] [--baseline FILE]

    pod a ── (group 8) host netns up0 ── outside, masqueraded
    pod b ── (group 8)

Three rule sets alternate on one host: none, the baseline, and the tree's as a
node in a cluster has it, with a limit of new flows that is not reached here.
Each figure is measured with all three within a second, in another order each
time; a ratio is the median of the rounds' ratios. Rules that look up routes are
measured beside 10 and 2,000 workloads' routes.

All ends run on one CPU, so a transaction is the sum of the work of both ends
and the host between them, without wake-ups of another CPU.

Figures are us, less is better: TCP_RR and UDP_RR send a byte there and one
back; connection is a new one and its first byte; stream is a MiB.

Absolute figures depend on this machine's kernel and load; another machine would
show the same ratios.
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from ipaddress import IPv4Address, IPv6Address, ip_network
from pathlib import Path
from typing import Final

from metropolis.node import allocs
from metropolis.node.core.config import NEW_FLOWS_MAX
from metropolis.node.core.network.rules.base import render
from metropolis.node.core.network.rules.settings import Settings
from metropolis.test.bench.packets import report
from metropolis.test.bench.packets.report import BASELINE, NONE, TREE, Figure, Results
from metropolis.test.bench.packets.traffic import KINDS, Client, serving
from metropolis.test.world.namespaces import Netns, enter_namespaces
from osbase import conntrack
from osbase.nftables import Nftables

BASELINE_FILE: Final = Path(__file__).with_name("baseline.nft")
WORKLOADS: Final = (10, 2_000)
OWN_FLOWS: Final = (0, 1_000, 10_000, 50_000)

_NETWORKS: Final = (ip_network("10.192.0.0/16"), ip_network("fd00:10:192::/48"))
_OUTSIDE: Final = {4: "198.51.100.2", 6: "2001:db8::2"}
_UPLINK: Final = {4: "198.51.100.1", 6: "2001:db8::1"}
_BITS: Final = {4: (32, 24), 6: (128, 64)}


def tree_rules() -> str:
    """Return the rules of a node in a cluster, with a limit of new flows that
    is not reached.
    """
    return render(Settings(networks=_NETWORKS, new_flows_per_second=NEW_FLOWS_MAX, overlay=True))


def pod_address(number: int, version: int) -> str:
    """Return the address of the nth workload, from 0."""
    if version == 4:
        return str(IPv4Address("10.192.0.1") + number)
    return str(IPv6Address("fd00:10:192::1") + number)


def _ip(commands: list[str], netns: Netns | None = None) -> None:
    def run() -> None:
        done = subprocess.run(
            ["ip", "-batch", "-"],
            input="\n".join(commands),
            text=True,
            capture_output=True,
            check=False,
        )
        if done.returncode:
            raise SystemExit(f"packets: ip: {done.stderr.strip()}")

    if netns is None:
        run()
    else:
        netns.inside(run)


class Host:
    """The node (the program's own namespace), two pods, the outside."""

    def __init__(self, stack: ExitStack) -> None:
        self._routes = 0
        names = ("pod0", "pod1", "up0")
        self.netns = {name: Netns() for name in names}
        for one in self.netns.values():
            stack.callback(one.close)
        _ip(["link set lo up", f"address add {allocs.FIRST_HOP_IPV4} dev lo"])
        for name in names:
            self._connect(name)
        for path in ("ipv4/ip_forward", "ipv6/conf/all/forwarding"):
            Path("/proc/sys/net", path).write_text("1")
        stack.enter_context(serving(self.netns["pod1"]))
        stack.enter_context(serving(self.netns["up0"]))
        pod = {version: pod_address(1, version) for version in (4, 6)}
        self.ways = {"pod to pod": pod, "pod to outside": _OUTSIDE}

    def _connect(self, name: str) -> None:
        there = self.netns[name]
        mac = allocs.FIRST_HOP_MAC.hex(":")
        if name == "up0":
            own, far, hop = _UPLINK, _OUTSIDE, _UPLINK
        else:
            own = {4: str(allocs.FIRST_HOP_IPV4), 6: str(allocs.FIRST_HOP_IPV6)}
            far, hop = {v: pod_address(int(name[3:]), v) for v in (4, 6)}, own
        _ip([f"link add {name} address {mac} type veth peer name eth0 netns {there.path}"])
        group = 0 if name == "up0" else allocs.LINK_GROUP_WORKLOAD
        here, inside = [f"link set {name} up group {group}"], ["link set eth0 up", "link set lo up"]
        for version in (4, 6):
            host, net = _BITS[version]
            bits = net if name == "up0" else host
            more = " nodad" if version == 6 else ""
            inside.append(f"address add {far[version]}/{bits} dev eth0{more}")
            if name == "up0":
                here.append(f"address add {own[version]}/{bits} dev {name}{more}")
                # With no rules, pods are not masqueraded.
                inside.append(f"route add {_NETWORKS[version == 6]} via {hop[version]}")
                continue
            if version == 6:
                here.append(f"address add {own[6]}/64 dev {name} nodad")
            here.append(
                f"route add {far[version]}/{host} dev {name} proto {allocs.ROUTE_PROTOCOL_WORKLOAD}"
            )
            if version == 4:
                inside.append(f"route add {hop[4]} dev eth0")
            inside.append(f"route add default via {hop[version]} dev eth0")
        _ip(here)
        _ip(inside, there)

    def workloads(self, count: int) -> None:
        """Add the routes of `count` workloads."""
        _ip(
            [
                f"route add {pod_address(number, version)}/{_BITS[version][0]} dev pod1 "
                f"proto {allocs.ROUTE_PROTOCOL_WORKLOAD}"
                for number in range(max(self._routes, 2), count)
                for version in (4, 6)
            ]
        )
        self._routes = count

    def client(self, way: str, version: int) -> Client:
        """Return a client in the first pod."""
        return Client(self.netns["pod0"], self.ways[way][version])


def _turns(rounds: int) -> Iterator[tuple[str, ...]]:
    """Yield the subjects, in each order equally often."""
    yield from itertools.islice(itertools.cycle(itertools.permutations(report.SUBJECTS)), rounds)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


class Bench:
    """Applies rules and measures under them."""

    def __init__(self, host: Host, rules: dict[str, str], nft: Nftables, seconds: float) -> None:
        self._host = host
        self._rules = rules
        self._nft = nft
        self._seconds = seconds
        self.results = Results()

    def measure(
        self, figure: Figure, rounds: int, prepare: Callable[[], None] = lambda: None
    ) -> None:
        """Measure a figure of every subject. prepare: runs under its rules."""
        client = self._host.client(figure.way, figure.version)
        for turn in _turns(rounds):
            for subject in turn:
                self._nft.apply("flush ruleset\n" + self._rules[subject])
                # Untranslated flows, made while hooks are replaced, would
                # conflict with ports that are used again.
                conntrack.flush()
                prepare()
                us = client.measure(figure.kind, self._seconds)
                self.results.add(figure, subject, us)


def main(arguments: list[str]) -> int:
    """See the module."""
    parser = argparse.ArgumentParser(
        prog="packets", usage="%(prog)s [options]",
        epilog="exit status: 0 measured, 2 wrong arguments", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument(
        "--rounds", metavar="N", type=int, default=9,
        help="rounds of each figure; default: %(default)s",
    )  # fmt: skip
    parser.add_argument(
        "--seconds", metavar="S", type=float, default=0.2,
        help="time of each turn, in seconds; default: %(default)s",
    )  # fmt: skip
    parser.add_argument(
        "--baseline", metavar="FILE", type=Path, default=BASELINE_FILE,
        help="rules to compare with, for nft -f; default: those of baseline.nft",
    )  # fmt: skip
    parser.add_argument(
        "--flows", action="store_true",
        help="only a new flow's cost beside many of its sender's own",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="JSON as the last line")
    chosen = parser.parse_args(arguments)
    if chosen.rounds < 1 or chosen.seconds <= 0:
        parser.error("--rounds, --seconds: more than nothing")
    try:
        baseline = chosen.baseline.read_text()
    except OSError as error:
        parser.error(f"--baseline: {error}")
    rules = {NONE: "", BASELINE: baseline, TREE: tree_rules()}
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    enter_namespaces()
    with ExitStack() as stack:
        host = Host(stack)
        bench = Bench(host, rules, stack.enter_context(Nftables()), chosen.seconds)
        for workloads in WORKLOADS[:1] if chosen.flows else WORKLOADS:
            host.workloads(workloads)
            _say(f"{workloads:,} workloads ...")
            if chosen.flows:
                for flows in OWN_FLOWS:
                    _say(f"  {flows:,} own flows ...")
                    figure = Figure("connection", "pod to outside", 4, workloads, flows)
                    own = host.client("pod to outside", 4)
                    bench.measure(figure, chosen.rounds, partial(own.own_flows, flows))
                continue
            for kind, way, version in itertools.product(KINDS, host.ways, (4, 6)):
                bench.measure(Figure(kind, way, version, workloads), chosen.rounds)
    lines = bench.results.lines()
    print(report.table(lines))
    if chosen.json:
        print(json.dumps({"figures": [line.as_json() for line in lines]}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
