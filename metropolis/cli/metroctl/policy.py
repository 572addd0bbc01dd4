# SPDX-License-Identifier: Apache-2.0
"""The commands about the network policies of one node: `metroctl policy`.

They ask the service by its unix socket. Only `label` changes something.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Mapping, Sequence
from ipaddress import ip_address
from typing import Any, Final

from metropolis.cli.metroctl.output import Answer, FailedError, Table
from metropolis.cli.metroctl.service import UNKNOWN, ask, connection, of_every_verb, text
from osbase.text import printable

_SERVICE: Final = "/metropolis.node.core.network.policy.NetworkPolicies/"
_STATUS: Final = "/metropolis.node.core.network.workloads.WorkloadNetworking/Status"
_CONDITIONS: Final = ("policies", "policy-files")
_PROTOCOLS: Final = ("tcp", "udp", "sctp")

_EPILOG: Final = """\
exit status: 0 done, or the connection passes; 1 something is wrong with a
policy, or the connection is denied; 2 wrong arguments or no such workload, 3
the service does not answer.
"""


def add_arguments(nouns: Any, common: argparse.ArgumentParser) -> None:
    """Add the noun `policy`. common: the options of every command."""
    shared = of_every_verb(common, _EPILOG)
    policy = nouns.add_parser(
        "policy", help="the network policies of this node", **shared,
        description="Show which connections of this node's workloads pass, and why.",
    )  # fmt: skip
    verbs = policy.add_subparsers(dest="verb", required=True, metavar="list|explain|label")
    verbs.add_parser(
        "list", help="policies in force, and what is wrong with them", **shared,
        description="Print the policies of all sources.",
    )  # fmt: skip
    explain = verbs.add_parser(
        "explain", help="whether a new connection passes, and why", **shared,
        description="Say what the policies in force do with a new connection. Nothing else is "
        "asked, such as routes and the node's own rules; an address of the node is the world's.",
    )  # fmt: skip
    for end in ("source", "destination"):
        explain.add_argument(
            end, metavar=end.upper(), type=text,
            help="a workload, as in `workload list`, or an address",
        )  # fmt: skip
    explain.add_argument(
        "port", nargs="?", metavar="PORT", type=_port,
        help="of the destination, behind host ports: 80, 80/tcp, 53/udp, 99/sctp; default: a "
        "protocol without ports, such as ICMP",
    )  # fmt: skip
    label = verbs.add_parser(
        "label", help="say what a workload is, for policies", **shared,
        description="Set the namespace and the labels of a workload, in place of those before, "
        "at once.",
    )  # fmt: skip
    label.add_argument("workload", metavar="WORKLOAD", type=text, help="as in `workload list`")
    label.add_argument(
        "namespace", nargs="?", default="", metavar="NAMESPACE", type=_namespace,
        help="its namespace; default: none, and no labels",
    )  # fmt: skip
    label.add_argument(
        "labels", nargs="*", metavar="KEY=VALUE", type=_label, help="its labels; default: none"
    )


def _port(argument: str) -> tuple[str, int]:
    found = re.fullmatch(r"([1-9][0-9]{0,4})(?:/(\w+))?", argument)
    protocol = (found[2] or "tcp").lower() if found else ""
    if found is None or int(found[1]) > 0xFFFF or protocol not in _PROTOCOLS:
        raise argparse.ArgumentTypeError(f"{argument!a}: want a port such as 80/tcp or 53/udp")
    return protocol, int(found[1])


def _namespace(argument: str) -> str:
    """Refuse a label in its place: no policy would select the workload."""
    if "=" in argument:
        raise argparse.ArgumentTypeError(f"{argument!a}: the namespace comes before the labels")
    return text(argument)


def _label(argument: str) -> tuple[str, str]:
    key, is_one, value = text(argument).partition("=")
    if not is_one or not key:
        raise argparse.ArgumentTypeError(f"{argument!a}: want KEY=VALUE")
    return key, value


def run(given: argparse.Namespace) -> Iterator[Answer]:
    """Ask the service; yield what it answers. Raises FailedError."""
    if given.verb == "label":
        _check_labels(given.labels)
    with connection(given) as channel:
        from metropolis.node.core.network.policy.spec import policy_pb2 as pb

        if given.verb == "list":
            method = f"{_SERVICE}GetPolicies"
            answer = ask(channel, method, pb.GetPoliciesRequest(), pb.GetPoliciesResponse)
            yield listing(answer, pb, _problems(channel))
        elif given.verb == "explain":
            request = _question(given, pb)
            yield explained(ask(channel, f"{_SERVICE}Explain", request, pb.ExplainResponse), pb)
        else:
            identity = {"namespace": given.namespace, "labels": dict(given.labels)}
            said = pb.SetLabelsRequest(workload_id=given.workload, identity=identity)
            ask(channel, f"{_SERVICE}SetLabels", said, pb.SetLabelsResponse)
            yield Answer({"workload": given.workload, **identity}, "done")


def _check_labels(labels: Sequence[tuple[str, str]]) -> None:
    """Raises FailedError if a label is given twice."""
    seen: set[str] = set()
    for key, _ in labels:
        if key in seen:
            raise FailedError(printable(f"label {key}: is given twice"), UNKNOWN)
        seen.add(key)


def _problems(channel: Any) -> dict[str, str]:
    """Return what Status has about policies: a file that cannot be read has no
    policy that could say it.
    """
    from metropolis.node.core.network.workloads.spec import workload_pb2 as pb

    found = ask(channel, _STATUS, pb.StatusRequest(report=True), pb.StatusResponse)
    said = (*found.problems, *found.notes)
    return {one.name: one.text for one in said if one.name in _CONDITIONS}


def _question(given: argparse.Namespace, pb: Any) -> Any:
    protocol, port = given.port or ("", 0)
    return pb.ExplainRequest(
        source=_end(pb, given.source),
        destination=_end(pb, given.destination),
        protocol=pb.Protocol.Value(protocol.upper()) if protocol else 0,
        port=port,
    )


def _end(pb: Any, argument: str) -> Any:
    try:
        return pb.End(ip=ip_address(argument).packed)
    except ValueError:
        return pb.End(workload_id=argument)


def listing(answer: Any, pb: Any, problems: Mapping[str, str]) -> Answer:
    """Render a GetPoliciesResponse. problems: of Status, by name. Pure."""
    rows = [
        {
            "policy": one.policy.name,
            "tier": pb.Policy.Tier.Name(one.policy.tier).lower(),
            "priority": one.policy.priority,
            "source": one.source,
            "error": one.error,
        }
        for one in answer.policies
    ]
    table = Table(
        ["POLICY", "TIER", "PRIORITY", "SOURCE", "WRONG"],
        [[printable(str(cell)) or "-" for cell in row.values()] for row in rows],
    )
    told = {
        "identities": answer.identities,
        "pairs": answer.pairs,
        "world_ranges": answer.world_ranges,
    }
    unknown = list(answer.unknown)
    lines = [str(table) if rows else "no policies are in force"]
    if rows:
        lines.append(", ".join(f"{name.replace('_', ' ')} {count}" for name, count in told.items()))
    lines += [
        f"labels are not known, which isolates it under policies: {printable(one)}"
        for one in unknown
    ]
    lines += [printable(f"wrong: {name}: {said}") for name, said in problems.items()]
    wrong = bool(problems) or any(row["error"] for row in rows)
    data = {"policies": rows, "unknown": unknown, "problems": dict(problems), **told}
    return Answer(data, "\n".join(lines), wrong)


def explained(answer: Any, pb: Any) -> Answer:
    """Render an ExplainResponse. Pure."""
    rows = [
        {
            "ip_version": one.ip_version,
            "allowed": one.allowed,
            "reason": one.reason,
            "policy": one.policy,
            "tier": pb.Policy.Tier.Name(one.tier).lower() if one.tier else "",
            "direction": one.direction.lower(),
            "rule": one.rule,
        }
        for one in answer.explained
    ]
    lines = [f"IPv{row['ip_version']}: {printable(str(row['reason']))}" for row in rows]
    allowed = all(row["allowed"] for row in rows)
    return Answer({"allowed": allowed, "explained": rows}, "\n".join(lines), not allowed)
