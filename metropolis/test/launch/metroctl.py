# SPDX-License-Identifier: Apache-2.0
"""metroctl for a launch that runs: no endpoint, certificate or socket to find.

    ./bazelw metroctl node list
    ./bazelw metroctl cluster show
    ./bazelw metroctl workload list
    ./bazelw metroctl --on node-2 workload list

`cluster` and `node` are of launch-cluster; `workload` asks one node, of several
that of --on. Everything else is metroctl's, and so is the exit status.
"""

import sys
from collections.abc import Sequence

from metropolis.cli.metroctl import main as metroctl
from metropolis.test.launch import etcd_socket, state


def split(arguments: Sequence[str]) -> tuple[str | None, str, list[str]]:
    """Return the node of --on, metroctl's noun ("": none), its arguments."""
    rest = list(arguments)
    node = None
    if rest[:1] == ["--on"]:
        if len(rest) < 2:
            raise state.StateError("--on: want the name of a node, such as node-2")
        node, rest = rest[1], rest[2:]
    noun = next((word for word in rest if word in ("cluster", "node", "workload")), "")
    return node, noun, rest


def run(arguments: Sequence[str]) -> int:
    """Run metroctl; return its exit status. Raises StateError."""
    node, noun, rest = split(arguments)
    if not noun or "-h" in rest or "--help" in rest:
        return metroctl.main(rest)
    launch = state.only_launch(state.root())
    if noun == "workload":
        place = rest.index(noun) + 1
        options = ["--socket", str(launch.node(node, "metroctl --on NODE") / state.WORKLOAD_SOCKET)]
        return metroctl.main([*rest[:place], *options, *rest[place:]])
    try:
        paths = etcd_socket.credentials(launch.directory)
    except FileNotFoundError:
        raise state.StateError(
            f"this launch has no cluster, so there is no `{noun}`; it has `workload`; "
            "start one: ./bazelw run //metropolis:launch-cluster"
        ) from None
    with etcd_socket.port_to(launch.directory / etcd_socket.SOCKET) as port:
        options = ["--endpoint", f"{etcd_socket.HOST}:{port}"]
        for name, path in paths.items():
            options += [f"--{name}", path]
        return metroctl.main([*options, *rest])


def main(arguments: Sequence[str]) -> int:
    """Run the command; return the exit status."""
    if arguments[:1] in (["-h"], ["--help"]):
        print(__doc__)
    try:
        return run(arguments)
    except state.StateError as error:
        print(f"metroctl: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
