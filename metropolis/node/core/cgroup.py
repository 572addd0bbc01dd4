# SPDX-License-Identifier: Apache-2.0
"""The process's own cgroup, by which rules know its sockets.

A socket belongs for its life to the cgroup of the process that made it, and a
rule can ask for that: so a connection of this process is known without its
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
    """Return the path of this process's cgroup below `root`, after making it
    if there is none yet; the same again gives the same. To be called before
    the sockets that it is to be known by are made.

    None, with a word in the log: there is no cgroup2 at `root`, or it may not
    be written.
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
    """The path in cgroup2, without the first slash, of /proc/PID/cgroup's text
    (cgroups(7)); "" in the root, None without cgroup2, or outside of what this
    process sees.
    """
    for line in text.splitlines():
        if line.startswith("0::/") and "/.." not in line:
            return line.removeprefix("0::/")
    return None
