# SPDX-License-Identifier: Apache-2.0
"""The capabilities that runtimes request, and their support; pure.

A runtime passes those that a configuration's `capabilities` declare, as
runtimeConfig (CNI conventions, CONVENTIONS.md of containernetworking/cni). Each
capability of the conventions, and those that containerd and CRI-O add, is in
CAPABILITIES: done, ignored since nothing is lost by it, or refused by name, so
that nothing is dropped silently. A capability that is not in the table is
refused. A value that asks for nothing (no entries, rates of 0) never is.

    done       ips, mac, dns, portMappings, bandwidth
    ignored    io.kubernetes.cri.pod-annotations, cgroupPath
    refused    ipRanges, aliases, deviceID, infinibandGUID

Callers have two other ways to ask for an address and a MAC: `args.cni` of the
configuration (`ips`, `mac`; Multus writes it from a pod's cni-args), and
CNI_ARGS (`IP`, `MAC`). The capability has priority, then `args.cni`, then
CNI_ARGS, as in CNI's `static` plugin. Other keys of `args.cni` are ignored,
as the conventions demand; other keys of CNI_ARGS are ignored with
IgnoreUnknown, and refused without. K8S_... are labels and accepted. MTU and
routes are no capabilities, but parts of the configuration: see `routes`.
"""

import enum
from dataclasses import dataclass
from typing import Any


class Support(enum.Enum):
    """How a capability is supported."""

    DONE = enum.auto()
    IGNORED = enum.auto()
    REFUSED = enum.auto()


@dataclass(frozen=True)
class Capability:
    """why: for people; for a refused one, with the alternative."""

    fate: Support
    why: str


_UNKNOWN = Capability(Support.REFUSED, "it is not known here")
_REMOVE = "remove it from the plugin's capabilities"

CAPABILITIES = {
    "ips": Capability(Support.DONE, "the interface has these addresses, one per family"),
    "mac": Capability(Support.DONE, "the interface has it"),
    "dns": Capability(Support.DONE, "it is passed on to the result"),
    "portMappings": Capability(Support.DONE, "ports of the node lead to the container's"),
    "bandwidth": Capability(Support.DONE, "what it receives and sends is limited"),
    "io.kubernetes.cri.pod-annotations": Capability(
        Support.IGNORED, "annotations describe the pod, and ask for nothing of the network"
    ),
    "cgroupPath": Capability(
        Support.IGNORED, "it says where the pod's processes are; the network does not go by these"
    ),
    "ipRanges": Capability(
        Support.REFUSED, f"addresses come from the prefixes of the node; {_REMOVE}, or ask by `ips`"
    ),
    "aliases": Capability(Support.REFUSED, f"pods have no names in a DNS server; {_REMOVE}"),
    "deviceID": Capability(
        Support.REFUSED, f"the interface is a new one, none that a device gives; {_REMOVE}"
    ),
    "infinibandGUID": Capability(Support.REFUSED, f"the interface is Ethernet; {_REMOVE}"),
}


def refusal(name: str) -> str:
    """Return why a capability is refused; "" if it is not."""
    capability = CAPABILITIES.get(name, _UNKNOWN)
    return capability.why if capability.fate is Support.REFUSED else ""


def asks_for_nothing(value: Any) -> bool:
    """Return whether it has only zeroes and empty values."""
    if isinstance(value, dict):
        return all(asks_for_nothing(one) for one in value.values())
    if isinstance(value, list):
        return all(asks_for_nothing(one) for one in value)
    return not value
