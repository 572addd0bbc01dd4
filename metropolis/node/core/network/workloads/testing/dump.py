# SPDX-License-Identifier: Apache-2.0
"""The kernel's objects of attachments, compared exactly. Only pyroute2 reads
them.

A namespace is a multiset of texts, one for each object, as from lab.objects.
The objects that an attachment adds to the host and to its pod are its *gain*;
its host index, which differs each time, is replaced by a word. So any state can
be compared with the base and the gains of the expected attachments.

The kernel makes the local route of an IPv6 address a moment after it has added
the address, also without duplicate address detection (net/ipv6/addrconf.c,
addrconf_dad_work): hence take_settled and await_state.

The pod's `lo` is ignored: an attach that was killed may leave it up. It is the
pod's own, ends with it, and every attach sets it up. So are routing rules that
lead to an empty table, which do nothing: an attach that was killed, or a Detach
without the namespace's path, may leave one. datapath.further_test shows that
others leave none.
"""

import re
import time
from collections import Counter
from dataclasses import dataclass

from pyroute2 import IPRoute

from metropolis.node import allocs
from metropolis.node.core.network.workloads.testing.lab import Pod, await_equal, objects

type Objects = Counter[str]

_QUIET_S = 0.1
_WAIT_S = 5.0
_LOOPBACK = re.compile(r"'(IFLA_IFNAME|IFA_LABEL)': 'lo'|'(index|RTA_OIF)': '1'")

_TABLE = re.compile(r"'RTA_TABLE': '(\d+)'")
_RULE = re.compile(rf"'FRA_TABLE': '(\d+)'.*'FRA_PRIORITY': '{allocs.FURTHER_RULE}'")


@dataclass(frozen=True)
class State:
    """The objects of the host, and of the pods by name."""

    host: Objects
    pods: dict[str, Objects]

    def minus(self, other: State) -> State:
        """Return the additional objects; AssertionError if one is missing."""
        lost = other.host - self.host
        assert not lost, f"the host lacks {list(lost)[:3]}"
        for name, pod in other.pods.items():
            lost = pod - self.pods[name]
            assert not lost, f"{name} lacks {list(lost)[:3]}"
        pods = {name: self.pods[name] - pod for name, pod in other.pods.items()}
        return State(self.host - other.host, pods)

    def plus(self, other: State) -> State:
        """Return the sum of both."""
        pods = {name: pod + other.pods[name] for name, pod in self.pods.items()}
        return State(self.host + other.host, pods)


def indexes() -> dict[int, str]:
    """Return a word for the index of each workload's link, or a similar one."""
    with IPRoute() as witness:
        return {
            int(link["index"]): str(link.get("ifname"))
            for link in witness.get_links()
            if str(link.get("ifname")).startswith("wl")
            or link.get("group") == allocs.LINK_GROUP_WORKLOAD
        }


def take(pods: dict[str, Pod]) -> State:
    """Return the state of the calling thread's namespace and of the pods."""
    words = indexes()

    def neutral(text: str) -> str:
        for index, word in words.items():
            text = re.sub(rf"\b{index}\b", f"<{word}>", text)
            text = re.sub(rf"(mw[0-9][pr])\.{index:x}\.", rf"\1.<{word}>.", text)
        return text

    inside = {name: Counter(map(neutral, _effective(pod.objects()))) for name, pod in pods.items()}
    return State(Counter(map(neutral, objects())), inside)


def _effective(found: list[str]) -> list[str]:
    """Return the objects of a pod without those that do nothing; see above."""
    tables = {table[1] for one in found if (table := _TABLE.search(one))}
    return [
        one
        for one in found
        if not _LOOPBACK.search(one) and ((rule := _RULE.search(one)) is None or rule[1] in tables)
    ]


def take_settled(pods: dict[str, Pod]) -> State:
    """Return the state once it has stayed the same for a while."""
    state = take(pods)
    since = time.monotonic()
    while time.monotonic() - since < _QUIET_S:
        now = take(pods)
        if now != state:
            state, since = now, time.monotonic()
    return state


def await_state(pods: dict[str, Pod], expected: State) -> State:
    """Wait for the expected state; return the last one."""
    return await_equal(lambda: take(pods), expected, _WAIT_S)
