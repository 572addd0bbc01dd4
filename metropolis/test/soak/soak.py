# SPDX-License-Identifier: Apache-2.0
"""Attach and detach at random for some minutes, then count leaks.

    ./bazelw run //metropolis/test/soak -- [--minutes N] [--prefix P] [--json]

There are two hosts in network namespaces: the service of one is killed now and
then, that of the other runs on. With --json the last line of stdout is
{"ok", "operations", "kills", "leaked": {"links", "routes", "rules",
"addresses", "netns", "fds", "threads"}, "rss_kib_early", "rss_kib_end"}.

Memory must not grow, neither of the steady host's service, from the first
measurement on, nor of `turnover`, which meanwhile attaches and detaches without
a kernel, with the same prefixes, and so many more times.

Progress goes to stderr, the services' own log to --log. Status: 0 when every
promise was kept and nothing leaked; 1 when not; 2 for wrong arguments; 130
after Ctrl-C. Everything is in namespaces that end with the program, also after
Ctrl-C.
"""

import argparse
import contextlib
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from ipaddress import ip_network
from pathlib import Path
from typing import Any, Self

from metropolis.node.core.network.workloads.engine import pool
from metropolis.node.core.network.workloads.model import IPNetwork
from metropolis.test.soak import census
from metropolis.test.soak.census import Census
from metropolis.test.soak.churn import Churn, Violation
from metropolis.test.soak.world import Host
from metropolis.test.world.namespaces import WorldError, enter_namespaces

# By host: a pool of 126 and 255, whose smaller one fills up; common prefixes.
_PREFIXES: dict[str, Sequence[str]] = {
    "killed": ("10.192.0.0/25", "fd00:10:192::/120"),
    "steady": ("10.193.0.0/24", "10.194.0.0/16", "fd00:10:193::/112", "fd00:10:194::/64"),
}
_SLOTS = 200
# Operations before the first look at memory, and before the second in a long
# run: by then the pool remembers its maximum of freed addresses.
_EARLY = (2_000, 8 * pool.REMEMBERED)
_GROWTH = 1.05  # of memory from then on
_CYCLES_EARLY, _CYCLES_MIN = 10_000, 30_000  # of turnover
_PROGRESS_S = 5.0
_FILL_S = 12.0
_VERIFY_S = 10.0
_SETTLED_S = 60.0  # until threads that idle have ended
_NETNS_LIMIT = 50
_KINDS = ("links", "routes", "rules", "addresses")


class _Ended(BaseException):
    """SIGTERM."""


def usable(prefixes: Sequence[IPNetwork]) -> int:
    """Return how many attachments can have addresses of all families."""
    sizes: Counter[int] = Counter()
    for prefix in prefixes:
        first, last = pool.usable_range(prefix)
        sizes[prefix.version] += last - first + 1
    return min(sizes.values())


class Memory:
    """A turnover process, for the time of a `with` block, and its output."""

    def __init__(self, prefixes: Sequence[IPNetwork], seed: int) -> None:
        module = "metropolis.test.soak.turnover"
        self._command = [sys.executable, "-m", module, f"--seed={seed}"]
        self._command += [f"--prefix={prefix}" for prefix in prefixes]

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", *self._command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def grown(self) -> str:
        """End it after enough cycles; return its growth in words, "" if none.
        Raises Violation when it failed.
        """
        looks: dict[int, int] = {}
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        ending = False
        for line in self._process.stdout:
            cycles, rss = map(int, line.split())
            looks[cycles] = rss
            if cycles >= _CYCLES_MIN and not ending:
                self._process.stdin.close()
                ending = True
        if self._process.wait() or not ending:
            raise Violation(f"turnover ended with {self._process.returncode} after {looks}")
        early, end = looks[_CYCLES_EARLY], looks[max(looks)]
        text = f"{max(looks):,} cycles without a kernel: RSS {early:,} to {end:,} KiB"
        print(f"soak: {text}", file=sys.stderr, flush=True)
        return text if end > early * _GROWTH else ""


class Soak:
    """One run. `run` returns the output of --json."""

    def __init__(
        self, seconds: float, seed: int, log: Path, prefixes: Mapping[str, Sequence[IPNetwork]]
    ) -> None:
        """prefixes: by host."""
        self._seconds = seconds
        self._prefixes = prefixes
        self._random = random.Random(seed)
        self._room = census.room_for_namespaces(_NETNS_LIMIT)
        self._hosts: list[Host] = []
        self._churns: list[Churn] = []
        self._kills = 0
        self._restarts = 0
        self._early_rss = 0
        self._grown = ""
        self._totals: Counter[str] = Counter()
        self._log = log
        self._seed = seed
        self._began = time.monotonic()

    def run(self) -> dict[str, Any]:
        """Run everything. Raises Violation and WorldError."""
        try:
            for name in ("killed", "steady"):
                host = Host(name, tuple(map(str, self._prefixes[name])), self._log)
                self._hosts.append(host)
                host.start()
            before = [census.take(host) for host in self._hosts]
            for host in self._hosts:
                self._churns.append(
                    Churn(
                        host,
                        mortal=host.name == "killed",
                        slots=_SLOTS,
                        usable=usable(self._prefixes[host.name]),
                        threads=4,
                        seed=self._seed,
                    )
                )
            _, steady = self._churns
            steady.burst()
            idle = census.take(steady.host)
            for churn in self._churns:
                churn.start()
            with Memory(self._prefixes[steady.host.name], self._seed) as memory:
                self._churn()
                for churn in self._churns:
                    churn.stop()
                self._raise_violations()
                self._grown = memory.grown()
            steady.burst()
            rss = census.rss_kib(steady.host.pid)
            for churn in self._churns:
                churn.drain()
                churn.verify()
            after = [census.take(host) for host in self._hosts]
            leaked: Counter[str] = Counter()
            for one, other in zip(before, after, strict=True):
                more = other.less(one)
                leaked.update({kind: more[kind] for kind in _KINDS})
            more = self._when_settled(steady.host, idle).less(idle)
            leaked.update({kind: more[kind] for kind in ("fds", "threads")})
            statuses = [host.end() for host in self._hosts]
            if any(statuses):
                raise Violation(f"services ended with {statuses}")
            self.close()
            leaked["netns"] = self._namespaces_left()
            return self._result(leaked, rss)
        finally:
            self.close()

    @staticmethod
    def _when_settled(host: Host, idle: Census) -> Census:
        """Count again while there are more threads: a new one has no name yet,
        and an ending one is still listed.
        """
        deadline = time.monotonic() + _SETTLED_S
        while True:
            now = census.take(host)
            if now.less(idle)["threads"] <= 0 or time.monotonic() > deadline:
                return now
            time.sleep(0.5)

    def close(self) -> None:
        """End everything. May be repeated."""
        churns, self._churns = self._churns, []
        hosts, self._hosts = self._hosts, []
        self._totals = self._sum(churns) if churns else self._totals
        with contextlib.ExitStack() as stack:
            for host in hosts:
                stack.callback(host.close)
            for churn in churns:
                stack.callback(churn.close)
                stack.callback(churn.stop)
            # This ends calls, also later ones, which would wait for it.
            for host in hosts:
                stack.callback(host.hang_up)

    @staticmethod
    def _sum(churns: list[Churn]) -> Counter[str]:
        return sum((churn.counts for churn in churns), Counter())

    def _result(self, leaked: Counter[str], rss: int) -> dict[str, Any]:
        names = (*_KINDS, "netns", "fds", "threads")
        grown = rss > self._early_rss * _GROWTH or bool(self._grown)
        return {
            "ok": not any(leaked[name] for name in names) and not grown,
            "operations": self._totals["operations"],
            "kills": self._kills,
            "leaked": {name: leaked[name] for name in names},
            "rss_kib_early": self._early_rss,
            "rss_kib_end": rss,
        }

    def _churn(self) -> None:
        """Kill, restart and verify until the time is over. Main thread only."""
        killed, steady = self._churns
        end = self._began + self._seconds
        looks = list(_EARLY)
        now = time.monotonic()
        due = {"kill": now + 2, "look": now + _VERIFY_S, "fill": now + _FILL_S, "tell": now}
        # On a busy machine a short run is longer: until it shows something.
        while (now := time.monotonic()) < end or not (self._early_rss and self._kills):
            self._raise_violations()
            if looks and steady.counts["operations"] >= looks[0]:
                del looks[0]
                steady.burst()
                self._early_rss = census.rss_kib(steady.host.pid)
            if now >= due["tell"]:
                self._tell(False)
                due["tell"] = now + _PROGRESS_S
            if now >= due["fill"]:
                for churn in self._churns:
                    churn.verify()
                    churn.filling = not churn.filling
                due["fill"] = now + _FILL_S
            if now >= due["look"]:
                steady.verify()
                due["look"] = time.monotonic() + _VERIFY_S
            if now >= due["kill"]:
                self._end_one(killed)
                due["kill"] = time.monotonic() + self._random.uniform(0.2, 3.0)
            time.sleep(0.05)
        self._tell(True)

    def _end_one(self, churn: Churn) -> None:
        """Kill or end the service; start it and verify its state."""
        if self._random.random() < 0.8 or not self._kills:
            churn.host.kill()
            self._kills += 1
        else:
            status = churn.host.end()
            self._restarts += 1
            if status:
                raise Violation(f"the service ended with {status} when told to")
        churn.host.start()
        churn.verify()

    def _raise_violations(self) -> None:
        found = [text for churn in self._churns for text in churn.violations]
        if found:
            raise Violation("; ".join(found))

    def _tell(self, full: bool) -> None:
        counts = self._sum(self._churns)
        parts = [
            f"{counts['operations']:,} operations",
            f"{self._kills} kills",
            f"{self._restarts} restarts",
        ]
        names = ["deaths", "cancelled calls", "verifications", "pool full"]
        if full:
            names += ["Attach", "Detach", "deadlines", "bad requests", "RESOURCE_EXHAUSTED"]
        parts += [f"{counts[name]:,} {name}" for name in names]
        seconds = int(time.monotonic() - self._began)
        rss = census.rss_kib(self._hosts[1].pid)
        clock = f"{seconds // 60}:{seconds % 60:02}"
        text = f"soak {clock} of {self._seconds / 60:g} min: {', '.join(parts)}; RSS {rss:,} KiB"
        print(text, file=sys.stderr, flush=True)

    def _namespaces_left(self) -> int:
        """Return the leaked namespaces; wait, since the kernel is slow."""
        deadline = time.monotonic() + 60
        while (left := self._room - census.room_for_namespaces(_NETNS_LIMIT)) > 0:
            if time.monotonic() > deadline:
                break
            time.sleep(0.2)
        return left


def main(arguments: list[str]) -> int:
    """Run the command; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="soak", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--minutes", metavar="N", type=float, default=15.0,
        help="how long; fractions are all right (default: 15)")  # fmt: skip
    add("--prefix", metavar="P", action="append", type=ip_network,
        help="of both hosts' pools; repeatable (default: one host has prefixes that fill up, "
        "the other such as people use)")  # fmt: skip
    add("--json", action="store_true", help="print the result as one line of JSON")
    add("--seed", metavar="N", type=int,
        help="of the random choices (default: a new one, which is printed)")  # fmt: skip
    add("--log", metavar="FILE", type=Path,
        help="the services' log, kept; an absolute path (default: a new file in the directory "
        "for temporary files)")  # fmt: skip
    chosen = parser.parse_args(arguments)
    if not 0 < chosen.minutes < 60 * 24 * 7:
        parser.error("--minutes: more than 0, less than a week")

    def ended(number: int, frame: object) -> None:
        raise _Ended

    seed = chosen.seed if chosen.seed is not None else random.SystemRandom().randrange(1 << 32)
    signal.signal(signal.SIGTERM, ended)
    log = chosen.log or Path(tempfile.mkstemp(prefix="soak-", suffix=".log")[1])
    print(f"soak: seed {seed}, services' log {log}", file=sys.stderr)
    try:
        enter_namespaces()
        prefixes = {
            host: chosen.prefix or [ip_network(prefix) for prefix in usual]
            for host, usual in _PREFIXES.items()
        }
        result = Soak(chosen.minutes * 60, seed, log.absolute(), prefixes).run()
    except Violation as error:
        print(f"soak: seed {seed}: {error}; see {log}", file=sys.stderr)
        return 1
    except WorldError as error:
        print(f"soak: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt, _Ended:
        print("soak: interrupted; everything is cleaned up", file=sys.stderr)
        return 130
    if chosen.json:
        print(json.dumps(result))
    else:
        for key, value in result.items():
            print(f"{key}: {value}")
    return 0 if result["ok"] else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
