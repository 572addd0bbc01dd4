# SPDX-License-Identifier: Apache-2.0
"""The commands about one node's workloads: `metroctl workload`.

They ask the workload network service by its unix socket. Only `limit` changes
something.
OPERATING.md explains the answers.

Etcd's parts are not imported: a node that is in trouble answers quickly.
"""

from __future__ import annotations

import argparse
import re
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from datetime import UTC, datetime
from ipaddress import ip_address
from typing import Any, Final

from metropolis.cli.metroctl.output import Answer, FailedError, Table
from metropolis.cli.metroctl.service import (
    TIMEOUT_S,
    UNKNOWN,
    EndedError,
    ask,
    connection,
    of_every_verb,
    text,
)
from osbase.text import printable

_SERVICE: Final = "/metropolis.node.core.network.workloads.WorkloadNetworking/"

_EPILOG: Final = """\
Packets that the rules dropped, by reason: nft list counters

exit status: 0 nothing is wrong, 1 something is, 2 wrong arguments or no such
workload, 3 the service does not answer.
"""


def add_arguments(nouns: Any, common: argparse.ArgumentParser) -> None:
    """Add the noun `workload`. common: the options of every command."""
    shared = of_every_verb(common, _EPILOG)
    workload = nouns.add_parser(
        "workload", help="the network of this node's workloads", **shared,
        description="Show the network of this node's workloads, and change their limits.",
    )  # fmt: skip
    verbs = workload.add_subparsers(
        dest="verb", required=True, metavar="status|list|check|watch|limit"
    )
    verbs.add_parser(
        "status", help="what is wrong, and what is worth knowing", **shared,
        description="Print what is wrong with the node's network, and what is worth knowing.",
    )  # fmt: skip
    verbs.add_parser("list", help="attachments", **shared, description="Print the attachments.")
    check = verbs.add_parser(
        "check", help="what of attachments is not as it should be", **shared,
        description="Compare attachments with what the kernel has, as seen from the host.",
    )  # fmt: skip
    check.add_argument(
        "workload", nargs="?", default="", metavar="WORKLOAD", type=text,
        help="as in `list`; default: all",
    )  # fmt: skip
    verbs.add_parser(
        "watch", help="attachments, and every change from then on", **shared,
        description="Print the attachments, each as `present`, then `complete`, then every "
        "change: `attached`, `changed`, `detached`, or `lost`, with its network namespace. A line "
        "for each, or with --json a line of JSON, with the time at which it was received. Ctrl-C "
        "ends it.",
    )  # fmt: skip
    limit = verbs.add_parser(
        "limit", help="limit what a workload receives and sends", **shared,
        description="Set the limits of a workload's interface, at once; open connections stay. "
        "A direction that is not given keeps its limit. They last until the next call, or until "
        "the workload is detached. Prints the attachment as it is then.",
    )  # fmt: skip
    limit.add_argument("workload", metavar="WORKLOAD", type=text, help="as in `list`")
    limit.add_argument(
        "interface", nargs="?", default="eth0", metavar="INTERFACE", type=text,
        help="its interface; default: %(default)s",
    )  # fmt: skip
    rate = {"metavar": "RATE", "type": _bits}
    limit.add_argument(
        "--ingress", **rate,
        help="of what it receives, bits of IP packets per second: 500k, 10M, 1G; 0: no "
        "limit; default: as it is",
    )  # fmt: skip
    limit.add_argument("--egress", help="of what it sends, the same; default: as it is", **rate)


_UNITS: Final = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


def _bits(argument: str) -> int:
    """Read a rate, in bits per second: a whole number, and a unit as in `list`,
    or without its `bit`.
    """
    found = re.fullmatch(r"([0-9]{1,13})([kMGT]?)(?:bit)?", argument)
    if found is None:
        raise argparse.ArgumentTypeError(
            f"{argument!a}: want a whole number with k, M, G or T, such as 500k, 10M or 1G"
        )
    bits = int(found[1]) * _UNITS[found[2]]
    if bits >= 1 << 64:
        raise argparse.ArgumentTypeError(f"{argument!a} is more than the service can be asked for")
    return bits


def run(given: argparse.Namespace) -> Iterator[Answer]:
    """Ask the service; yield what it answers. Raises FailedError."""
    if given.verb == "limit" and given.ingress is given.egress is None:
        raise FailedError("which limit? give --ingress RATE, --egress RATE, or both", UNKNOWN)
    with connection(given) as channel:
        yield from _ask(Service(channel), given)


class Service:
    """The calls of the service. Answers are decoded here: gRPC would log a
    traceback for one that cannot be.
    """

    def __init__(self, channel: Any) -> None:
        from metropolis.node.core.network.workloads.spec import workload_pb2 as pb

        self.pb = pb
        self._channel = channel

    def status(self) -> Any:
        """Return the report of Status."""
        return self._call("Status", self.pb.StatusRequest(report=True), self.pb.StatusResponse)

    def list(self) -> Any:
        """Return the attachments."""
        return self._call("List", self.pb.ListRequest(), self.pb.ListResponse).attachments

    def check(self, workload_id: str) -> Any:
        """Check the interfaces of a workload."""
        request = self.pb.CheckRequest(workload_id=workload_id)
        return self._call("Check", request, self.pb.CheckResponse)

    def set_bandwidth(self, workload_id: str, if_name: str, limits: Any) -> None:
        """Replace the limits of an interface."""
        request = self.pb.SetBandwidthRequest(
            workload_id=workload_id, if_name=if_name, bandwidth=limits
        )
        self._call("SetBandwidth", request, self.pb.SetBandwidthResponse)

    def watch(self) -> Generator[Any]:
        """Yield the events. The first, which there is even without attachments,
        must come within the time for an answer.
        """
        calls: Any = self._channel.unary_stream(f"{_SERVICE}Watch")(b"")
        late = threading.Event()

        def give_up() -> None:
            late.set()
            calls.cancel()

        timer = threading.Timer(TIMEOUT_S, give_up)
        timer.daemon = True
        timer.start()
        try:
            for data in calls:
                timer.cancel()
                yield self.pb.WatchEvent.FromString(data)
        except Exception:
            if late.is_set():
                raise EndedError(f"nothing within {TIMEOUT_S:g} s") from None
            raise
        finally:
            timer.cancel()
            calls.cancel()

    def _call(self, method: str, request: Any, answer: Any) -> Any:
        return ask(self._channel, _SERVICE + method, request, answer)


def _ask(service: Service, given: argparse.Namespace) -> Iterator[Answer]:
    if given.verb == "status":
        yield status(service.status())
    elif given.verb == "list":
        yield listing(service.list())
    elif given.verb == "watch":
        yield from watched(service.watch())
        raise EndedError("the watch ended")
    elif given.verb == "limit":
        yield _limit(service, given)
    elif given.workload:
        yield checked(service.check(given.workload))
    else:
        yield checked(_check_all(service))


def _limit(service: Service, given: argparse.Namespace) -> Answer:
    key = (given.workload, given.interface)

    def listed() -> list[Any]:
        return [one for one in service.list() if (one.workload_id, one.if_name) == key]

    limits = service.pb.Bandwidth()
    for one in listed():
        limits.CopyFrom(one.bandwidth)
    for way in ("ingress", "egress"):
        if (rate := getattr(given, way)) is not None:
            setattr(limits, f"{way}_rate", rate)
            setattr(limits, f"{way}_burst", 0)
    service.set_bandwidth(*key, limits)
    return listing(listed())


def _check_all(service: Service) -> Any:
    """Check each workload: one that cannot be checked hides no other."""
    import grpc

    pb = service.pb
    every = pb.CheckResponse()
    for one in {one.workload_id: one for one in service.list()}.values():
        try:
            every.MergeFrom(service.check(one.workload_id))
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.UNAVAILABLE:  # it is busy with this one
                said = pb.Finding(what="check", expected="an answer", found=error.details())
                every.attachments.add(attachment=one, findings=[said])
            elif error.code() is not grpc.StatusCode.NOT_FOUND:  # detached meanwhile
                raise
    return every


def status(answer: Any) -> Answer:
    """Render a StatusResponse. Pure."""
    problems = {one.name: one.text for one in answer.problems}
    notes = {one.name: one.text for one in answer.notes}
    lines = [f"wrong: {name}: {text}" for name, text in problems.items()] or ["ok"]
    lines += [f"note: {name}: {text}" for name, text in notes.items()]
    data = {"ok": not problems, "problems": problems, "notes": notes}
    return Answer(data, "\n".join(map(printable, lines)), bool(problems))


def listing(attachments: Iterable[Any]) -> Answer:
    """Render the attachments of a List. Pure. Raises ValueError for garbage."""
    rows = [_row(one) for one in attachments]
    table = Table([name.upper() for name in _COLUMNS], [_cells(row) for row in rows])
    return Answer({"attachments": rows}, str(table))


def checked(answer: Any) -> Answer:
    """Render a CheckResponse. Pure. Raises ValueError for garbage."""
    lines: list[str] = []
    rows: list[dict[str, Any]] = []
    wrong = False
    for one in answer.attachments:
        row = _row(one.attachment)
        findings = [
            {"what": each.what, "expected": each.expected, "found": each.found}
            for each in one.findings
        ]
        wrong = wrong or bool(findings)
        lines.append(f"{row['workload']} {row['interface']}: {'wrong' if findings else 'ok'}")
        lines += [
            f"    {each['what']}: expected {each['expected'] or 'nothing'}, "
            f"found {each['found'] or 'nothing'}"
            for each in findings
        ]
        rows.append(row | {"findings": findings})
    text = "\n".join(map(printable, lines)) or "no attachments"
    return Answer({"ok": not wrong, "checked": rows}, text, wrong)


def watched(
    events: Iterable[Any], now: Callable[[], datetime] = lambda: datetime.now(UTC)
) -> Iterator[Answer]:
    """Render the events of a Watch. Raises ValueError for garbage."""
    count = 0
    for event in events:
        time = now().isoformat(timespec="milliseconds").replace("+00:00", "Z")
        kind = _kind(event)
        data: dict[str, Any] = {"time": time, "event": kind}
        if event.HasField("attachment"):
            row = _row(event.attachment)
            text = "  ".join(_cells(row))
            data["attachment"] = row
            count += 1
        else:
            text = f"attachments: {count}"
            data["attachments"] = count
        yield Answer(data, f"{time}  {kind:<8}  {text}")


def _kind(event: Any) -> str:
    """Return its name; of one from a newer service, its number."""
    kinds = event.DESCRIPTOR.enum_types_by_name["Kind"].values_by_number
    found = kinds.get(event.kind)
    return f"kind {event.kind}" if found is None else str(found.name).lower()


_COLUMNS: Final = ("workload", "interface", "addresses", "link", "owner", "ports", "limits")
_PORTS_SHOWN: Final = 4


def _row(one: Any) -> dict[str, Any]:
    return {
        "workload": one.workload_id,
        "interface": one.if_name,
        "addresses": [str(ip_address(packed)) for packed in one.ip],
        "link": one.host_interface,
        "owner": one.owner,
        "mac": one.mac.hex(":"),
        "mtu": one.mtu,
        "ports": [_port(each) for each in one.port_mapping],
        "limits": _limits(one.bandwidth),
        "port_mappings": [_mapping(each) for each in one.port_mapping],
        "bandwidth": {name: getattr(one.bandwidth, name) for name in _BANDWIDTH},
    }


# For programs, with the API's names and units: bits per second, and bits. 0: no
# limit, and the service's burst.
_BANDWIDTH: Final = ("ingress_rate", "ingress_burst", "egress_rate", "egress_burst")


def _mapping(one: Any) -> dict[str, Any]:
    """Return it for programs; host_ip null: all addresses."""
    return {
        "protocol": one.protocol or "tcp",
        "host_port": one.host_port,
        "container_port": one.container_port,
        "host_ip": str(ip_address(one.host_ip)) if one.host_ip else None,
    }


def _limits(limits: Any) -> list[str]:
    """Return `in 10Mbit`, `out 1500kbit`: what it receives, and sends."""
    rates = (("in", limits.ingress_rate), ("out", limits.egress_rate))
    return [f"{way} {_rate(rate)}" for way, rate in rates if rate]


def _rate(bits: int) -> str:
    """Return it exactly, per second."""
    for unit, size in (("Gbit", 10**9), ("Mbit", 10**6), ("kbit", 10**3)):
        if bits % size == 0:
            return f"{bits // size}{unit}"
    return f"{bits}bit"


def _port(one: Any) -> str:
    """Return `192.0.2.7:8080->80/tcp`; without an address: all."""
    at = str(ip_address(one.host_ip)) if one.host_ip else ""
    at = f"[{at}]:" if ":" in at else f"{at}:" if at else ""
    return f"{at}{one.host_port}->{one.container_port}/{one.protocol or 'tcp'}"


def _cells(row: dict[str, Any]) -> list[str]:
    ports = row["ports"]
    more = [f"and {len(ports) - _PORTS_SHOWN} more"] if len(ports) > _PORTS_SHOWN else []
    values = {**row, "ports": [*ports[:_PORTS_SHOWN], *more]}
    cells = (values[name] for name in _COLUMNS)
    return [
        printable(",".join(value) if isinstance(value, list) else value) or "-" for value in cells
    ]
