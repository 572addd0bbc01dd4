# SPDX-License-Identifier: Apache-2.0
"""Plans and verdicts of the reachability in a cluster; pure.

The checks go from every pod to every pod of other nodes and to the outside, and
from every node to the pods of the others. A pod gets a ping, for the latency,
and serves a body of many packets: its content identifies the pod, and large
packets show a wrong MTU.
"""

import hashlib
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from metropolis.test.launch import checks
from metropolis.test.launch.checks import Check, Plan
from metropolis.test.launch.cri import Pod

OUTSIDE = "outside"
BODY_BYTES = 100_000
_PINGS = 3
# Seconds for an answer to a ping.
_WAIT_S = 5
# How many digits of the hash are compared.
_SUM_DIGITS = 16


@dataclass(frozen=True)
class Place:
    """A node, its own addresses and the pod on it."""

    node: str
    addresses: tuple[IPv4Address | IPv6Address, ...]
    pod: Pod


def _measure(address: IPv4Address | IPv6Address, size: int) -> tuple[str, ...]:
    """Return a command: "MIN/AVG BYTES SHA256" of a pod's pings and body."""
    get = shlex.join(checks.fetch(address, checks.PORT, str(size)))
    ping = f"ping -{address.version} -c {_PINGS} -i 0.1 -W {_WAIT_S} {address}"
    lines = (
        f"said=$({ping} 2>&1) || {{ echo no answer to ping: ${{said##*statistics ---}}; exit 1; }}",
        # round-trip min/avg/max = 0.1/0.2/0.3 ms
        "ms=${said##* = }",
        "file=$(mktemp)",
        f"{get} >$file",
        "sum=$(sha256sum <$file)",
        f"printf '%s %s %.{_SUM_DIGITS}s' ${{ms%/*}} $(wc -c <$file) \"$sum\"",
        "rm $file",
    )
    return ("sh", "-c", "\n".join(lines))


def _expect(name: str, size: int) -> str:
    return f"{size} {hashlib.sha256(checks.body(name, size)).hexdigest()[:_SUM_DIGITS]}"


def plan(
    places: Sequence[Place],
    outside: Sequence[IPv4Address | IPv6Address],
    outside_port: int,
    size: int = BODY_BYTES,
) -> list[Plan]:
    """Return the checks, by place: those of its pod, then its own.

    size: bytes of the body, one that the pods serve. A plan's pod is the source
    of the check, and may be a node.
    """
    plans = []
    for place in places:
        others = [other.pod for other in places if other is not place]
        for source in (place.pod.name, place.node):
            plans += [
                Plan(source, pod.name, ip.version, ip, _measure(ip, size), _expect(pod.name, size))
                for pod in others
                for ip in pod.ips
            ]
            if source == place.pod.name:
                plans += [
                    Plan(
                        source, OUTSIDE, ip.version, ip, checks.fetch(ip, outside_port, ""),
                        next((str(a) for a in place.addresses if a.version == ip.version), "-"),
                    )
                    for ip in outside
                ]  # fmt: skip
    return plans


def judge(plans: Sequence[Plan], output: str) -> list[Check]:
    """Return the outcomes, from the output of checks.script()."""
    found = []
    for planned, status, text in checks.answers(plans, output):
        ms: float | None = None
        measured = re.fullmatch(r"(.*?)([\d.]+)/([\d.]+) (\d+ [0-9a-f]+)", text)
        if planned.target == OUTSIDE:
            ok = status == "0" and text == planned.expect
            detail = f"{planned.address} saw {text}" + ("" if ok else f", not {planned.expect}")
        elif status != "0" or measured is None:
            ok, detail = False, f"{planned.address}: {text or 'failed'} (status {status or '-'})"
        else:
            said, least, average, got = measured.groups()
            ok = got == planned.expect
            ms = _number(least)
            times = f"{least}/{average} ms (least, mean of {_PINGS} pings)"
            size = got.partition(" ")[0]
            detail = f"{planned.address}: {times}, {size} bytes"
            if not ok:
                want = str(planned.expect).partition(" ")[0]
                what = f"{want} wanted" if size != want else "not the right ones"
                detail += f", {what}" + (f": {said.strip()}" if said.strip() else "")
        found.append(
            Check(planned.name, ok, detail, planned.pod, planned.target, planned.family, ms)
        )
    return found


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
