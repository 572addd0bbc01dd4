# SPDX-License-Identifier: Apache-2.0
"""Serve the workload network API in the network namespace of the process.

    serve --socket /run/x/workload.sock --prefix 10.192.0.0/24

For tests, tracing and measuring: the node's own service is the same engine and
server within the network service. It writes `ready` to standard output when it
serves, and ends with SIGTERM or SIGINT, after the calls under way.
"""

from metropolis.node.core import start  # noqa: F401  # before all others

# isort: split

import logging
import signal
import sys
from ipaddress import ip_address, ip_network

from metropolis.node.core.network.workloads.api.server import WORKERS, WorkloadServer
from metropolis.node.core.network.workloads.datapath.registry import PARTS
from metropolis.node.core.network.workloads.datapath.veth import KernelDatapath
from metropolis.node.core.network.workloads.engine.engine import Engine
from metropolis.node.core.network.workloads.engine.journal import Journal
from metropolis.node.core.network.workloads.engine.settings import DEFAULT_MTU
from metropolis.node.core.network.workloads.errors import WorkloadError
from osbase.imports.parser import Parser
from osbase.rpc import choose


def main(arguments: list[str]) -> int:
    """Run until a signal. Returns the exit status: 1 when it cannot serve."""
    parser = Parser(
        prog="serve",
        usage="%(prog)s [options] --socket FILE",
        description="Serve the workload network API in this network namespace, without the "
        "rest of node core: for tests and measurements.",
        epilog="Prints `ready` when it serves. Exit status: 0 after SIGTERM or SIGINT, 1 when it "
        "cannot serve, 2 for wrong arguments.",
    )
    parser.add_argument("--socket", metavar="FILE", required=True, help="path of the unix socket")
    parser.add_argument(
        "--prefix", metavar="PREFIX", action="append", default=[], type=ip_network,
        help="addresses of workloads, such as 10.192.0.0/24; repeatable; default: none",
    )  # fmt: skip
    parser.add_argument(
        "--reserved", metavar="ADDRESS", action="append", default=[], type=ip_address,
        help="an address that is not assigned; repeatable; default: none",
    )  # fmt: skip
    parser.add_argument(
        "--mtu", metavar="BYTES", default=DEFAULT_MTU, type=int,
        help="of new links, in bytes; default: %(default)s",
    )  # fmt: skip
    parser.add_argument(
        "--ipv6-optional", action="store_true", help="IPv4 alone where IPv6 is switched off"
    )
    parser.add_argument(
        "--workers", metavar="N", default=WORKERS, type=int,
        help="threads, each for one call at a time; default: %(default)s",
    )  # fmt: skip
    parser.add_argument(
        "--rpc-server", default=choose.AUTO, choices=choose.NAMES,
        help="as in node core's --help; default: %(default)s",
    )  # fmt: skip
    chosen = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")

    ending = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, ending)  # inherited by all threads
    engine = Engine(KernelDatapath(PARTS), journal=Journal())
    try:
        engine.set_mtu(chosen.mtu)
        engine.set_ipv6_optional(chosen.ipv6_optional)
        engine.set_prefixes(chosen.prefix, chosen.reserved)
        engine.start()
        server = WorkloadServer(
            engine, chosen.socket, workers=chosen.workers, implementation=chosen.rpc_server
        )
        server.start()
    except (WorkloadError, OSError, RuntimeError) as error:
        engine.close()
        print(f"serve: {error}", file=sys.stderr)
        return 1
    print("ready", flush=True)
    signal.sigwait(ending)
    server.stop()
    engine.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
