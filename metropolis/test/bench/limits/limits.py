# SPDX-License-Identifier: Apache-2.0
"""Measure what bandwidth limits let through, and the round trip under load.

    ./bazelw run //metropolis/test/bench/limits -- [--json] [--rates 1M,1G]

    workload ── veth ── the node (the program's own namespace), which sends or
                        receives at an address of its lo

sent: what the limit has passed in the first second of a stream, bytes of IP
packets by the count of its queueing discipline, as a share of the rate.
received: what the stream's receiver got, with the headers of its packets; the
rest was dropped, and is sent again later, or is under way. worst 100 ms: the
most that the limit passed within 100 ms, from the first byte on. Round trips
are of datagrams through the same limit, 10 ms apart, in ms: without the stream,
and beside it.

Both ends and the node share this machine's processors: at rates beyond what
these can do, figures are lower than the limit allows.
"""

import argparse
import itertools
import json
import re
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from ipaddress import ip_network
from pathlib import Path
from typing import Final

from pyroute2 import IPRoute

from metropolis.node.core.network.workloads.bandwidth import Bandwidth, Limit, part_of
from metropolis.node.core.network.workloads.datapath.bandwidth import PART
from metropolis.node.core.network.workloads.datapath.companions import index_of
from metropolis.node.core.network.workloads.datapath.veth import KernelDatapath
from metropolis.node.core.network.workloads.engine.engine import Engine
from metropolis.node.core.network.workloads.model import AttachIntent, Attachment
from metropolis.test.bench.common.errors import BenchError
from metropolis.test.bench.common.terminal import positive, say
from metropolis.test.bench.limits import report
from metropolis.test.bench.limits.report import FROM, TO, Cell, Line, Sample
from metropolis.test.bench.limits.traffic import SECOND, Open, round_trips, stream
from metropolis.test.world.namespaces import Netns, enter_namespaces

RATES: Final = (10**6, 10**7, 10**8, 10**9, 5 * 10**9)
_NODE: Final = {4: "198.51.100.1", 6: "2001:db8::1"}
_FAMILIES: Final = {4: socket.AF_INET, 6: socket.AF_INET6}
_ETHERNET: Final = 14
_TCP: Final = {4: 20 + 32, 6: 40 + 32}  # bytes of headers, with time stamps
_UNITS: Final = {"k": 10**3, "M": 10**6, "G": 10**9}


class Node:
    """The program's namespace as a node, and its engine."""

    def __init__(self, stack: ExitStack) -> None:
        addresses = [f"address replace {one} dev lo nodad" for one in _NODE.values()]
        _ip("link set lo up", *addresses)
        for path in ("ipv4/ip_forward", "ipv6/conf/all/forwarding"):
            Path("/proc/sys/net", path).write_text("1")
        self._engine = Engine(KernelDatapath((PART,)))
        self._engine.start()
        stack.callback(self._engine.close)
        self._engine.set_prefixes([ip_network("10.0.0.0/24"), ip_network("fd00::/120")])

    @contextmanager
    def workload(self, cell: Cell) -> Iterator[tuple[Netns, Attachment]]:
        """A workload with the limit, for a block."""
        limit = Limit(cell.rate)
        limits = Bandwidth(ingress=limit) if cell.direction == TO else Bandwidth(egress=limit)
        with ExitStack() as stack:
            netns = Netns()
            stack.callback(netns.close)
            intent = AttachIntent("w", netns.path, "eth0", parts=part_of(limits))
            made = self._engine.attach(intent)
            stack.callback(self._engine.detach, "w", until_gone=True)
            yield netns, made


def _ip(*commands: str) -> None:
    given = "\n".join(commands)
    done = subprocess.run(
        ["ip", "-batch", "-"], input=given, text=True, capture_output=True, check=False
    )
    if done.returncode:
        raise BenchError(f"ip: {done.stderr.strip()}")


def measure(node: Node, cell: Cell) -> Sample:
    """Measure a cell once."""
    family = _FAMILIES[cell.version]
    with node.workload(cell) as (netns, made), IPRoute() as kernel:
        here: Open = partial(socket.socket, family)

        def there(kind: int) -> socket.socket:
            return netns.inside(lambda: socket.socket(family, kind))

        index = made.host_ifindex
        if cell.direction == TO:
            address = str(next(ip for ip in made.ips if ip.version == cell.version))
            client: Open = here
            server: Open = there
        else:
            address, client, server = _NODE[cell.version], there, here
            index = index_of(index)
        idle = round_trips(client, server, address)
        with stream(client, server, address, lambda: passed(kernel, index)) as found:
            loaded = round_trips(client, server, address)
        ended, sent = found.counts[-1]
        wire = made.mtu / (made.mtu - _TCP[cell.version])
        arrived = sum(size for at, size in found.arrivals if at <= ended)
        bits = 8 / cell.rate
        return Sample(
            sent / ended * bits,
            arrived * wire / ended * bits,
            report.worst(found.counts) * bits,
            idle,
            loaded,
        )


def passed(kernel: IPRoute, index: int) -> int:
    """Return the bytes of IP packets that a link's token bucket has passed."""
    for one in kernel.get_qdiscs(index):
        if one.get_attr("TCA_KIND") == "tbf":
            basic = one.get_attr("TCA_STATS2").get_attr("TCA_STATS_BASIC")
            return int(basic["bytes"]) - _ETHERNET * int(basic["packets"])
    raise BenchError(f"link {index} has no token bucket")


def rates(text: str) -> list[int]:
    """Parse rates for argparse. Raises ArgumentTypeError."""
    found = []
    for word in text.split(","):
        if (match := re.fullmatch(r"([1-9][0-9]{0,12})([kMG]?)", word)) is None:
            raise argparse.ArgumentTypeError(f"{word!a}: want rates such as 500k,10M,1G")
        found.append(int(match[1]) * _UNITS.get(match[2], 1))
    return found


def run(cells: Sequence[Cell], rounds: int) -> list[Line]:
    """Measure all cells in each round."""
    samples: dict[Cell, list[Sample]] = {cell: [] for cell in cells}
    with ExitStack() as stack:
        node = Node(stack)
        for number in range(rounds):
            for cell in cells:
                say(
                    f"limits: round {number + 1} of {rounds}: {report.rate_text(cell.rate)} "
                    f"{cell.direction} the workload, IPv{cell.version}"
                )
                samples[cell].append(measure(node, cell))
    return [report.line(cell, found) for cell, found in samples.items()]


def main(arguments: Sequence[str]) -> int:
    """See the module."""
    parser = argparse.ArgumentParser(
        prog="limits", usage="%(prog)s [options]", description=__doc__, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="exit status: 0 measured, 1 something failed, 2 wrong arguments, 130 after Ctrl-C",
    )  # fmt: skip
    parser.add_argument(
        "--rounds", metavar="N", type=positive, default=3,
        help=f"of which figures are medians, each about {2 * SECOND:g} s a line; "
        "default: %(default)s",
    )  # fmt: skip
    parser.add_argument(
        "--rates", metavar="RATE,...", type=rates, default=list(RATES),
        help="in bits per second; default: " + ",".join(map(report.rate_text, RATES)),
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="JSON as the last line")
    chosen = parser.parse_args(arguments)
    cells = [Cell(*each) for each in itertools.product(chosen.rates, (TO, FROM), (4, 6))]
    try:
        enter_namespaces()
        lines = run(cells, chosen.rounds)
    except BenchError as error:
        print(f"limits: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    print(report.table(lines))
    if chosen.json:
        print(json.dumps({"figures": [one.as_json() for one in lines]}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
