# SPDX-License-Identifier: Apache-2.0
"""The operator's command: clusters, their nodes, one node's workloads and the
network policies for them.

    ./bazelw run //metropolis/cli/metroctl -- --endpoint 192.0.2.1 node list
    metroctl workload status                                      # on a node

The exit status is 0 for success, 1 when the command was refused or failed, 2
for wrong arguments. `workload` and `policy`: 1 reports that something is wrong
with the node's network, or a connection is denied, 2 also that there is no such
workload, 3 that the service does not answer.
"""

import argparse
import os
import select
import sys
import threading
from collections.abc import Sequence
from typing import Any, Final, NoReturn

from metropolis.cli.metroctl import cluster, policy, workload
from metropolis.cli.metroctl.output import FailedError
from metropolis.node import allocs

_EPILOG: Final = """\
environment, for what is not given:
  METROCTL_ENDPOINTS   endpoints of etcd, with commas between
  METROCTL_CA          file of the certificates that etcd's are signed by
  METROCTL_CERT        file of the operator's certificate
  METROCTL_KEY         file of its key

`cluster` and `node` work on etcd, from anywhere. `workload` and `policy` ask the
service on the node that they run on, and need none of these.

exit status: 0 done, 1 refused or failed, 2 wrong arguments; `workload` and
`policy` have more.
"""


_OF_NODE: Final[dict[str, Any]] = {"workload": workload, "policy": policy}


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the command line; exit with 2 when it is wrong."""
    parser = argparse.ArgumentParser(
        prog="metroctl",
        usage="%(prog)s [options] cluster|node|workload|policy ...",
        description="Make a cluster of nodes in etcd, see its nodes, remove them. Show the "
        "network of a node's workloads, and which connections of them pass.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--endpoint", action="append", metavar="HOST[:PORT]",
        help=f"of etcd, port {allocs.CURATOR_PORT} unless given; several: the first that answers",
    )  # fmt: skip
    parser.add_argument(
        "--ca", metavar="FILE",
        help="certificates that etcd's are signed by, PEM; required but for `workload` and "
        "`policy`",
    )  # fmt: skip
    parser.add_argument(
        "--cert", metavar="FILE", help="the operator's certificate, PEM; required with --ca"
    )
    parser.add_argument("--key", metavar="FILE", help="its key, PEM; required with --ca")
    # Also after the verb, where it is not set unless it is given.
    common = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for one, default in ((parser, False), (common, argparse.SUPPRESS)):
        one.add_argument(
            "--json", action="store_true", default=default, help="print one line of JSON"
        )
    nouns = parser.add_subparsers(
        dest="noun", required=True, metavar="cluster|node|workload|policy"
    )
    cluster.add_arguments(nouns, common)
    workload.add_arguments(nouns, common)
    policy.add_arguments(nouns, common)
    given = parser.parse_args(arguments)
    if given.noun not in _OF_NODE:
        cluster.complete(given, parser)
    return given


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return the exit status."""
    given = parse(sys.argv[1:] if arguments is None else arguments)
    if arguments is None and given.verb == "watch":
        threading.Thread(target=_end_with_reader, daemon=True).start()
    wrong = False
    try:
        for answer in _OF_NODE.get(given.noun, cluster).run(given):
            print(answer.as_json() if given.json else answer.text, flush=True)
            wrong = wrong or answer.wrong
    except FailedError as error:
        print(f"metroctl {given.noun} {given.verb}: {error}", file=sys.stderr)
        return error.status
    except KeyboardInterrupt:
        if given.verb != "watch":
            raise
    return 1 if wrong else 0


def _end_with_reader() -> None:
    """End the process when the reader of its output has gone: `watch | head -1`
    would otherwise last until the next event.
    """
    output = select.poll()
    output.register(1, 0)  # an error is reported in any case
    output.poll()
    os._exit(1)


def _exit() -> NoReturn:
    # What a locale does not have is escaped.
    if sys.stdout is not None:
        sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        status = main()
    except KeyboardInterrupt:
        status = 130
    except BrokenPipeError:  # `metroctl node list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 1
    except OSError as error:  # the disk of the output is full
        print(f"metroctl: standard output: {error.strerror}", file=sys.stderr)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 1
    sys.exit(status)


if __name__ == "__main__":
    _exit()
