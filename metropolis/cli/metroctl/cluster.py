# SPDX-License-Identifier: Apache-2.0
"""The commands about a cluster in etcd: their arguments, and the connection.

What takes time to import is imported once an argument or a command needs it.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from metropolis.cli.metroctl.output import Answer, FailedError

if TYPE_CHECKING:
    from metropolis.node.core.curator.records import PodNetwork

_EXAMPLES: Final = """\
a cluster of up to 256 nodes, with 254 IPv4 addresses each:
  metroctl cluster init --pod-network 10.200.0.0/16:24 \\
                        --pod-network fd00:200::/48:64
"""


def add_arguments(nouns: Any, common: argparse.ArgumentParser) -> None:
    """Add the nouns `cluster` and `node`. common: options of every command."""
    raw = argparse.RawDescriptionHelpFormatter
    shared: dict[str, Any] = {"parents": [common], "allow_abbrev": False}
    cluster = nouns.add_parser(
        "cluster", help="the cluster itself", description="The cluster itself.", **shared
    ).add_subparsers(dest="verb", required=True, metavar="init|show|set-networks")
    init = cluster.add_parser(
        "init", help="write its configuration, once", **shared,
        description="Write the cluster's configuration, once. The same again is fine; another "
        "one is refused.", epilog=_EXAMPLES, formatter_class=raw,
    )  # fmt: skip
    correct = cluster.add_parser(
        "set-networks", help="correct its pod networks", **shared,
        description="Replace the cluster's pod networks, such as one that overlaps addresses in "
        "use. Nodes claim prefixes of the new ones at once. Pods that run keep their addresses; "
        "those of networks that are no more are not reached by other nodes.",
    )  # fmt: skip
    for one in (init, correct):
        one.add_argument(
            "--pod-network", action="append", required=True, type=_pod_network,
            metavar="PREFIX:LENGTH",
            help="addresses of all pods, and the length of each node's prefix of them; at least "
            "one. The first of a family is used up before the next",
        )  # fmt: skip
    init.add_argument(
        "--mtu", type=_mtu, metavar="BYTES",
        help="of the overlay: at most what the underlay carries less 80; else each node derives "
        "it from its uplink",
    )  # fmt: skip
    cluster.add_parser(
        "show", help="print it, and what is used of it", **shared,
        description="Print the configuration, and how many prefixes are held or freed.",
    )  # fmt: skip

    node = nouns.add_parser(
        "node", help="its nodes", description="The nodes of the cluster.", **shared
    ).add_subparsers(dest="verb", required=True, metavar="list|remove|forget|rotate-key")
    node.add_parser(
        "list", help="print all nodes", **shared,
        description="Print all nodes. ALIVE: its record is there; it goes half a minute after "
        "the node went.",
    )  # fmt: skip
    for verb, short, long in (
        ("remove", "free its prefixes, and keep it out",
         "Free a node's prefixes, and keep it out until it is forgotten. Its pods lose their "
         "network to other nodes. Switch it off first when it is cut off from etcd: it would go "
         "on using its prefixes, which others get now."),
        ("forget", "let a removed node join again",
         "Let a removed node join again; it does so at once when it runs."),
        ("rotate-key", "ask it for a new WireGuard key",
         "Ask a node for a new WireGuard key. Its peers know it before it is used."),
    ):  # fmt: skip
        one = node.add_parser(verb, help=short, description=long, **shared)
        one.add_argument("node", type=_node_id, metavar="ID", help="as in `node list`")


def complete(given: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """Check what is given, and fill in from the environment; exit with 2 when
    something is wrong or missing.
    """
    from metropolis.node.core.config import etcd_endpoint
    from metropolis.node.core.curator import records
    from metropolis.node.core.curator.credentials import Files

    networks: list[PodNetwork] = getattr(given, "pod_network", [])
    for index in range(len(networks)):
        try:
            records.check_apart(networks[: index + 1])
        except records.RecordError as error:
            parser.error(f"argument --pod-network: {error}")
    texts = given.endpoint or os.environ.get("METROCTL_ENDPOINTS", "").split(",")
    given.endpoints = []
    for text in filter(None, map(str.strip, texts)):
        endpoint = etcd_endpoint(text)
        if endpoint is None:
            parser.error(f"endpoint {records.quoted(text)} is not HOST[:PORT], IPv6 in brackets")
        given.endpoints.append(endpoint)
    if not given.endpoints:
        parser.error("no endpoint of etcd: give --endpoint, or set METROCTL_ENDPOINTS")
    paths = []
    for name in ("ca", "cert", "key"):
        variable = f"METROCTL_{name.upper()}"
        path = getattr(given, name) or os.environ.get(variable)
        if not path:
            parser.error(f"no file of credentials: give --{name}, or set {variable}")
        # `bazel run` changes the directory.
        paths.append(str(Path(os.environ.get("BUILD_WORKING_DIRECTORY", "."), path)))
    given.files = Files(*paths)


def _pod_network(text: str) -> PodNetwork:
    from metropolis.cli.metroctl import commands
    from metropolis.node.core.curator.records import RecordError

    try:
        return commands.pod_network(text)
    except RecordError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _mtu(text: str) -> int:
    from metropolis.node.core.config import MTU_MAX, MTU_MIN
    from metropolis.node.core.curator import records

    if not (text.isascii() and text.isdecimal() and MTU_MIN <= int(text[:9]) <= MTU_MAX):
        raise argparse.ArgumentTypeError(
            f"{records.quoted(text)} is not between {MTU_MIN} and {MTU_MAX}"
        )
    return int(text)


def _node_id(text: str) -> str:
    from metropolis.node.core.config import is_node_id
    from metropolis.node.core.curator import records

    if not is_node_id(text):
        raise argparse.ArgumentTypeError(f"{records.quoted(text)} cannot name a node")
    return text


def run(given: argparse.Namespace) -> Iterator[Answer]:
    """Connect and run the command. Raises FailedError."""
    import asyncio

    from metropolis.cli.metroctl import commands
    from metropolis.node.core.curator import etcd
    from metropolis.node.core.curator.administration import Refused
    from metropolis.node.core.curator.credentials import CredentialsError

    command = commands.COMMANDS[f"{given.noun} {given.verb}"]

    async def answer() -> Answer:
        async with await etcd.dial(given.endpoints, given.files) as connection:
            return await command(connection, given)

    try:
        yield asyncio.run(answer())
    except (CredentialsError, etcd.EtcdError, Refused) as error:
        raise FailedError(str(error)) from error
