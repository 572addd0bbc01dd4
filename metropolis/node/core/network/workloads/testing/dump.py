# SPDX-License-Identifier: Apache-2.0
"""What attachments are to the kernel, compared exactly. By pyroute2 alone.

A namespace is a multiset of texts, an object each, as lab.objects has them.
What an attachment adds to the host and to its pod is its *gain*; its host
index, another one each time, is written as a word. So any state can be compared
with the base and the gains of those attachments that should be there.

The kernel makes the local route of an IPv6 address a moment after it has added
the address, also without duplicate address detection (net/ipv6/addrconf.c,
addrconf_dad_work): hence take_settled and await_state.

Of the pod's `lo` nothing counts: an attach that was killed may leave it up. It
is the pod's own, ends with it, and every attach would set it up.
"""

import re
import time
from collections import Counter
from dataclasses import dataclass

from pyroute2 import IPRoute

from metropolis.node import allocs
from metropolis.node.core.network.workloads.testing.lab import Pod, objects

type Objects = Counter[str]

_QUIET_S = 0.1
_WAIT_S = 5.0
_LOOPBACK = re.compile(r"'(IFLA_IFNAME|IFA_LABEL)': 'lo'|'(index|RTA_OIF)': '1'")


@dataclass(frozen=True)
class State:
    """Of the host, and of the pods by name."""

    host: Objects
    pods: dict[str, Objects]

    def minus(self, other: State) -> State:
        """What is there more; AssertionError if something is there less."""
        lost = other.host - self.host
        assert not lost, f"the host lacks {list(lost)[:3]}"
        for name, pod in other.pods.items():
            lost = pod - self.pods[name]
            assert not lost, f"{name} lacks {list(lost)[:3]}"
        pods = {name: self.pods[name] - pod for name, pod in other.pods.items()}
        return State(self.host - other.host, pods)

    def plus(self, other: State) -> State:
        """Both."""
        pods = {name: pod + other.pods[name] for name, pod in self.pods.items()}
        return State(self.host + other.host, pods)


def indexes() -> dict[int, str]:
    """A word for the index of each link of the workloads' group or form."""
    with IPRoute() as witness:
        return {
            int(link["index"]): str(link.get("ifname"))
            for link in witness.get_links()
            if str(link.get("ifname")).startswith("wl")
            or link.get("group") == allocs.LINK_GROUP_WORKLOAD
        }


def take(pods: dict[str, Pod]) -> State:
    """The state now, of the calling thread's namespace and of the pods."""
    words = indexes()

    def neutral(text: str) -> str:
        for index, word in words.items():
            text = re.sub(rf"\b{index}\b", f"<{word}>", text)
            text = re.sub(rf"(mw2[pr])\.{index:x}\.", rf"\1.<{word}>.", text)
        return text

    inside = {
        name: Counter(neutral(text) for text in pod.objects() if not _LOOPBACK.search(text))
        for name, pod in pods.items()
    }
    return State(Counter(map(neutral, objects())), inside)


def take_settled(pods: dict[str, Pod]) -> State:
    """The state once it has stayed the same for a while."""
    state = take(pods)
    since = time.monotonic()
    while time.monotonic() - since < _QUIET_S:
        now = take(pods)
        if now != state:
            state, since = now, time.monotonic()
    return state


def await_state(pods: dict[str, Pod], expected: State) -> State:
    """The state as soon as it is what is expected, or what it is at last."""
    deadline = time.monotonic() + _WAIT_S
    while (state := take(pods)) != expected and time.monotonic() < deadline:
        pass
    return state
