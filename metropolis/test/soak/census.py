# SPDX-License-Identifier: Apache-2.0
"""Count kernel objects, independently of the service.

pyroute2 lists links, routes, rules and addresses, `nft` lists nftables rules
and elements, /proc descriptors and threads. The kernel does not report the
number of network namespaces. But the limit of our own user namespace
(namespaces(7)) also counts unreachable ones, so the census tries how many more
can be made.
"""

import contextlib
import errno
import os
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path

from pyroute2 import IPRoute

from metropolis.node import allocs
from metropolis.node.core.network.workloads.api.server import CHECKERS, WORKERS
from metropolis.test.soak.world import Host
from metropolis.test.world.namespaces import Netns
from osbase.rpc.server import QUICK

_LIMIT = Path("/proc/sys/user/max_net_namespaces")
_POOL = ("rpc-worker", "rpc-quick", "rpc-accept", "rpc-ticker")  # names of osbase.rpc's threads
_GRPC = ("event_engine", "grpc_global_tim", "lifeguard")  # names of its C-core's
_POOLED = WORKERS + CHECKERS + 2 * QUICK + 1 + 1  # two quick methods, streams, the ticker
_PROTOCOLS = {"6": "tcp", "17": "udp", "132": "sctp"}
_ELEMENT = re.compile(r'(\d+) \. (\d+) comment "[^"]*" : ([0-9a-f.:]+) \. (\d+)')
_KEPT_SOCKETS = 2 * 8 + 1  # idle ones of two SocketPools; LinkEvents


@dataclass(frozen=True)
class Census:
    """How many of each; `fds` and `threads` are the service's."""

    links: int
    routes: int
    rules: int
    addresses: int
    fds: int = 0
    threads: int = 0

    def less(self, before: Census) -> dict[str, int]:
        """Return the kinds with more than before."""
        return {
            field.name: getattr(self, field.name) - getattr(before, field.name)
            for field in fields(self)
        }


def take(host: Host) -> Census:
    """Count a host with its service."""

    def count() -> tuple[int, int, int, int]:
        with IPRoute() as witness:
            nft = subprocess.run(
                ["nft", "list", "ruleset"], capture_output=True, text=True, check=True
            )
            return (
                len(list(witness.get_links())),
                len(list(witness.get_routes())),
                len(list(witness.get_rules())) + len(nft.stdout.split()),
                len(list(witness.get_addr())),
            )

    links, routes, rules, addresses = host.netns.inside(count)
    return Census(links, routes, rules, addresses, _descriptors(host.pid), _threads(host.pid))


def _threads(pid: int) -> int:
    """Count threads, without those of the server's pools up to their limits: a
    pool starts them on demand, so more of them later are not a leak. Those of
    gRPC's C-core do not count: a busy machine has more.
    """
    pooled = others = 0
    for task in os.listdir(f"/proc/{pid}/task"):
        # Python names its threads for the kernel, too. One may end meanwhile.
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            name = Path(f"/proc/{pid}/task/{task}/comm").read_text()
            pooled += name.startswith(_POOL)
            others += not name.startswith((*_POOL, *_GRPC))
    return others + max(0, pooled - _POOLED)


def _descriptors(pid: int) -> int:
    """Count a service's descriptors. The number of netlink sockets on its host
    depends on the most concurrent calls, so they count as the allowed maximum.
    """
    proc = Path(f"/proc/{pid}")
    # proc_pid_net(5): of the process's own namespace; the inode is last.
    lines = (proc / "net/netlink").read_text().splitlines()[1:]
    netlink = {f"socket:[{line.split()[-1]}]" for line in lines}
    found = [os.readlink(path) for path in (proc / "fd").iterdir()]
    kept = sum(1 for target in found if target in netlink)
    return len(found) - kept + max(kept, _KEPT_SOCKETS)


def host_ports(host: Host) -> set[tuple[str, int, str, int]]:
    """Return the ports of all addresses of the node, each with protocol, and
    address and port of the workload, by the words of nft(8).
    """

    def listed() -> str:
        command = ["nft", "-n", "list", "table", "inet", allocs.NFTABLES_WORKLOADS]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    return {
        (_PROTOCOLS[number], int(port), address, int(inner))
        for number, port, address, inner in _ELEMENT.findall(host.netns.inside(listed))
    }


def ifbs(host: Host) -> set[str]:
    """Return the names of the links of this kind."""

    def listed() -> set[str]:
        with IPRoute() as witness:
            return {str(link.get("ifname")) for link in witness.get_links(kind="ifb")}

    return host.netns.inside(listed)


def rss_kib(pid: int) -> int:
    """Resident memory of a process, proc_pid_status(5)."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    raise ValueError(f"process {pid} has no memory: it has ended")


def room_for_namespaces(limit: int) -> int:
    """Return how many more network namespaces can be made, by making them."""
    made: list[Netns] = []
    before = _LIMIT.read_text()
    _LIMIT.write_text(str(limit))
    try:
        with contextlib.suppress(StopIteration):
            made.extend(_until_full())
    finally:
        _LIMIT.write_text(before)
        for one in made:
            one.close()
    return len(made)


def _until_full() -> Iterator[Netns]:
    while True:
        try:
            yield Netns()
        except OSError as error:
            if error.errno == errno.ENOSPC:
                return
            raise


@dataclass(frozen=True)
class Seen:
    """A workload as the kernel shows it on the host."""

    ifindex: int
    name: str


def workloads(host: Host) -> tuple[list[tuple[str, Seen]], set[str]]:
    """Return links of the workloads' group by their alias, and destinations of
    routes with the workloads' protocol, without link-local ones.
    """

    def look() -> tuple[list[tuple[str, Seen]], set[str]]:
        with IPRoute() as witness:
            links = [
                (str(link.get("ifalias")), Seen(int(link["index"]), str(link.get("ifname"))))
                for link in witness.get_links()
                if link.get("group") == allocs.LINK_GROUP_WORKLOAD
            ]
            routes = {
                str(route.get("dst"))
                for family in (2, 10)
                for route in witness.get_routes(family=family)
                if route["proto"] == allocs.ROUTE_PROTOCOL_WORKLOAD
                and not str(route.get("dst")).startswith("fe80:")
            }
            return links, routes

    return host.netns.inside(look)


def inside(pod: Netns) -> tuple[set[str], int]:
    """Return the addresses of a pod's eth0, without the kernel's own, and the
    number of default routes.
    """

    def look() -> tuple[set[str], int]:
        with IPRoute() as witness:
            index = witness.link_lookup(ifname="eth0")
            if not index:
                return set(), 0
            addresses = {str(a.get("address")) for a in witness.get_addr(index=index[0])}
            routes = [
                route
                for family in (2, 10)
                for route in witness.get_routes(family=family, table=254)
                if route["dst_len"] == 0
            ]
            return {a for a in addresses if not a.startswith("fe80:")}, len(routes)

    return pod.inside(look)
