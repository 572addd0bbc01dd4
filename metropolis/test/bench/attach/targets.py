# SPDX-License-Identifier: Apache-2.0
"""The promised targets, and whether they are met. Pure.

The targets are ratios, so that they mean the same on any machine; a promised
rate is scaled by the floor, which was 0.75 ms when the rate was promised.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from metropolis.test.bench.attach.results import OURS, Results

_ADD = "ADD alone"
_DEL = "DEL alone"
_FLOOR_MS = 0.75


@dataclass(frozen=True, slots=True)
class Target:
    """met None: not measured in this run."""

    what: str
    wanted: str
    found: str
    met: bool | None


def targets(results: Results, peers: Sequence[str]) -> list[Target]:
    """Return all targets. peers: candidates for the best peer in rates."""
    floor, floor4 = (_ADD, "floor dual"), (_ADD, "floor ipv4")
    ours = (_ADD, OURS)
    found = [
        _at_most(results, "inner ADD / floor, dual stack", (_ADD, "inner dual"), floor, 1.3),
        _at_most(results, "inner ADD / floor, IPv4", (_ADD, "inner ipv4"), floor4, 1.3),
        _at_most(results, "gRPC ADD / floor, dual stack", ours, floor, 2.0, aim=1.8),
    ]
    for peer, times in (
        ("ptp", 7),
        ("ptp ipMasq", 16),
        ("netavark NAT", 18),
        ("bridge ipMasq portmap", 45),
    ):
        what = f"{peer} ADD / gRPC ADD"
        found.append(_at_least(results, what, (_ADD, peer), ours, times))
    shim = (_ADD, "shim dual")
    found.append(_at_least(results, "ptp ipMasq ADD / shim ADD", (_ADD, "ptp ipMasq"), shim, 10))
    found += _ports(results)
    found += _rates(results, peers)
    found += _detach(results)
    found += _growth(results)
    syscalls = results.value("syscalls of one ADD", "inner dual")
    found.append(_limit("system calls of one inner ADD, dual stack", syscalls, 16, ""))
    memory = results.value("RSS with 2000 attached", OURS)
    found.append(_limit("RSS of the service with 2,000 attached", memory, 80, " MB"))
    return found


type _Key = tuple[str, str]


def _at_most(
    results: Results, what: str, over: _Key, under: _Key, limit: float, aim: float | None = None
) -> Target:
    ratio = results.ratio(over, under)
    wanted = f"<= {limit:g}x" + (f", aim {aim:g}x" if aim else "")
    if ratio is None:
        return Target(what, wanted, "not measured", None)
    return Target(what, wanted, f"{ratio:.2f}x", ratio <= limit)


def _at_least(results: Results, what: str, over: _Key, under: _Key, limit: float) -> Target:
    ratio = results.ratio(over, under)
    if ratio is None:
        return Target(what, f">= {limit:g}x", "not measured", None)
    return Target(what, f">= {limit:g}x", f"{ratio:.1f}x", ratio >= limit)


def _limit(what: str, value: float | None, limit: float, unit: str) -> Target:
    wanted = f"<= {limit:g}{unit}"
    if value is None:
        return Target(what, wanted, "not measured", None)
    return Target(what, wanted, f"{value:.1f}{unit}", value <= limit)


def _detach(results: Results) -> list[Target]:
    alone = results.value(_DEL, OURS)
    found = [_limit("gRPC DEL, one at a time", alone, 1.0, " ms")]
    over, under = (("DEL with 2000 attached", OURS), ("DEL with 0 attached", OURS))
    what = "gRPC DEL with 2,000 attached / with 0"
    found.append(_at_most(results, what, over, under, 1.5))
    for peer, times in (("ptp ipMasq", 45), ("bridge ipMasq portmap", 50)):
        found.append(_pair(results, peer, OURS, times))
    return found


def _ports(results: Results) -> list[Target]:
    chain, ours = "bridge ipMasq portmap 1 port", "grpc dual 1 port"
    return [
        _at_least(results, f"{chain} ADD / gRPC's", (_ADD, chain), (_ADD, ours), 45),
        _pair(results, chain, ours, 85),
        _added(results, "one TCP port added to an inner ADD", "inner dual 1 port", 0.1),
        _added(results, "ten TCP ports added to an inner ADD", "inner dual 10 ports", 0.2),
        _at_most(
            results,
            "gRPC ADD with a port: beside 5,000 / beside none",
            (_ADD, f"{ours} by 5000"),
            (_ADD, ours),
            1.1,
        ),
    ]


def _added(results: Results, what: str, subject: str, limit: float) -> Target:
    wanted = f"<= {limit:g} ms"
    over, under = results.value(_ADD, subject), results.value(_ADD, "inner dual")
    if over is None or under is None:
        return Target(what, wanted, "not measured", None)
    return Target(what, wanted, f"{over - under:.2f} ms", over - under <= limit)


def _pair(results: Results, peer: str, ours: str, times: float) -> Target:
    """A pair is the ADD and the DEL of one workload."""
    values = [results.value(op, one) for one in (peer, ours) for op in (_ADD, _DEL)]
    what, wanted = f"{peer} ADD + DEL / gRPC's", f">= {times:g}x"
    if None in values:
        return Target(what, wanted, "not measured", None)
    its_add, its_del, add, del_ = (value or 0.0 for value in values)
    ratio = (its_add + its_del) / (add + del_)
    return Target(what, wanted, f"{ratio:.1f}x", ratio >= times)


def _rates(results: Results, peers: Sequence[str]) -> list[Target]:
    rate, floor = results.value("ADD at 8", OURS), results.value(_ADD, "floor dual")
    what = "gRPC ADD at 8 at once; 900/s at a floor of 0.75 ms"
    if rate is None or floor is None:
        return [Target(what, ">= 900/s, scaled", "not measured", None)]
    limit = 900 * _FLOOR_MS / floor
    wanted = f">= {limit:.0f}/s"
    found = [Target(what, wanted, f"{rate:.0f}/s, floor {floor:.2f} ms", rate >= limit)]
    rates = {peer: value for peer in peers if (value := results.value("ADD at 8", peer))}
    if rates:
        best = max(rates, key=lambda peer: rates[peer])
        over, under = ("ADD at 8", OURS), ("ADD at 8", best)
        found.append(_at_least(results, f"gRPC ADD at 8 / {best} at 8", over, under, 5))
    return found


def _growth(results: Results) -> list[Target]:
    found = []
    growths = {}
    for subject in (OURS, "floor dual"):
        over, under = (("ADD with 2000 attached", subject), ("ADD with 0 attached", subject))
        growths[subject] = results.ratio(over, under)
    ours, floor = growths[OURS], growths["floor dual"]
    what = "gRPC ADD with 2,000 attached / with 0"
    if ours is None:
        return [Target(what, "<= 1.5x", "not measured", None)]
    found.append(Target(what, "<= 1.5x", f"{ours:.2f}x", ours <= 1.5))
    if floor is not None:
        text = f"{ours:.2f}x, floor {floor:.2f}x"
        found.append(Target(what, "<= the floor's growth", text, ours <= floor))
    return found


def render(found: Sequence[Target]) -> str:
    """Return a table."""
    words = {True: "met", False: "NOT MET", None: "-"}
    lines = ["", f"{'Targets':54}{'wanted':>24}{'found':>28}"]
    for one in found:
        lines.append(f"  {one.what:52}{one.wanted:>24}{one.found:>28}  {words[one.met]}")
    return "\n".join(lines)
