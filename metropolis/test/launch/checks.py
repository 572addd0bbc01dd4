# SPDX-License-Identifier: Apache-2.0
"""Check what a pod can reach. Plans and verdicts are pure; run() runs them.

Each pod serves its own name by HTTP, so that an answer identifies the pod, and
the outside host answers with the source address that it saw. All checks of one
pod are one command in it, since starting a process in a container is slow.
"""

import asyncio
import shlex
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from metropolis.test.launch.cri import Cri, CriError, Pod

PORT = 8080
# Seconds for one answer; enough for an emulated machine that is busy.
_WAIT_S = 15
# Pods that ask at once.
_AT_ONCE = 4


def pod_command(name: str, bodies: Sequence[int] = ()) -> list[str]:
    """Return a pod's command: a web server that serves the pod's name.

    bodies: sizes in bytes; each is served under its size, see body().
    """
    quoted = shlex.quote(name)
    lines = ["mkdir -p /tmp/www", f"echo {quoted} >/tmp/www/name"]
    lines += [f"yes {quoted} | head -c {size} >/tmp/www/{size}" for size in bodies]
    return ["sh", "-c", " && ".join([*lines, f"exec httpd -f -p {PORT} -h /tmp/www"])]


def body(name: str, size: int) -> bytes:
    """Return the `size` bytes that a pod serves: its name, repeated."""
    line = f"{name}\n".encode()
    return (line * (size // len(line) + 1))[:size]


@dataclass(frozen=True)
class Plan:
    """One check: the pod, the command, and the expected answer.

    target: the column of the table: pod, node or outside. expect: the whole
    output, or None when only the status counts.
    """

    pod: str
    target: str
    family: int
    address: IPv4Address | IPv6Address
    command: tuple[str, ...]
    expect: str | None

    @property
    def name(self) -> str:
        """Return the name of the check in reports."""
        return f"{self.pod}→{self.target} IPv{self.family}"


@dataclass(frozen=True)
class Check:
    """A check's outcome. detail: the answer, or its fault. ms: the round-trip
    time, if it was measured.
    """

    name: str
    ok: bool
    detail: str
    pod: str = ""
    target: str = ""
    family: int = 0
    ms: float | None = None


def fetch(address: IPv4Address | IPv6Address, port: int, path: str) -> tuple[str, ...]:
    """Return a command that fetches and prints a path."""
    host = f"[{address}]" if isinstance(address, IPv6Address) else str(address)
    return ("wget", "-q", "-O", "-", "-T", str(_WAIT_S), f"http://{host}:{port}/{path}")


def plan(
    pods: Sequence[Pod],
    node: Sequence[IPv4Address | IPv6Address],
    outside: Sequence[IPv4Address | IPv6Address],
    outside_port: int,
    families: Collection[int] = (4, 6),
) -> list[Plan]:
    """Return the checks: each pod to the next one, to the node, to the outside.

    node: its addresses, which the outside has to see as source. families: the
    versions of IP that pods should have.
    """
    node = [ip for ip in node if ip.version in families]
    outside = [ip for ip in outside if ip.version in families]
    plans = []
    for index, pod in enumerate(pods):
        other = pods[(index + 1) % len(pods)]
        for ip in other.ips:
            plans.append(Plan(pod.name, "pod", ip.version, ip, fetch(ip, PORT, "name"), other.name))
        for ip in node:
            ping = ("ping", f"-{ip.version}", "-c", "1", "-W", str(_WAIT_S), str(ip))
            plans.append(Plan(pod.name, "node", ip.version, ip, ping, None))
        for ip in outside:
            source = next((str(own) for own in node if own.version == ip.version), None)
            asked = fetch(ip, outside_port, "")
            plans.append(Plan(pod.name, "outside", ip.version, ip, asked, source or "nobody"))
    return plans


def script(plans: Sequence[Plan], at_once: bool = True) -> str:
    """Return a shell script that runs all plans at once, or in turn.

    It prints a line for each: its index, its status, its output on one line.
    """
    lines = [
        'try() { n=$1; shift; out=$("$@" 2>&1); s=$?; '
        'printf \'%s %s %s\\n\' "$n" "$s" "$(echo "$out" | tr \'\\n\\r\' \'  \')"; }'
    ]
    end = " &" if at_once else ""
    lines += [f"try {i} {shlex.join(p.command)}{end}" for i, p in enumerate(plans)]
    return "\n".join([*lines, "wait"])


def answers(plans: Sequence[Plan], output: str) -> list[tuple[Plan, str, str]]:
    """Return each plan with its status and output, from the output of script();
    status "": it printed nothing.
    """
    told: dict[int, tuple[str, str]] = {}
    for line in output.splitlines():
        index, _, rest = line.partition(" ")
        status, _, text = rest.partition(" ")
        if index.isdecimal():
            told[int(index)] = (status, text.strip())
    nothing = ("", "no answer from the pod")
    return [(planned, *told.get(number, nothing)) for number, planned in enumerate(plans)]


def judge(plans: Sequence[Plan], output: str) -> list[Check]:
    """Return the outcomes, from the output of script()."""
    checks = []
    for planned, status, text in answers(plans, output):
        ok = status == "0" and planned.expect in (None, text)
        if ok and planned.target == "outside":
            detail = f"{planned.address} saw {text}"
        elif ok:
            detail = f"{planned.address} answered" + (f": {text}" if planned.expect else "")
        elif status == "0":
            detail = f"{planned.address}: got {text!r}, want {planned.expect!r}"
        else:
            detail = f"{planned.address}: {text or 'failed'} (status {status or '-'})"
        checks.append(Check(planned.name, ok, detail, planned.pod, planned.target, planned.family))
    return checks


async def run(cri: Cri, pods: Sequence[Pod], plans: Sequence[Plan]) -> list[Check]:
    """Run all plans, of a few pods at once."""
    turns = asyncio.Semaphore(_AT_ONCE)

    async def one(pod: Pod) -> list[Check]:
        mine = [planned for planned in plans if planned.pod == pod.name]
        try:
            async with turns:
                done = await cri.exec(pod.container, ["sh", "-c", script(mine)], 4.0 * _WAIT_S)
        except CriError as error:
            return [Check(p.name, False, str(error), p.pod, p.target, p.family) for p in mine]
        return judge(mine, done.stdout)

    return [check for checks in await asyncio.gather(*map(one, pods)) for check in checks]
