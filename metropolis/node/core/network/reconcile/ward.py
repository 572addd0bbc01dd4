# SPDX-License-Identifier: Apache-2.0
"""Something whose state in the kernel is known, watched and restored."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Repair:
    """One thing that was not as it should be.

    key: the same each time the same thing is wrong ("sysctl
    net.ipv4.ip_forward", "route 10.192.0.7/32"): repairs are counted by it.
    what: for people, the found and the wanted state. error: why it could not
    be restored; "": it was. left: it was not tried, since `allow` refused.
    """

    key: str
    what: str
    error: str = ""
    left: bool = False


type Allow = Callable[[str], bool]
"""Returns whether the thing with that key may be restored once more."""


class Ward(Protocol):
    """One look compares with the kernel and restores what differs."""

    @property
    def name(self) -> str:
        """For logs and counters: "rules", "workloads"."""

    def look(self, allow: Allow) -> Sequence[Repair]:
        """Compare and put back; return what was wrong. Blocks.

        A repair that the kernel refuses is a Repair with an error. Raises
        NetlinkError, OSError or WorkloadError when the kernel does not say what
        there is.
        """
