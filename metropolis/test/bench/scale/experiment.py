# SPDX-License-Identifier: Apache-2.0
"""The experiment: one real node, the others simulated, phase by phase.

    small   a cluster of 10: one change, an unrelated change, the cost of both
    growth  all others join at once
    large   the same as small
    churn   nodes join, leave, move and change keys; the delay of the node
    warm    node core is killed: the work of its successor
    cold    the same, without link and peers in the kernel

After each, the kernel's peers are compared with etcd.
"""

import asyncio
import contextlib
import os
import random
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Final

from metropolis.node import allocs
from metropolis.node.core.curator.credentials import Files
from metropolis.node.core.curator.directory import Directory, Entry
from metropolis.test.bench.common.errors import BenchError
from metropolis.test.bench.common.terminal import say
from metropolis.test.bench.scale import oracle, simulated
from metropolis.test.bench.scale.model import (
    Burst,
    Change,
    Cpu,
    Growth,
    Measured,
    Plan,
    Size,
    Started,
    Store,
    Warm,
)
from metropolis.test.bench.scale.probe import Probe, probing
from metropolis.test.bench.scale.store import Fleet, Write
from metropolis.test.bench.scale.trace import Trace, listed, start
from metropolis.test.etcd import Etcd
from metropolis.test.launch.capture import Capture
from metropolis.test.launch.images import find_images
from metropolis.test.launch.lab import ROUTER_IPV4, Lab
from metropolis.test.launch.node import Node

_NODE: Final = "node-1"
_MEMORY_MIB: Final = 1024
_BOOT_S: Final = 300.0
# Seconds. The host polls for a result: interval, limit, and how long it must
# stay the same.
_POLL_S: Final = 0.1
_CHANGE_S: Final = 60.0
_LIMIT_S: Final = 600.0
_QUIET_S: Final = 2.0
# Between unrelated writes: each is a separate event, and the idle use
# meanwhile is little.
_SPACING_S: Final = 0.05
_HEAVY_BYTES: Final = 10_000
_TOLD: Final = 5  # differences

# Filters of packets to simulated nodes, see pcap-filter(7). The initiator of a
# session sends 148 bytes in UDP (wireguard.com/protocol, first message).
_IPV4, _IPV6 = simulated.UNDERLAY
_BEGINS: Final = "(udp[4:2] == 156)", "(ip6[6] == 17 and ip6[44:2] == 156)"
_HANDSHAKES: Final = f"(dst net {_IPV4} and {_BEGINS[0]}) or (dst net {_IPV6} and {_BEGINS[1]})"
_OTHERS: Final = f"(dst net {_IPV4} and not {_BEGINS[0]}) or (dst net {_IPV6} and not {_BEGINS[1]})"


class Experiment:
    """Phases, in the order of `run`. The lab, etcd and the node are running."""

    def __init__(
        self, plan: Plan, node: Node, probe: Probe, fleet: Fleet, etcd: Etcd, capture: Capture
    ) -> None:
        self._plan = plan
        self._node = node
        self._probe = probe
        self._fleet = fleet
        self._etcd = etcd
        self._capture = capture
        self._random = random.Random(plan.seed)
        self._failures: list[str] = []

    async def run(self) -> Measured:
        """Run all phases. Raises BenchError, TraceError, AgentError,
        EtcdError.
        """
        plan = self._plan
        await self._settle("the first nodes")
        small = await self._measure(plan.first)
        growth = await self._grow(plan.nodes - 1)
        large = await self._measure(plan.nodes)
        store = await self._store()
        at_rest = await self._capture.count(_HANDSHAKES)
        before = await self._probe.usage()
        bursts = [await self._burst() for _ in range(plan.bursts)]
        after = await self._probe.usage()
        warm = await self._warm()
        cold = await self._cold()
        others = await self._capture.count(_OTHERS)
        if others.packets:
            said = await self._capture.show(_OTHERS)
            self._failures.append(f"{others.packets} packets to simulated nodes: {said}")
        handshakes = await self._capture.count(_HANDSHAKES)
        return Measured(
            small,
            growth,
            large,
            tuple(bursts),
            (before.rss_kib, after.rss_kib),
            cold,
            warm,
            store,
            (at_rest.packets, handshakes.packets),
            tuple(self._failures),
        )

    # The state of node and store.

    async def _compare(self) -> list[str]:
        """Return differences between the kernel's peers and etcd."""
        entries = await self._fleet.entries()
        dump = await self._node.agent.run(["wg", "show", allocs.OVERLAY_LINK, "dump"], check=False)
        if dump.status != 0:
            return [f"wg show: {dump.stderr.decode(errors='replace').strip()}"]
        wanted = oracle.expected({one.key: one.value for one in entries}, _NODE)
        return oracle.differences(wanted, oracle.parse_dump(dump.text))

    async def _settle(self, what: str) -> Trace:
        """Wait until the kernel agrees with etcd; return the events meanwhile.

        It does not compare while requests arrive: that would delay them.
        """
        begin = quiet = time.monotonic()
        seen = Trace()
        while True:
            await asyncio.sleep(_POLL_S)
            new = await self._probe.events()
            seen += new
            now = time.monotonic()
            if new.sends or _heavy(new):
                quiet = now
            if now - quiet < _QUIET_S:
                continue
            differences = await self._compare()
            if not differences:
                return seen
            if now - begin > _LIMIT_S:
                self._failures += [f"after {what}: {one}" for one in differences[:_TOLD]]
                say(f"NOT SO after {what}: {len(differences)} peers, {differences[0]}")
                return seen
            quiet = time.monotonic() - _QUIET_S / 2

    async def _until(self, happened: Callable[[Trace], object]) -> Trace:
        """Return the events until `happened` is true."""
        seen = Trace()
        async with asyncio.timeout(_CHANGE_S):
            while not happened(seen):
                await asyncio.sleep(_POLL_S)
                seen += await self._probe.events()
        return seen

    # Phases.

    async def _measure(self, nodes: int) -> Size:
        plan, probe = self._plan, self._probe
        say(f"{nodes} nodes: {plan.samples} changes, {plan.unrelated} that concern nobody")
        await probe.synchronise()
        idle = await self._idle()
        await self._one_change()  # the first of a kind does not count
        before, began = await self._cpu(), time.monotonic()
        changes = [await self._one_change() for _ in range(plan.samples)]
        change_cpu = await self._cpu() - before - idle.times(time.monotonic() - began)
        trace, unrelated_cpu = await self._unrelated(idle)
        if trace.settings:
            self._failures.append(
                f"at {nodes} nodes: {len(trace.settings)} messages to WireGuard for changes "
                "that concern nobody"
            )
        await self._settle(f"changes at {nodes} nodes")
        return Size(
            nodes,
            tuple(changes),
            change_cpu.times(1 / plan.samples),
            len(trace.settings),
            trace.received / plan.unrelated,
            unrelated_cpu,
            idle,
            probe.offset.error_s,
            await probe.usage(),
        )

    async def _cpu(self) -> Cpu:
        """Return the CPU time until now."""
        used = await self._probe.usage()
        return Cpu(used.cpu_s, _cpu_s(self._node.vm.pid))

    async def _idle(self) -> Cpu:
        """Return the idle CPU time per second."""
        before, began = await self._cpu(), time.monotonic()
        await asyncio.sleep(self._plan.idle_s)
        return (await self._cpu() - before).times(1 / (time.monotonic() - began))

    async def _one_change(self) -> Change:
        probe = self._probe
        await probe.events()
        node_id = self._random.choice(list(self._fleet.sims))
        write = await self._fleet.move(node_id)
        trace = await self._until(lambda seen: seen.settings)
        await asyncio.sleep(2 * _POLL_S)
        trace += await probe.events()
        done, first = trace.settings[-1].end_s, trace.settings[0].begin_s
        # Answers to keepalives may have arrived before.
        asked = probe.node_clock(write.asked_s) - probe.offset.error_s
        arrived = min(one.at_s for one in trace.arrivals if asked <= one.at_s <= first)
        return Change(
            done - probe.node_clock(write.asked_s),
            done - arrived,
            len(trace.settings),
            sum(send.bytes for send in trace.settings),
            sum(one.bytes for one in trace.arrivals if arrived <= one.at_s <= first),
        )

    async def _unrelated(self, idle: Cpu) -> tuple[Trace, Cpu]:
        """Return the events of all, and the CPU time of one."""
        fleet, probe, count = self._fleet, self._probe, self._plan.unrelated
        sims = list(fleet.sims)
        kinds: list[Callable[[], Awaitable[Write]]] = [
            lambda: fleet.publish_again(self._random.choice(sims)),
            lambda: fleet.ask_for_key(self._random.choice(sims)),
            fleet.free_unrelated,
        ]
        await probe.events()
        before, began = await self._cpu(), time.monotonic()
        for number in range(count):
            await kinds[number % len(kinds)]()
            await asyncio.sleep(_SPACING_S)
        cpu = await self._cpu() - before - idle.times(time.monotonic() - began)
        return await probe.events(), cpu.times(1 / count)

    async def _grow(self, sims: int) -> Growth:
        say(f"growing to {sims + 1} nodes")
        probe, there = self._probe, len(self._fleet.sims)
        await probe.synchronise()
        await probe.events()
        before = await probe.usage()
        write = await self._fleet.grow(sims)
        trace = await self._settle("growth")
        after = await probe.usage()
        return Growth(
            sims - there,
            write.answered_s - write.asked_s,
            trace.done_s - probe.node_clock(write.asked_s),
            len(trace.wireguard),
            sum(send.bytes for send in trace.wireguard),
            after.cpu_s - before.cpu_s,
        )

    async def _burst(self) -> Burst:
        """Make changes at the planned rate; return the delay after the last."""
        plan, probe = self._plan, self._probe
        say(f"churn: {plan.rate:g} changes a second for {plan.burst_s:g} s")
        await probe.synchronise()
        await probe.events()
        before = await probe.usage()
        turns = int(plan.rate * plan.burst_s)
        begin, writes = time.monotonic(), 0
        churning = list(self._fleet.sims)[-plan.churn :]
        for turn in range(turns):
            await asyncio.sleep(max(0.0, begin + turn / plan.rate - time.monotonic()))
            write, count = await self._any_change(churning)
            writes += count
        trace = await self._settle("churn")
        after = await probe.usage()
        return Burst(
            writes,
            trace.done_s - probe.node_clock(write.answered_s),
            len(trace.wireguard),
            after.cpu_s - before.cpu_s,
        )

    async def _any_change(self, churning: list[str]) -> tuple[Write, int]:
        """Make one node's change; return it and its number of transactions."""
        fleet = self._fleet
        kind = self._random.randrange(4)
        if len(churning) < self._plan.churn:
            write = await fleet.join()
            churning.append(next(reversed(fleet.sims)))
            return write, 2
        node_id = self._random.choice(churning)
        if kind == 0:
            churning.remove(node_id)
            return await fleet.leave(node_id), 1
        if kind == 1:
            return await fleet.rotate(node_id), 2
        return await fleet.move(node_id), 1

    async def _store(self) -> Store:
        say("etcd: what it holds")
        entries = await self._fleet.entries()
        samples = [await asyncio.to_thread(_read, entries) for _ in range(5)]
        begin, cpu = time.monotonic(), _etcd_cpu_s()
        await asyncio.sleep(self._plan.idle_s)
        kept = (time.monotonic() - begin) * self._fleet.keepalives
        used = _etcd_cpu_s() - cpu
        return Store(
            len(entries),
            sum(len(one.key) + len(one.value) for one in entries),
            await self._database_bytes(),
            self._fleet.keepalives,
            used / kept,
            statistics.median(samples),
        )

    async def _database_bytes(self) -> int:
        # The default format has "6.5 MB": thousands, rounded.
        text = await self._etcd.etcdctl("endpoint", "status", "--write-out", "fields")
        fields = dict(line.split(" : ", 1) for line in text.splitlines() if " : " in line)
        return int(fields['"DBSizeInUse"'] if '"DBSizeInUse"' in fields else fields['"DBSize"'])

    async def _restart(self, *commands: str) -> Trace:
        """Run the commands, which end node core; wait for its successor."""
        probe = self._probe
        before = await probe.usage()
        await probe.events()
        for command in commands:
            await self._node.shell(command)
        async with asyncio.timeout(_CHANGE_S):
            while True:
                if (await probe.usage()).process != before.process:
                    break
                await asyncio.sleep(_POLL_S)
        # After reading the whole list, the overlay lists the kernel's peers.
        trace = await self._until(_asks_after_list)
        return trace + await self._settle("a restart")

    async def _warm(self) -> Warm:
        say("warm: node core is killed")
        process = self._probe.process
        trace = await self._restart(f"kill -9 {process}")
        usage = await self._probe.usage()
        sends = trace.wireguard
        arrivals = [one.at_s for one in trace.arrivals if one.at_s >= usage.begun_s]
        last = max(send.end_s for send in trace.sends)
        end = listed(trace, arrivals[0], last)
        return Warm(
            arrivals[0] - usage.begun_s,
            end - arrivals[0],
            last - end,
            len([send for send in sends if send.begin_s >= usage.begun_s]),
            len(trace.with_peers),
            usage.cpu_s,
        )

    async def _cold(self) -> Started:
        say("cold: node core starts without a link")
        trace = await self._restart(
            "sv -w 30 force-stop /run/sv/node-core",
            f"ip link del {allocs.OVERLAY_LINK}",
            "sv start /run/sv/node-core",
        )
        usage = await self._probe.usage()
        return Started(start(trace, usage.begun_s), usage.cpu_s, usage.rss_kib)


def _heavy(trace: Trace) -> bool:
    """Return whether etcd sent more than keepalives and handshakes."""
    return trace.received > _HEAVY_BYTES


def _asks_after_list(trace: Trace) -> bool:
    received = 0
    for one in trace.arrivals:
        received += one.bytes
        if received > _HEAVY_BYTES:
            return any(send.begin_s > one.at_s for send in trace.wireguard)
    return False


def _read(entries: tuple[Entry, ...]) -> float:
    """Return the seconds that node core's code takes to make peers of them."""
    begin = time.monotonic()
    Directory(_NODE).replace(entries)
    return time.monotonic() - begin


def _cpu_s(process: int) -> float:
    """Return a process's CPU time (linux/posix-timers.h: CPUCLOCK_SCHED)."""
    return time.clock_gettime((~process << 3) | 2)


def _etcd_cpu_s() -> float:
    """Return the CPU time of etcd, our child, with all its threads."""
    for children in Path("/proc/self/task").glob("*/children"):
        for child in children.read_text().split():
            if Path(f"/proc/{child}/comm").read_text().strip() == "etcd":
                return _cpu_s(int(child))
    raise BenchError(f"process {os.getpid()} has no child etcd")


def _config(endpoint: str, node: str) -> str:
    return (
        "network { uplink { dhcp4 {} } }\n"
        f'cluster {{ node_id: "{_NODE}" etcd_endpoint: "{endpoint}" underlay_address: "{node}" }}\n'
    )


@contextlib.asynccontextmanager
async def experiment(plan: Plan, directory: Path) -> AsyncIterator[tuple[Node, Experiment]]:
    """Run the lab, etcd, the first simulated nodes and the node."""
    async with contextlib.AsyncExitStack() as stack:
        enter = stack.enter_async_context
        lab = await enter(Lab(directory))
        capture = await enter(Capture(directory))
        etcd = await enter(Etcd(directory / "etcd", (str(ROUTER_IPV4.ip),)))
        operator = etcd.client
        files = Files(str(operator.ca), str(operator.cert), str(operator.key))
        fleet = await enter(Fleet(etcd.endpoint, files))
        await fleet.init()
        await fleet.grow(plan.first - 1)
        own = etcd.authority.client(_NODE)
        pki = {
            name: path.read_bytes()
            for name, path in (("ca", own.ca), ("cert", own.cert), ("key", own.key))
        }
        port = lab.ports[0]
        config = _config(etcd.endpoint, str(port.ipv4))
        node = Node(
            find_images(), lab, directory, config, say, name=_NODE, pki=pki, memory_mib=_MEMORY_MIB
        )
        await enter(node)
        await node.wait_ready(_BOOT_S)
        probe = await enter(probing(node.agent, int(etcd.endpoint.rpartition(":")[2])))
        yield node, Experiment(plan, node, probe, fleet, etcd, capture)
