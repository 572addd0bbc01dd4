# SPDX-License-Identifier: Apache-2.0
"""The output of the results. Pure."""

import textwrap
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

from metropolis.test.bench.common.stats import number, percentile
from metropolis.test.bench.scale.model import Burst, Change, Measured, Plan, Size

COLD_S: Final = 10.0
CHANGE_S: Final = 0.05
UNRELATED_RATIO: Final = 1.5
"""Tolerance of CPU time, which repeats to some ten percent."""

_WIDTH: Final = 100
_NAME: Final = 58
_COLUMN: Final = 13


@dataclass(frozen=True, slots=True)
class Target:
    """A wanted value and the measured one."""

    name: str
    measured: str
    met: bool


def _p(changes: tuple[Change, ...], field: str, percent: float = 50) -> float:
    return percentile([getattr(change, field) for change in changes], percent)


def targets(found: Measured) -> list[Target]:
    """Return the targets of the benchmark."""
    cold = found.cold.start.total_s
    change = _p(found.large.changes, "host_s")
    ratio = _ratio(found.large.unrelated_cpu_s.machine, found.small.unrelated_cpu_s.machine)
    messages = found.small.unrelated_messages + found.large.unrelated_messages
    return [
        Target(
            f"{found.large.nodes - 1:,} peers programmed from cold in under {COLD_S:g} s",
            f"{cold:.1f} s",
            cold < COLD_S,
        ),
        Target(
            f"one change applied in under {1000 * CHANGE_S:g} ms",
            f"{1000 * change:.0f} ms",
            change < CHANGE_S,
        ),
        Target(
            "an unrelated change costs the same in any cluster",
            f"{messages} messages, CPU {ratio:.2f} times that in the small one",
            not messages and ratio < UNRELATED_RATIO,
        ),
    ]


def _ratio(over: float, under: float) -> float:
    return over / under if under > 0 else 1.0


def to_json(machine: Mapping[str, Any], plan: Plan, found: Measured) -> dict[str, Any]:
    """Return the output of --json."""
    return {
        "machine": dict(machine),
        "plan": asdict(plan),
        "measured": asdict(found),
        "targets": [asdict(target) for target in targets(found)],
    }


def table(machine: Mapping[str, Any], plan: Plan, found: Measured) -> str:
    """Return the output without --json."""
    on = ", ".join(f"{name} {value}" for name, value in machine.items())
    lines = [*textwrap.wrap(on, _WIDTH)]
    if machine.get("accel") != "kvm":
        lines.append(
            "The node's CPU is emulated: its times are some ten times a real one's. "
            "Counts and bytes are exact."
        )
    sizes = (found.small, found.large)
    lines += ["", _row("", *(f"{size.nodes:,} nodes" for size in sizes))]
    lines += _sizes(sizes)
    lines += ["", *_growth(found), "", *_starts(found), "", *_churn(plan, found), ""]
    lines += [*_store(found), "", *_checks(found), ""]
    for target in targets(found):
        said = "met" if target.met else "NOT met"
        lines.append(f"target: {target.name}: {said} ({target.measured})")
    return "\n".join(lines)


def _row(name: str, *cells: str) -> str:
    return f"{name:{_NAME}}{''.join(f'{cell:>{_COLUMN}}' for cell in cells)}".rstrip()


def _ms(seconds: float) -> str:
    return number(1000 * seconds)


def _sizes(sizes: tuple[Size, ...]) -> list[str]:
    def row(name: str, tell: Any) -> str:
        return _row(name, *(tell(size) for size in sizes))

    def change(field: str, percent: float = 50) -> Any:
        return lambda size: _ms(_p(size.changes, field, percent))

    def count(field: str) -> Any:
        return lambda size: number(_p(size.changes, field))

    return [
        row("a change: host asks etcd -> kernel has it, p50 ms", change("host_s")),
        row("    p95 ms", change("host_s", 95)),
        row("    known to, ± ms", lambda size: _ms(size.offset_error_s)),
        row("  event at the node -> kernel has it, p50 ms", change("node_s")),
        row("    p95 ms", change("node_s", 95)),
        row("  CPU: node core, by the node, ms", lambda s: _ms(s.change_cpu_s.node_core)),
        row("       the machine, by the host, ms", lambda s: _ms(s.change_cpu_s.machine)),
        row("  netlink messages to WireGuard", count("messages")),
        row("    their bytes", count("message_bytes")),
        row("  bytes from etcd", count("etcd_bytes")),
        row(
            "an unrelated change: netlink messages to WireGuard",
            lambda s: number(s.unrelated_messages),
        ),
        row("  CPU: node core, by the node, ms", lambda s: _ms(s.unrelated_cpu_s.node_core)),
        row("       the machine, by the host, ms", lambda s: _ms(s.unrelated_cpu_s.machine)),
        row("  bytes from etcd", lambda size: number(size.unrelated_etcd_bytes)),
        row("idle, a second: node core's CPU, ms", lambda s: _ms(s.idle_cpu_s.node_core)),
        row("                the machine's, ms", lambda s: _ms(s.idle_cpu_s.machine)),
        row("node core's memory (RSS), MiB", lambda size: number(size.usage.rss_kib / 1024)),
        row("  threads", lambda size: str(size.usage.threads)),
        row("WireGuard's peers and prefixes, KiB", lambda size: number(size.usage.slab_kib)),
    ]


def _growth(found: Measured) -> list[str]:
    growth = found.growth
    return [
        f"growth by {growth.added:,} nodes at once",
        _row("  first written -> all are peers, s", number(growth.done_s)),
        _row("    of that, the writes, s", number(growth.written_s)),
        _row("  node core's CPU, s", number(growth.cpu_s)),
        _row("  netlink messages", number(growth.messages)),
        _row("    their bytes", number(growth.message_bytes)),
    ]


def _starts(found: Measured) -> list[str]:
    cold, warm = found.cold.start, found.warm
    return [
        _row("node core starts", "cold", "warm"),
        _row(
            "  process -> first byte from etcd, s", number(cold.process_s), number(warm.process_s)
        ),
        _row(
            "  connected, listed: first byte -> last, s",
            number(cold.listed_s),
            number(warm.listed_s),
        ),
        _row("  decoded, validated, compared, s", number(cold.read_s), number(warm.done_s)),
        _row("  first request with peers -> the last done, s", number(cold.programmed_s)),
        _row("    of that in the kernel, s", number(cold.kernel_s)),
        _row("  from the list's first byte to the last peer, s", number(cold.total_s)),
        _row("  requests with peers", number(cold.messages), number(warm.with_peers)),
        _row("  node core's CPU since it began, s", number(found.cold.cpu_s), number(warm.cpu_s)),
    ]


def _churn(plan: Plan, found: Measured) -> list[str]:
    bursts = found.bursts
    before, after = found.churn_rss_kib

    def cpu(burst: Burst) -> float:
        return burst.cpu_s / burst.writes

    return [
        f"churn of {plan.churn} nodes, {plan.rate:g} changes a second, {len(bursts)} times "
        f"{plan.burst_s:g} s",
        _row("  transactions", number(sum(burst.writes for burst in bursts))),
        _row("  last answered -> kernel has all, p50 ms", _ms(_of(bursts, "lag_s", 50))),
        _row("    longest, ms", _ms(_of(bursts, "lag_s", 100))),
        _row("  netlink messages", number(sum(burst.messages for burst in bursts))),
        _row("  node core's CPU for a transaction, ms", _ms(percentile([*map(cpu, bursts)], 50))),
        _row("  memory before and after, MiB", number(before / 1024), number(after / 1024)),
    ]


def _of(bursts: tuple[Burst, ...], field: str, percent: float) -> float:
    return percentile([getattr(burst, field) for burst in bursts], percent)


def _store(found: Measured) -> list[str]:
    store = found.store
    return [
        f"etcd with {found.large.nodes:,} nodes",
        _row("  keys", number(store.keys)),
        _row("  bytes of keys and values", number(store.bytes)),
        _row("  database in use, bytes", number(store.database_bytes)),
        _row("  keepalives of leases a second", number(store.keepalives)),
        _row("    etcd's CPU for one, on the host, ms", _ms(store.keepalive_cpu_s)),
        _row("node core's code makes peers of all of it, on the host, ms", _ms(store.directory_s)),
    ]


def _checks(found: Measured) -> list[str]:
    before, after = found.handshakes
    lines = [
        f"packets to simulated nodes: handshakes only, {before:,} before the churn, {after:,} in "
        "all; nobody answers"
    ]
    if found.failures:
        return [*lines, *(f"FAILED: {one}" for one in found.failures)]
    return [*lines, "after every phase the kernel's peers were what etcd says"]
