# SPDX-License-Identifier: Apache-2.0
"""The operator's command: make a cluster, list its nodes, remove them.

    ./bazelw run //metropolis/cli/metroctl -- --endpoint 192.0.2.1 node list

The exit status is 0 for success, 1 when the command was refused or failed, 2
for wrong arguments.
"""

import argparse
import asyncio
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NoReturn

from metropolis.cli.metroctl import commands
from metropolis.cli.metroctl.output import Answer
from metropolis.node import allocs
from metropolis.node.core.config import MTU_MAX, MTU_MIN, etcd_endpoint, is_node_id
from metropolis.node.core.curator import etcd, records
from metropolis.node.core.curator.administration import Refused
from metropolis.node.core.curator.credentials import CredentialsError, Files
from metropolis.node.core.curator.etcd import EtcdError
from metropolis.node.core.curator.records import PodNetwork, RecordError

_ENVIRONMENT: Final = """\
environment, for what is not given:
  METROCTL_ENDPOINTS   endpoints of etcd, with commas between
  METROCTL_CA          file of the certificates that etcd's are signed by
  METROCTL_CERT        file of the operator's certificate
  METROCTL_KEY         file of its key

exit status: 0 done, 1 refused or failed, 2 wrong arguments.
"""

_EXAMPLES: Final = """\
a cluster of up to 256 nodes, with 254 IPv4 addresses each:
  metroctl cluster init --pod-network 10.200.0.0/16:24 \\
                        --pod-network fd00:200::/48:64
"""


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the command line; exit with 2 when it is wrong."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="metroctl",
        description="Make a cluster of nodes in etcd, see its nodes, remove them.",
        epilog=_ENVIRONMENT,
        formatter_class=raw,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--endpoint", action="append", metavar="HOST[:PORT]",
        help=f"of etcd, port {allocs.CURATOR_PORT} unless given; several: the first that answers",
    )  # fmt: skip
    parser.add_argument("--ca", metavar="FILE", help="certificates that etcd's are signed by, PEM")
    parser.add_argument("--cert", metavar="FILE", help="the operator's certificate, PEM")
    parser.add_argument("--key", metavar="FILE", help="its key, PEM")
    parser.add_argument("--json", action="store_true", help="print one line of JSON")
    nouns = parser.add_subparsers(dest="noun", required=True, metavar="cluster|node")

    cluster = nouns.add_parser(
        "cluster", help="the cluster itself", description="The cluster itself."
    ).add_subparsers(dest="verb", required=True, metavar="init|show|set-networks")
    init = cluster.add_parser(
        "init", help="write its configuration, once",
        description="Write the cluster's configuration, once. The same again is fine; another "
        "one is refused.", epilog=_EXAMPLES, formatter_class=raw,
    )  # fmt: skip
    correct = cluster.add_parser(
        "set-networks", help="correct its pod networks",
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
        "show", help="print it, and what is used of it",
        description="Print the configuration, and how many prefixes are held or freed.",
    )  # fmt: skip

    node = nouns.add_parser(
        "node", help="its nodes", description="The nodes of the cluster."
    ).add_subparsers(dest="verb", required=True, metavar="list|remove|forget|rotate-key")
    node.add_parser(
        "list", help="print all nodes",
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
        one = node.add_parser(verb, help=short, description=long)
        one.add_argument("node", type=_node_id, metavar="ID", help="as in `node list`")

    given = parser.parse_args(arguments)
    networks: list[PodNetwork] = getattr(given, "pod_network", [])
    for index in range(len(networks)):
        try:
            records.check_apart(networks[: index + 1])
        except RecordError as error:
            parser.error(f"argument --pod-network: {error}")
    _connection(given, parser)
    return given


def _connection(given: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """Fill in from the environment; exit with 2 when something is missing."""
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
    try:
        return commands.pod_network(text)
    except RecordError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _mtu(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and MTU_MIN <= int(text[:9]) <= MTU_MAX):
        raise argparse.ArgumentTypeError(
            f"{records.quoted(text)} is not between {MTU_MIN} and {MTU_MAX}"
        )
    return int(text)


def _node_id(text: str) -> str:
    if not is_node_id(text):
        raise argparse.ArgumentTypeError(f"{records.quoted(text)} cannot name a node")
    return text


async def run(given: argparse.Namespace) -> Answer:
    """Connect and run. Raises CredentialsError, EtcdError or Refused."""
    command = commands.COMMANDS[f"{given.noun} {given.verb}"]
    async with await etcd.dial(given.endpoints, given.files) as connection:
        return await command(connection, given)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return the exit status."""
    given = parse(sys.argv[1:] if arguments is None else arguments)
    try:
        answer = asyncio.run(run(given))
    except (CredentialsError, EtcdError, Refused) as error:
        print(f"metroctl {given.noun} {given.verb}: {error}", file=sys.stderr)
        return 1
    print(answer.as_json() if given.json else answer.text)
    return 0


def _exit() -> NoReturn:
    try:
        status = main()
        sys.stdout.flush()
    except KeyboardInterrupt:
        status = 130
    except BrokenPipeError:  # `metroctl node list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 1
    sys.exit(status)


if __name__ == "__main__":
    _exit()
