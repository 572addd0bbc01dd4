# SPDX-License-Identifier: Apache-2.0
"""What runtimes ask for besides an interface, and what becomes of it; pure.

A runtime passes what a configuration's `capabilities` declare, as runtimeConfig
(CNI conventions, CONVENTIONS.md of containernetworking/cni). Each capability of
the conventions, and those that containerd and CRI-O have beyond them, is in
CAPABILITIES: done, ignored since nothing is lost by it, or refused by name, so
that nobody waits for what was dropped. One that is not in the table is refused.
One that asks for nothing (no entries, rates of 0) is never refused.

    done       ips, mac, dns
    ignored    io.kubernetes.cri.pod-annotations, cgroupPath
    refused    portMappings, bandwidth, ipRanges, aliases, deviceID,
               infinibandGUID

Callers have two other ways to ask for an address and a MAC: `args.cni` of the
configuration (`ips`, `mac`; Multus writes it from a pod's cni-args), and
CNI_ARGS (`IP`, `MAC`). The capability goes before these, and `args.cni` before
CNI_ARGS, as in the CNI project's `static`. Whatever else is in `args.cni` is
ignored, as the conventions have it; the same for what is in CNI_ARGS with
IgnoreUnknown, without which it is refused. K8S_... are labels and accepted.
"""

import enum
from dataclasses import dataclass
from typing import Any


class Fate(enum.Enum):
    """What becomes of a capability."""

    DONE = enum.auto()
    IGNORED = enum.auto()
    REFUSED = enum.auto()


@dataclass(frozen=True)
class Capability:
    """why: for people; of what is refused, what to do instead."""

    fate: Fate
    why: str


_UNKNOWN = Capability(Fate.REFUSED, "it is not known here")
_REMOVE = "remove it from the plugin's capabilities"

CAPABILITIES = {
    "ips": Capability(Fate.DONE, "the interface has these addresses, one per family"),
    "mac": Capability(Fate.DONE, "the interface has it"),
    "dns": Capability(Fate.DONE, "it is passed on to the result"),
    "io.kubernetes.cri.pod-annotations": Capability(
        Fate.IGNORED, "annotations describe the pod, and ask for nothing of the network"
    ),
    "cgroupPath": Capability(
        Fate.IGNORED, "it says where the pod's processes are; the network does not go by these"
    ),
    "portMappings": Capability(Fate.REFUSED, f"host ports are not supported yet; {_REMOVE}"),
    "bandwidth": Capability(Fate.REFUSED, f"limits are not supported yet; {_REMOVE}"),
    "ipRanges": Capability(
        Fate.REFUSED, f"addresses come from the prefixes of the node; {_REMOVE}, or ask by `ips`"
    ),
    "aliases": Capability(Fate.REFUSED, f"pods have no names in a DNS server; {_REMOVE}"),
    "deviceID": Capability(
        Fate.REFUSED, f"the interface is a new one, none that a device gives; {_REMOVE}"
    ),
    "infinibandGUID": Capability(Fate.REFUSED, f"the interface is Ethernet; {_REMOVE}"),
}


def refusal(name: str) -> str:
    """Why a capability is refused; "" if it is not."""
    capability = CAPABILITIES.get(name, _UNKNOWN)
    return capability.why if capability.fate is Fate.REFUSED else ""


def asks_for_nothing(value: Any) -> bool:
    """Whether there is nothing in it but zeroes and empty things."""
    if isinstance(value, dict):
        return all(asks_for_nothing(one) for one in value.values())
    if isinstance(value, list):
        return all(asks_for_nothing(one) for one in value)
    return not value
