# SPDX-License-Identifier: Apache-2.0
"""The operator's command on a node: shows the state of its network.

    nodectl status            problems and notes
    nodectl list              attachments
    nodectl check [WORKLOAD]  how attachments differ from what they should be

It asks the workload network service, and changes nothing. OPERATING.md explains
the answers. Dropped packets are counted by the kernel: `nft list counters`
shows them.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any, Final, NoReturn

from metropolis.node import allocs

_TIMEOUT_S: Final = 20.0

_EPILOG: Final = """\
Packets that the rules dropped, by reason: nft list counters

exit status: 0 nothing is wrong, 1 something is, 2 wrong arguments or no such
workload, 3 the service does not answer.
"""


@dataclass(frozen=True)
class Answer:
    """The text to print. wrong: whether it reports a problem."""

    wrong: bool
    text: str
    fields: dict[str, Any]


class NoAnswerError(Exception):
    """The service does not answer; the text says why."""


class UnknownError(Exception):
    """The service knows no such workload."""


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the command line; exit with 2 when it is wrong."""
    parser = argparse.ArgumentParser(
        prog="nodectl",
        description="Show what this node's network is like. Changes nothing.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--socket", metavar="FILE", default=allocs.WORKLOAD_SOCKET, type=_text,
        help="of the workload network service; default: %(default)s",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print one line of JSON")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="status|list|check")
    verbs.add_parser(
        "status", help="what is wrong, and what is worth knowing",
        description="Print what is wrong with the node's network, and what is worth knowing.",
    )  # fmt: skip
    verbs.add_parser("list", help="attachments", description="Print the attachments.")
    check = verbs.add_parser(
        "check", help="what of attachments is not as it should be",
        description="Compare attachments with what the kernel has, as seen from the host.",
    )  # fmt: skip
    check.add_argument(
        "workload", nargs="?", default="", metavar="WORKLOAD", type=_text,
        help="as in `list`; default: all",
    )  # fmt: skip
    return parser.parse_args(arguments)


def _text(argument: str) -> str:
    """Refuse bytes that are not UTF-8, which gRPC cannot carry."""
    try:
        argument.encode()
    except UnicodeEncodeError as error:
        raise argparse.ArgumentTypeError(f"{argument!a} is not UTF-8") from error
    return argument


def run(given: argparse.Namespace) -> Answer:
    """Ask the service. Raises NoAnswerError or UnknownError."""
    # After the arguments, so that --help and wrong usage answer at once.
    import grpc

    from metropolis.node.core.network.workloads.spec import workload_pb2 as pb
    from metropolis.node.core.network.workloads.spec import workload_pb2_grpc as rpc

    with grpc.insecure_channel(f"unix:{os.path.abspath(given.socket)}") as channel:
        stub: Any = rpc.WorkloadNetworkingStub(channel)

        def ask(method: str, request: Any) -> Any:
            return getattr(stub, method)(request, timeout=_TIMEOUT_S)

        try:
            if given.verb == "status":
                return status(ask("Status", pb.StatusRequest(report=True)))
            if given.verb == "list":
                return listing(ask("List", pb.ListRequest()).attachments)
            if given.workload:
                return checked(ask("Check", pb.CheckRequest(workload_id=given.workload)))
            every = pb.CheckResponse()
            attachments = ask("List", pb.ListRequest()).attachments
            for one in {one.workload_id: one for one in attachments}.values():
                try:
                    every.MergeFrom(ask("Check", pb.CheckRequest(workload_id=one.workload_id)))
                except grpc.RpcError as error:
                    if error.code() is grpc.StatusCode.UNAVAILABLE:  # it is busy with this one
                        said = pb.Finding(what="check", expected="an answer", found=error.details())
                        every.attachments.add(attachment=one, findings=[said])
                    elif error.code() is not grpc.StatusCode.NOT_FOUND:  # detached meanwhile
                        raise
            return checked(every)
        except grpc.RpcError as error:
            if error.code() in (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.INVALID_ARGUMENT):
                raise UnknownError(error.details()) from error
            why = f"{given.socket}: no answer, see /run/log/node-core/current: {error.details()}"
            raise NoAnswerError(why) from error


def status(answer: Any) -> Answer:
    """Render a StatusResponse. Pure."""
    problems = {one.name: one.text for one in answer.problems}
    notes = {one.name: one.text for one in answer.notes}
    lines = [f"wrong: {name}: {text}" for name, text in problems.items()] or ["ok"]
    lines += [f"note: {name}: {text}" for name, text in notes.items()]
    fields = {"ok": not problems, "problems": problems, "notes": notes}
    return Answer(bool(problems), "\n".join(lines), fields)


def listing(attachments: Iterable[Any]) -> Answer:
    """Render the attachments of a List. Pure."""
    rows = [_row(one) for one in attachments]
    heads = ("workload", "interface", "addresses", "link", "owner")
    table = [
        tuple(name.upper() for name in heads),
        *(tuple(_cell(row[name]) for name in heads) for row in rows),
    ]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in table
    ]
    return Answer(False, "\n".join(lines), {"attachments": rows})


def checked(answer: Any) -> Answer:
    """Render a CheckResponse. Pure."""
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
    return Answer(wrong, "\n".join(lines) or "no attachments", {"ok": not wrong, "checked": rows})


def _row(one: Any) -> dict[str, Any]:
    return {
        "workload": one.workload_id,
        "interface": one.if_name,
        "addresses": [str(ip_address(packed)) for packed in one.ip],
        "link": one.host_interface,
        "owner": one.owner,
    }


def _cell(value: Any) -> str:
    return ",".join(value) if isinstance(value, list) else str(value) or "-"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    given = parse(sys.argv[1:] if arguments is None else arguments)
    try:
        answer = run(given)
    except (NoAnswerError, UnknownError) as error:
        print(f"nodectl {given.verb}: {error}", file=sys.stderr)
        return 3 if isinstance(error, NoAnswerError) else 2
    print(json.dumps(answer.fields) if given.json else answer.text)
    return 1 if answer.wrong else 0


def _exit() -> NoReturn:
    try:
        number = main()
        sys.stdout.flush()
    except KeyboardInterrupt:
        number = 130
    except BrokenPipeError:  # `nodectl list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        number = 1
    sys.exit(number)


if __name__ == "__main__":
    _exit()
