# SPDX-License-Identifier: Apache-2.0
"""Make and remove millions of attachments, to see whether memory grows.

    python -m metropolis.test.soak.turnover --prefix fd00::/64 --cycles 1000000

The engine runs with the fake datapath, in a separate process: this is thousands
of times faster than the kernel, so growth by some bytes per attachment shows.
It prints a line every STEP cycles: cycles, and resident memory in KiB. It ends
after --cycles, or at the end of standard input.

Each cycle is an Attach and a Detach, usually of a new workload; some stay a
while, so that the freed address is neither the first nor the last. Some are
refused, request an address, or end with their namespace.

The soak's hosts, not this, show the memory of the kernel's datapath.
"""

import argparse
import logging
import os
import random
import select
import sys
from collections import deque
from ipaddress import ip_address, ip_network

from metropolis.node.core.network.workloads.engine.engine import Engine
from metropolis.node.core.network.workloads.errors import WorkloadError
from metropolis.node.core.network.workloads.model import AttachIntent, IPAddress, IPNetwork
from metropolis.node.core.network.workloads.testing.fake import FakeDatapath
from metropolis.test.soak.census import rss_kib

STEP = 5_000
_STAY = 25


class Turnover:
    """An engine, and attachments that come and go."""

    def __init__(self, prefixes: list[IPNetwork], seed: int) -> None:
        self._datapath = FakeDatapath()
        self._engine = Engine(self._datapath)
        self._engine.set_prefixes(prefixes)
        self._engine.start()
        self._prefixes = prefixes
        self._stay: deque[str] = deque()
        self._random = random.Random(seed)
        self._number = 0

    def cycles(self, count: int) -> None:
        """Make `count` attachments, and end as many."""
        for _ in range(count):
            self._number += 1
            self._one(f"sandbox-{self._number:08x}")

    def _one(self, workload_id: str) -> None:
        dice = self._random.random()
        path = f"/{workload_id}"
        self._datapath.kernel.add_netns(path)
        asked: tuple[IPAddress, ...] = ()
        if dice < 0.02:
            prefix = self._random.choice(self._prefixes)
            host = self._random.randrange(1, prefix.num_addresses)
            asked = (ip_address(int(prefix.network_address) + host),)
        try:
            self._engine.attach(AttachIntent(workload_id, path, "eth0", requested_ips=asked))
        except WorkloadError:  # the address is taken or not in the pool
            self._datapath.kernel.namespaces.pop(path)
            return
        self._stay.append(workload_id)
        if len(self._stay) > _STAY:
            self._end(self._stay.popleft(), dies=dice > 0.95)

    def _end(self, workload_id: str, *, dies: bool) -> None:
        path = f"/{workload_id}"
        if not dies:
            self._engine.detach(workload_id, path)
        self._datapath.kill_netns(path)


def main(arguments: list[str]) -> int:
    """Run the command; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="turnover",
        usage="%(prog)s [options] --prefix PREFIX",
        description="Attach and detach by the million, without a kernel. Prints cycles and the "
        "memory of the process in KiB.",
        epilog="exit status: 0 done, 2 wrong arguments",
    )
    parser.add_argument(
        "--prefix", metavar="PREFIX", action="append", required=True, type=ip_network,
        help="addresses of workloads, such as 10.192.0.0/24; repeatable",
    )  # fmt: skip
    parser.add_argument(
        "--cycles", metavar="N", type=int, default=None,
        help="how many attaches; default: until stdin ends or has a line",
    )  # fmt: skip
    parser.add_argument(
        "--seed", metavar="N", type=int, default=1,
        help="of the random choices; default: %(default)s",
    )  # fmt: skip
    chosen = parser.parse_args(arguments)
    logging.disable(logging.INFO)  # a line for each that died
    turnover = Turnover(chosen.prefix, chosen.seed)
    done = 0
    while chosen.cycles is None or done < chosen.cycles:
        turnover.cycles(STEP)
        done += STEP
        print(done, rss_kib(os.getpid()), flush=True)
        if chosen.cycles is None and select.select([sys.stdin], [], [], 0)[0]:
            break
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
