# SPDX-License-Identifier: Apache-2.0
"""Run the network service in namespaces of its own, attach two workloads, let
them ping each other, show what is there, detach them. No VM, no privileges.

    ./bazelw run //metropolis:try [-- [--cni] [--stay] [--json]]
"""

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from ipaddress import ip_address
from types import FrameType
from typing import Any, Final, NoReturn, TextIO

from metropolis.test.world.namespaces import WorldError, enter_namespaces

WORKLOADS: Final = ("web-1", "web-2")
_GONE_S: Final = 5.0
_EPILOG: Final = """\
exit status: 0 all was as it should be; 1 something was not; 2 wrong arguments, or
nothing could be tried; 130 after Ctrl-C. In all cases nothing remains.
"""
# What is shown, as a person would type it in the shell of --stay.
_LOOKS: Final = (
    "metroctl workload list",
    "metroctl workload status",
    "ip -brief address",
    "ip route",
    "ip -6 route",
    "ip -n web-1 -brief address",
    "ip -n web-1 route",
    "nft list chain inet metropolis masquerade_workload",
)


@dataclass(frozen=True)
class Ping:
    """Echo requests between two workloads. rtt_ms: None without an answer."""

    source: str
    target: str
    rtt_ms: float | None


@dataclass
class Report:
    """The results. wrong: texts; empty when all is as it should be."""

    by: str
    serving_s: float = 0.0
    workloads: list[dict[str, Any]] = field(default_factory=list)
    pings: list[Ping] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def fields(self) -> dict[str, Any]:
        """Return what --json prints."""
        return {"ok": not self.wrong} | asdict(self)


class Steps:
    """The steps, and their words. out: where the words go."""

    def __init__(self, report: Report, out: TextIO) -> None:
        self._report = report
        self._out = out
        self._number = 0

    def say(self, text: str) -> None:
        """Print a part of a step."""
        print("   " + text.replace("\n", "\n   "), file=self._out, flush=True)

    def begin(self, text: str) -> None:
        """Print the heading of a step."""
        self._number += 1
        print(f"{self._number}. {text}", file=self._out, flush=True)

    def wrong(self, text: str) -> None:
        """Print and remember something that is not as it should be."""
        self._report.wrong.append(text)
        self.say(f"WRONG: {text}")

    def ping(self, source: str, target: str) -> None:
        """Send three echo requests from a workload; the best time counts."""
        from metropolis.test.tryout import place

        command = f"ip netns exec {source} ping -c 3 -i 0.05 -W 5 {target}"
        done = place.run(command, ok=False)
        times = [float(found) for found in re.findall(r"time=([\d.]+) ms", done.stdout)]
        self._report.pings.append(Ping(source, target, min(times, default=None)))
        if done.returncode:
            self.wrong(f"{command}: {(done.stderr or done.stdout).strip()}")
        else:
            self.say(f"{command:58}  {min(times):.3f} ms")


def work(given: argparse.Namespace, report: Report, out: TextIO) -> None:
    """Do all the steps, in the new namespaces. Raises TryError."""
    # After the namespaces: gRPC makes threads, and unshare(2) allows none.
    from metropolis.test.tryout import place
    from metropolis.test.tryout.attach import ByShim, Caller, OverGrpc

    steps = Steps(report, out)
    begun = time.monotonic()
    steps.begin("node core, in new user, mount and network namespaces")
    place.furnish()
    with place.node_core():
        report.serving_s = round(time.monotonic() - begun, 2)
        steps.say(f"serves after {report.serving_s:.1f} s, with {' and '.join(place.PREFIXES)}")

        caller: Caller = (ByShim if given.cni else OverGrpc)(steps.say)
        steps.begin(f"two workloads, attached by {'the CNI shim' if given.cni else 'gRPC'}")
        spaces = {name: place.add_namespace(name) for name in WORKLOADS}
        attached = [caller.attach(name, path) for name, path in spaces.items()]
        for one in attached:
            steps.say(f"{one.workload}: {', '.join(one.addresses)} by {one.link}, {one.ms:.1f} ms")
            row = {"workload": one.workload, "addresses": one.addresses, "link": one.link}
            report.workloads.append(row | {"attach_ms": round(one.ms, 2)})

        steps.begin("pings between them, in both families")
        for source, target in ((attached[0], attached[1]), (attached[1], attached[0])):
            for address in sorted(target.addresses, key=lambda text: ip_address(text).version):
                steps.ping(source.workload, address)

        steps.begin("what is there")
        for look in _LOOKS:
            steps.say(f"$ {look}\n{place.run(look, ok=False).stdout.rstrip()}\n")
        for name, path in spaces.items():
            for finding in caller.check(name, path):
                steps.wrong(finding)

        if given.stay:
            stay(steps)
        steps.begin("detached")
        for name, path in spaces.items():
            caller.detach(name, path)
        left = json.loads(place.run("metroctl workload --json list").stdout)["attachments"]
        # A link is deleted a moment after the answer.
        ends = time.monotonic() + _GONE_S
        while (links := json.loads(place.run("ip -json link show group 8").stdout or "[]")) and (
            time.monotonic() < ends
        ):
            pass
        left += links
        for one in left:
            steps.wrong(f"left after Detach: {json.dumps(one)}")
        if not left:
            steps.say("no attachment, link, address or route of them is left")
    report.seconds = round(time.monotonic() - begun, 2)


def stay(steps: Steps) -> None:
    """Run a shell there, until it ends."""
    from metropolis.test.tryout import place

    steps.begin("a shell there; its end (exit, Ctrl-D) ends everything")
    # The shell has the terminal, and its Ctrl-C is not ours. Not SIG_IGN, which
    # its commands would inherit.
    former = signal.signal(signal.SIGINT, lambda number, frame: None)
    steps.say(
        "metroctl workload list|check|watch|status|limit  the service's own view\n"
        f"ip netns exec {WORKLOADS[0]} ip address          a command in a workload's network\n"
        f"less {place.LOG}                   node core's log\n"
        "in another terminal, outside of ./bazelw, another such shell:\n"
        f"    nsenter --target {os.getpid()} --user --preserve-credentials --mount --net "
        f"--root --wd {place.SHELL}"
    )
    try:
        subprocess.run([place.SHELL], check=False)
    finally:
        signal.signal(signal.SIGINT, former)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the command line; exit with 2 when it is wrong."""
    parser = argparse.ArgumentParser(
        prog="try",
        description=__doc__,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--cni", action="store_true",
        help="attach by the CNI exec shim (ADD, CHECK, DEL) instead of gRPC, and print each "
        "execution with its environment and its stdin",
    )  # fmt: skip
    parser.add_argument(
        "--stay", action="store_true",
        help="before detaching, run a shell there, which reads stdin; its end ends everything",
    )  # fmt: skip
    parser.add_argument(
        "--json", action="store_true",
        help="print one line of JSON to stdout, and the steps to stderr; times are in ms, but "
        "for seconds and serving_s",
    )  # fmt: skip
    return parser.parse_args(arguments)


def _terminated(number: int, frame: FrameType | None) -> NoReturn:
    """Let SIGTERM and SIGHUP end it as Ctrl-C does, with the usual status."""
    raise SystemExit(128 + number)


def main(arguments: Sequence[str]) -> int:
    """Run the command; return the exit status."""
    given = parse(arguments)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _terminated)
    report = Report(by="cni" if given.cni else "grpc")
    try:
        enter_namespaces()
    except WorldError as error:
        print(f"try: {error}", file=sys.stderr)
        return 2
    from metropolis.test.tryout.place import TryError

    try:
        work(given, report, sys.stderr if given.json else sys.stdout)
    except TryError as error:
        report.wrong.append(str(error))
        print(f"try: {error}", file=sys.stderr)
    if given.json:
        print(json.dumps(report.fields()))
    elif not report.wrong:
        print(f"ok, in {report.seconds:.1f} s")
    return 1 if report.wrong else 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        print("try: stopped", file=sys.stderr)
        sys.exit(130)
