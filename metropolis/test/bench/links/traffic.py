# SPDX-License-Identifier: Apache-2.0
"""Traffic between two pods, by netperf, and its cost in the kernel."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from metropolis.test.bench.links.messages import Pod
from metropolis.test.bench.links.model import LinksError
from metropolis.test.bench.links.pods import Namespace

_OUTPUT = re.compile(r"([A-Z0-9_]+)=(.*)")
_PORT = "12865"


@dataclass(frozen=True, slots=True)
class Value:
    """A result: figure, unit, value."""

    figure: str
    unit: str
    value: float


def serve(namespace: Namespace) -> None:
    """Start a server in the namespace; it listens when this returns, since it
    listens before it leaves the foreground.
    """
    namespace.run(["netserver", "-p", _PORT])


def _netperf(
    client: Namespace, target: str, family: int, test: str, amount: int, *outputs: str
) -> dict[str, float]:
    """Run a test of `amount` transactions or bytes."""
    argv = ["netperf", "-P", "0", "-j", f"-{family}", "-H", target, "-p", _PORT]
    # Units: transactions as they are, streams in 10^6 bits a second.
    argv += ["-f", "x" if test == "TCP_RR" else "m"]
    argv += ["-t", test, "-l", str(-amount), "--", "-k", ",".join(outputs)]
    said = client.run(argv)
    found = dict(_OUTPUT.findall(said))
    try:
        values = {name: float(found[name]) for name in outputs}
    except (KeyError, ValueError) as error:
        raise LinksError(f"{' '.join(argv)}: no number for {error} in {said!r}") from error
    if values["THROUGHPUT"] <= 0:
        raise LinksError(f"{' '.join(argv)}: nothing got through")
    return values


def request_response(client: Namespace, server: Pod, family: int, amount: int) -> Iterator[Value]:
    """TCP_RR: one byte there, one byte back, one at a time."""
    target = str(server.ipv4 if family == 4 else server.ipv6)
    name = f"TCP_RR IPv{family}"
    before = softirqs()
    found = _netperf(
        client, target, family, "TCP_RR", amount, "THROUGHPUT", "P50_LATENCY", "P99_LATENCY"
    )
    yield Value(f"{name} rate", "1/s", found["THROUGHPUT"])
    yield Value(f"{name} mean", "us", 1e6 / found["THROUGHPUT"])
    yield Value(f"{name} p50", "us", found["P50_LATENCY"])
    yield Value(f"{name} p99", "us", found["P99_LATENCY"])
    yield Value(f"{name} net_rx", "softirqs", (softirqs() - before) / amount)


def stream(client: Namespace, server: Pod, family: int, kib: int) -> Iterator[Value]:
    """TCP_STREAM: one connection, one direction."""
    target = str(server.ipv4 if family == 4 else server.ipv6)
    name = f"TCP_STREAM IPv{family}"
    found = _netperf(client, target, family, "TCP_STREAM", kib * 1024, "THROUGHPUT")
    yield Value(f"{name} rate", "Mbit/s", found["THROUGHPUT"])
    yield Value(f"{name} per MiB", "us", 1024 * 1024 * 8 / found["THROUGHPUT"])


def softirqs() -> int:
    """Return the runs of NET_RX so far, of all CPUs."""
    for line in Path("/proc/softirqs").read_text().splitlines():
        name, _, counts = line.partition(":")
        if name.strip() == "NET_RX":
            return sum(map(int, counts.split()))
    raise LinksError("/proc/softirqs has no NET_RX")
