# SPDX-License-Identifier: Apache-2.0
"""The process's own cgroup, by which nftables rules recognise its sockets.

A socket belongs for its life to the cgroup of the process that made it, and a
rule can match it. So the rules recognise a connection of this process without
its ports, and no workload can imitate one.
ports, and no workload can have one like it.

Under an init that gives services no cgroups (runit, the node image's) the
process makes one and moves into it. Elsewhere (systemd) it has one already,
and moving out of it would hide it from its service manager.
"""

from __future__ import annotations

import logging
import os
from typing import Final

from osbase.netlink.errors import errno_name

NAME: Final = "metropolis-node-core"
ROOT: Final = "/sys/fs/cgroup"

log = logging.getLogger(__name__)


def own(root: str = ROOT, proc: str = "/proc/self/cgroup") -> str | None:
    """Return the path of this process's cgroup below `root`; make one if there
    is none. Idempotent. Call it before the sockets are made that rules match.

    Returns None, and logs why, if there is no cgroup2 at `root`, or it is not
    writable.
    """
    try:
        with open(proc, encoding="utf-8", errors="surrogateescape") as file:
            path = path_of(file.read())
        if path is None or not os.path.exists(os.path.join(root, "cgroup.procs")):
            log.info("no cgroup2 at %s: own connections are tracked like any other", root)
            return None
        if path:
            return path
        made = os.path.join(root, NAME)
        os.makedirs(made, exist_ok=True)
        with open(os.path.join(made, "cgroup.procs"), "w") as file:
            file.write(str(os.getpid()))
    except OSError as error:
        log.warning(
            "make or join cgroup %s/%s: %s; own connections are tracked like any other",
            root,
            NAME,
            errno_name(error.errno or 0),
        )
        return None
    return NAME


def path_of(text: str) -> str | None:
    """Return the path in cgroup2, without the first slash, from the text of
    /proc/PID/cgroup (cgroups(7)): "" in the root; None without cgroup2, or
    outside of this process's cgroup namespace.
    """
    for line in text.splitlines():
        if line.startswith("0::/") and "/.." not in line:
            return line.removeprefix("0::/")
    return None
