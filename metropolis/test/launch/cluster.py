# SPDX-License-Identifier: Apache-2.0
"""A running cluster: nodes in one lab, and their etcd.

    async with Cluster(find_images(), here, nodes=3) as cluster:
        await cluster.run_pods()
        checks = await cluster.reach()

    node-1   node-2   node-3        machines; pod-1, pod-2, pod-3 in them
    --+--------+--------+--
      |      lab0       |           router, DHCP, RA, outside; captured
    --+-----------------+--
           etcd                     at the router's address, by TLS

Every node has its own disk, which survives it, certificate and name. The
library behind metroctl does the operator's part.

Below `directory` there are: a directory for each node with its console and
sockets, and in it one for each ended boot, with its logs; etcd's directory; the
captures.
"""

import asyncio
import contextlib
import os
import shlex
from collections.abc import AsyncIterator, Coroutine, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

from metropolis.node.core.curator import administration
from metropolis.node.core.curator.credentials import Files
from metropolis.node.core.curator.directory import Directory
from metropolis.node.core.curator.etcd import Etcd as Store
from metropolis.node.core.curator.etcd import dial
from metropolis.node.core.curator.records import ClusterConfig, pod_network
from metropolis.test.etcd import Etcd
from metropolis.test.launch import checks, configuration, etcd_socket, keeping, reach
from metropolis.test.launch.capture import Capture
from metropolis.test.launch.checks import Check, Plan
from metropolis.test.launch.cri import CriError, Pod
from metropolis.test.launch.images import Images
from metropolis.test.launch.lab import (
    MTU,
    OUTSIDE_IPV4,
    OUTSIDE_IPV6,
    OUTSIDE_PORT,
    ROUTER_IPV4,
    Lab,
    Port,
)
from metropolis.test.launch.matrix import ClusterReport, NodeRow
from metropolis.test.launch.node import Node, NodeError, Progress, make_data_disk, quiet
from metropolis.test.launch.reach import Place
from metropolis.test.launch.started import Started
from osbase.test.agent.client import AgentError
from osbase.test.qemu.accel import find_accel

# Sizes of what pods serve: for the matrix, and for tests of throughput.
BODIES = (reach.BODY_BYTES, 1_000_000)
POD_NETWORKS = (("10.200.0.0/16", 24), ("fd00:10:200::/48", 64))
_CONFIG = "network { uplink { dhcp4 {} } }"
_MEMORY_MIB = 1024
_CPUS = 2  # of a node, where the host has as many for each
_BOOT_S = 600.0
# Seconds for all checks of one pod or node.
_ASK_S = 600.0


@dataclass
class Member:
    """A node of the cluster, from its first boot until it is destroyed.

    node: the machine; None while it is off. pod: started by run_pods().
    """

    name: str
    port: Port
    directory: Path
    disk: Path
    pki: dict[str, bytes]
    boots: int = 0
    node: Node | None = None
    pod: Pod | None = None
    stack: contextlib.AsyncExitStack = field(default_factory=contextlib.AsyncExitStack)

    @property
    def running(self) -> Node:
        """Return the machine. Raises NodeError when it is off."""
        if self.node is None:
            raise NodeError(f"{self.name} is off")
        return self.node


class Cluster(Started):
    """The cluster, from entering to leaving the context, in a network namespace
    of its own. Nodes are named node-1 and so on, never twice.
    """

    def __init__(
        self,
        images: Images,
        directory: Path,
        nodes: int = 3,
        *,
        mtu: int = MTU,
        keep: Path | None = None,
        progress: Progress = quiet,
        config: str | None = None,
        log_level: str = "info",
    ) -> None:
        """directory: short, see osbase.test.qemu.config. nodes: how many there
        are at first. mtu: of the underlay, bytes. keep: gets logs and captures
        in the end. config: of every node, without its part `cluster`.
        log_level: node core's.
        """
        super().__init__()
        self.members: dict[str, Member] = {}
        self.lab = Lab(directory, nodes=0, mtu=mtu)
        self.capture = Capture(directory)
        self.etcd: Etcd
        self._images = images
        self._directory = directory
        self._first = nodes
        # A guest with two CPUs that share one CPU of the host is slower than
        # a guest with one.
        self._cpus = max(1, min(_CPUS, (os.process_cpu_count() or 1) // max(1, nodes)))
        self._keep = keep
        self._progress = progress
        self._node_config = _CONFIG if config is None else config
        self._log_level = log_level

    async def _start(self) -> None:
        if self._keep is not None:
            self._stack.callback(keeping.copy, self._directory, self._keep)
        await self._stack.enter_async_context(self.lab)
        await self._stack.enter_async_context(self.capture)
        await self._start_store()
        self._stack.push_async_callback(self._end)
        # Once, and not by each of them.
        await find_accel(self._images.kernel)
        # Names and ports in order, machines at once.
        for _ in range(self._first):
            await self._admit()
        await _all(self.boot(name) for name in self.members)

    async def _end(self) -> None:
        every = (self.power_off(name) for name in self.members)
        # The lab ends after the last node.
        failed = [it for it in await asyncio.gather(*every, return_exceptions=True) if it]
        if failed:
            raise failed[0]

    async def _start_store(self) -> None:
        # Makes keys and certificates.
        address = str(ROUTER_IPV4.ip)
        self.etcd = await asyncio.to_thread(
            Etcd, self._directory / "etcd", [address], (), [etcd_socket.HOST]
        )
        await self._stack.enter_async_context(self.etcd)
        networks = tuple(pod_network(prefix, length) for prefix, length in POD_NETWORKS)
        host, _, port = self.etcd.endpoint.rpartition(":")
        local = self._directory / etcd_socket.SOCKET
        await self._stack.enter_async_context(etcd_socket.relayed(local, host, int(port)))
        client = self.etcd.client
        etcd_socket.publish(self._directory, client.ca, client.cert, client.key)
        async with self.store() as store:
            await administration.init(store, ClusterConfig(networks))

    @contextlib.asynccontextmanager
    async def store(self) -> AsyncIterator[Store]:
        """Connect to the cluster's store, as an operator."""
        client = self.etcd.client
        files = Files(str(client.ca), str(client.cert), str(client.key))
        async with await dial(self.etcd.endpoints, files) as store:
            yield store

    async def view(self) -> Directory:
        """Return the present contents of the store."""
        async with self.store() as store:
            return (await administration.view(store)).directory

    def _config(self, name: str) -> str:
        """Return the NodeConfig of a node."""
        return self._node_config + configuration.member(name, self.etcd.endpoint)

    def _pki(self, name: str) -> dict[str, bytes]:
        made = self.etcd.authority.client(name)
        return {item: getattr(made, item).read_bytes() for item in ("ca", "cert", "key")}

    @contextlib.contextmanager
    def progress_to(self, progress: Progress) -> Iterator[None]:
        """Report progress there, too, for as long as the block lasts."""
        before = self._progress

        def both(message: str) -> None:
            before(message)
            progress(message)

        self._progress = both
        try:
            yield
        finally:
            self._progress = before

    # Nodes come and go.

    async def _admit(self) -> Member:
        """Prepare a new node before its first boot."""
        port = await self.lab.plug()
        name = f"node-{port.number}"
        directory = self._directory / name
        directory.mkdir()
        disk = directory / "data.img"
        await make_data_disk(disk)
        pki = await asyncio.to_thread(self._pki, name)
        member = Member(name, port, directory, disk, pki)
        self.members[name] = member
        return member

    async def add(self) -> Node:
        """Boot a node that the cluster has never seen, until it is ready."""
        return await self.boot((await self._admit()).name)

    async def boot(self, name: str, clock: str = "utc") -> Node:
        """Boot a node that is off, until pods can be started on it.

        clock: see Machine.
        """
        member = self.members[name]
        member.boots += 1

        def say(message: str) -> None:
            self._progress(f"{name}: {message}")

        node = Node(
            self._images, self.lab, member.directory, self._config(name), say, member.disk,
            name=name, port=member.port, pki=member.pki, memory_mib=_MEMORY_MIB, cpus=self._cpus,
            clock=clock, log_level=self._log_level,
        )  # fmt: skip
        member.node = await member.stack.enter_async_context(node)
        try:
            await node.wait_ready(_BOOT_S)
        except NodeError as error:
            raise NodeError(f"{name}: {error}") from error
        return node

    async def power_off(self, name: str, grace_s: float = 0.0) -> None:
        """End a node's machine, if it runs, and keep its logs.

        grace_s: seconds for an orderly shutdown; 0: like a power failure.
        """
        member = self.members[name]
        node, member.node, member.pod = member.node, None, None
        if node is None:
            return
        past = member.directory / f"boot-{member.boots}"
        try:
            past.mkdir(exist_ok=True)
            await node.save_logs(past)
            await node.vm.stop(grace_s)
        finally:
            await member.stack.aclose()
        for log in (node.vm.layout.console_log, node.vm.layout.qemu_log):
            with contextlib.suppress(FileNotFoundError):
                log.rename(past / log.name)

    async def destroy(self, name: str) -> None:
        """Destroy a node and its disk, without notice to the cluster."""
        await self.power_off(name)
        self.members.pop(name).disk.unlink()

    async def remove(self, name: str) -> None:
        """Destroy a node, and remove it from the cluster."""
        await self.destroy(name)
        async with self.store() as store:
            await administration.remove(store, name)

    # Pods and checks.

    async def run_pod(self, name: str) -> Pod:
        """Start the pod of a node, pod-1 on node-1, until it serves BODIES."""
        member = self.members[name]
        cri = member.running.cri
        # The runtime still has pods from before a reboot, with their names.
        dead = [ident for ident, alive in (await cri.sandboxes()).items() if not alive]
        await asyncio.gather(*map(cri.remove_pod, dead))
        pod = await cri.run_pod(
            f"pod-{member.port.number}", checks.pod_command(f"pod-{member.port.number}", BODIES)
        )
        own = shlex.join(checks.fetch(IPv4Address("127.0.0.1"), checks.PORT, "name"))
        ask = f"until {own}; do sleep 0.1; done"
        await cri.exec(pod.container, ["sh", "-c", ask])
        member.pod = pod
        return pod

    async def run_pods(self) -> None:
        """Start a pod on every node that runs and has none."""
        await _all(
            self.run_pod(name)
            for name, member in self.members.items()
            if member.node is not None and member.pod is None
        )

    @property
    def places(self) -> list[Place]:
        """Return the running nodes that have a pod."""
        return [
            Place(name, _addresses(member.node), member.pod)
            for name, member in self.members.items()
            if member.node is not None and member.pod is not None
        ]

    async def reach(self, size: int = reach.BODY_BYTES) -> list[Check]:
        """Run the checks of all pods, one after the other, then of all nodes.
        size: see reach.plan.
        """
        places = self.places
        plans = reach.plan(places, (OUTSIDE_IPV4, OUTSIDE_IPV6), OUTSIDE_PORT, size)

        async def from_pod(place: Place) -> list[Check]:
            mine = [planned for planned in plans if planned.pod == place.pod.name]
            cri = self.members[place.node].running.cri
            command = ["sh", "-c", checks.script(mine, at_once=False)]
            try:
                done = await cri.exec(place.pod.container, command, _ASK_S)
            except CriError as error:
                return _failed(mine, str(error))
            return reach.judge(mine, done.stdout)

        async def from_node(place: Place) -> list[Check]:
            mine = [planned for planned in plans if planned.pod == place.node]
            agent = self.members[place.node].running.agent
            try:
                async with asyncio.timeout(_ASK_S):
                    done = await agent.run(["sh", "-c", checks.script(mine, at_once=False)])
            except (AgentError, TimeoutError) as error:
                return _failed(mine, str(error) or "no answer in time")
            return reach.judge(mine, done.text)

        found = await asyncio.gather(*map(from_pod, places))
        found += await asyncio.gather(*map(from_node, places))
        return [check for some in found for check in some]

    def report(self, found: Sequence[Check]) -> ClusterReport:
        """Return a report of the checks, with the running nodes."""
        rows, accel = [], ""
        for member in self.members.values():
            node, pod = member.node, member.pod
            if node is None:
                continue
            accel = node.accel.value if node.accel else ""
            rows.append(
                NodeRow(
                    name=member.name,
                    ipv4=str(node.ipv4),
                    ipv6=str(node.ipv6 or ""),
                    boot_s=node.boot_s,
                    pod=pod.name if pod else "",
                    pod_ipv4=str(pod.ipv4 or "") if pod else "",
                    pod_ipv6=str(pod.ipv6 or "") if pod else "",
                )
            )
        return ClusterReport(accel, tuple(rows), tuple(found))

    async def logs(self) -> str:
        """Return the ends of the logs of all nodes that run."""
        nodes = [member.node for member in self.members.values() if member.node is not None]
        texts = await asyncio.gather(*(node.logs() for node in nodes))
        return "\n".join(
            f"--- {node.name}\n{text}" for node, text in zip(nodes, texts, strict=True)
        )


def _addresses(node: Node) -> tuple[IPv4Address | IPv6Address, ...]:
    return (node.ipv4,) if node.ipv6 is None else (node.ipv4, node.ipv6)


def _failed(plans: Sequence[Plan], said: str) -> list[Check]:
    return [Check(p.name, False, said, p.pod, p.target, p.family) for p in plans]


async def _all[T](work: Iterable[Coroutine[None, None, T]]) -> list[T]:
    """Do all at once; when one fails, cancel the others and raise its error."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one) for one in work]
    except* Exception as errors:
        failed = errors
    else:
        return [task.result() for task in tasks]
    raise failed.exceptions[0]
