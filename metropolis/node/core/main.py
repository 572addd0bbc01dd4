# SPDX-License-Identifier: Apache-2.0
"""Node core: the one process that makes a node part of Metropolis.

It reads the node's configuration, then runs everything in one supervised tree
until SIGTERM or SIGINT. On a stop it finishes calls under way; its routes,
links and rules stay in the kernel, and workloads keep their network.

Exit status: 0 after a stop; 1 if something did not end in time or the
interpreter failed; 2 for a wrong usage or configuration.
"""

from __future__ import annotations

from metropolis.node.core import start  # noqa: F401  # before all others

# isort: split

import argparse
import asyncio
import gc
import logging
import os
import resource
import signal
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from metropolis.node import allocs
from osbase.imports.parser import Parser
from osbase.text import printable

if TYPE_CHECKING:
    from metropolis.node.core.config import NodeConfig

_SHUTDOWN_LIMIT_S: Final = 20.0
# A connection is a file, and hundreds of clients may call at once.
_FILES: Final = 4096
_LEVELS: Final = ("debug", "info", "warning", "error")

log = logging.getLogger("core")


class ConsoleFormatter(logging.Formatter):
    """Lines for a serial console, which sort with the kernel's own.

        [   12.345678] I root.network.uplink: eth0 has 192.0.2.7/24

    The time is since boot, as in the kernel's. Control characters are escaped:
    the text may come from a packet. Only tracebacks have several lines.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Return the lines of one record."""
        lines: Sequence[tuple[float, int, str]] | None = getattr(record.msg, "lines", None)
        if lines is not None:  # see workloads.engine.journal
            booted = _booted()
            return "\n".join(
                _line(when - booted, logging.getLevelName(level), record.name, printable(text))
                for when, level, text in lines
            )
        text = printable(record.getMessage())
        if record.exc_info and record.exc_info[0] is not None:
            trace = self.formatException(record.exc_info)
            text += "\n" + "\n".join(f"    {printable(line)}" for line in trace.splitlines())
        return _line(record.created - _booted(), record.levelname, record.name, text)


def _booted() -> float:
    """Return when the kernel started, as in time.time()."""
    return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)


def _line(uptime: float, level: str, name: str, text: str) -> str:
    return f"[{uptime:12.6f}] {level[0]} {name}: {text}"


def _arguments() -> Parser:
    parser = Parser(
        prog="node-core",
        usage="%(prog)s [options]",
        description="Node core: network and workload networking of one node.",
        epilog="exit status: 0 stopped as asked (SIGTERM, SIGINT); 1 something did not end "
        "in time; 2 wrong usage or configuration",
    )
    parser.add_argument(
        "--config",
        metavar="FILE",
        default=allocs.NODE_CONFIG,
        help="the node's configuration, a NodeConfig as protobuf text "
        "(metropolis/node/core/spec/config.proto); default: %(default)s",
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="check the configuration, print all that is wrong with it, or ok and a summary, and "
        "exit",
    )
    parser.add_argument(
        "--runtime-dir",
        metavar="DIR",
        default=allocs.RUNTIME_DIR,
        help="directory of the sockets workload.sock and cni.sock, made with mode 0700 if it is "
        "not there, and never changed; default: %(default)s",
    )
    parser.add_argument(
        "--state-dir",
        metavar="DIR",
        default=allocs.STATE_DIR,
        help="directory of what a node in a cluster keeps over reboots, its WireGuard key; "
        "default: %(default)s",
    )
    parser.add_argument(
        "--log-level",
        choices=_LEVELS,
        default="info",
        help="the least that is logged, to standard error; default: %(default)s",
    )
    parser.add_argument(
        "--rpc-server",
        choices=("auto", "queues", "stock"),
        default="auto",
        help="what serves workload.sock: our own server on gRPC's completion queues, gRPC's "
        "stock server, which is slower, or whichever fits the grpcio that is installed; "
        "default: %(default)s",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run node core; returns the exit status."""
    arguments = _arguments().parse_args(argv)
    handler = logging.StreamHandler()
    handler.setFormatter(ConsoleFormatter())
    logging.basicConfig(level=arguments.log_level.upper(), handlers=[handler])

    # What is imported stays: to look through it for garbage is wasted.
    gc.disable()
    # After the arguments, so that --help and wrong usage answer at once.
    from metropolis.node.core import config as node_config

    try:
        config = node_config.load(arguments.config)
    except node_config.ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    if arguments.check:
        print(f"ok: {ascii(arguments.config)[1:-1]}: {node_config.summary(config)}")
        return 0
    _allow_files()
    return asyncio.run(_serve(config, arguments))


def _allow_files() -> None:
    """Raise the limit of open files, 1024 by default, where that is allowed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _FILES if hard == resource.RLIM_INFINITY else min(_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


async def _serve(config: NodeConfig, arguments: argparse.Namespace) -> int:
    from metropolis.node.core.config import PodPrefixes
    from metropolis.node.core.network.failures import explained
    from metropolis.node.core.network.paths import Paths
    from metropolis.node.core.network.service import NetworkService
    from osbase import event
    from osbase.supervisor import Context, Supervisor

    gc.freeze()
    gc.enable()
    runtime_dir: str = arguments.runtime_dir
    pod_prefixes = event.Value[PodPrefixes]("pod prefixes")
    membership = None
    own_cgroup = None
    if config.cluster is None:
        # Without a cluster, the configuration supplies the prefixes.
        pod_prefixes.set(config.network.pods)
    else:
        from metropolis.node.core import cgroup
        from metropolis.node.core.cluster import Membership

        # Before the connections to etcd, which it covers.
        own_cgroup = cgroup.own()
        membership = Membership(config.cluster, pod_prefixes)
    paths = Paths(
        workload_socket=os.path.join(runtime_dir, os.path.basename(allocs.WORKLOAD_SOCKET)),
        cni_socket=os.path.join(runtime_dir, os.path.basename(allocs.CNI_SOCKET)),
        resolv_conf=os.path.join(
            os.path.dirname(runtime_dir.rstrip("/")), os.path.basename(allocs.RESOLV_CONF)
        ),
        state_dir=arguments.state_dir,
        time_dir=os.path.join(
            os.path.dirname(runtime_dir.rstrip("/")), os.path.basename(allocs.TIME_DIR)
        ),
        policy_dir=os.path.join(runtime_dir, os.path.basename(allocs.POLICY_DIR)),
        policy_files=os.path.join(
            os.path.dirname(arguments.config) or ".",
            os.path.basename(allocs.POLICY_FILES),
        ),
        rpc_server=arguments.rpc_server,
    )
    network = NetworkService(
        config.network, pod_prefixes, paths, membership.link if membership else None, own_cgroup
    )

    async def root(ctx: Context) -> None:
        ctx.run("network", network.run)
        if membership is not None:
            membership.start(ctx, network.uplink_status, network.conditions)
        ctx.signal_healthy()
        ctx.signal_done()

    supervisor = Supervisor(root, expected=explained)
    loop = asyncio.get_running_loop()

    def stop(name: str) -> None:
        log.info("%s: stopping", name)
        supervisor.request_stop()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop, number.name)
    log.info("node core started, process %d", os.getpid())
    stuck = await supervisor.run(_SHUTDOWN_LIMIT_S)
    if not stuck:
        log.info("stopped")
        return 0
    log.error("did not end within %.0f s: %s", _SHUTDOWN_LIMIT_S, ", ".join(stuck))
    logging.shutdown()
    # Threads and tasks that do not end must not keep the process alive.
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
