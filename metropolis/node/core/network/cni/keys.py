# SPDX-License-Identifier: Apache-2.0
"""Keys of a network configuration beside the specification's; pure.

They are a plugin's own business, says the specification, and most plugins drop
a key that they do not know. So a configuration that was written for `bridge`
would seem to work here, without its VLAN. Keys of the CNI project's plugins are
known by name, in any case, as Go's JSON has them:

    taken     by other modules: mtu, routes, ipam, dns, args, and the rates and
              bursts of `bandwidth`
    accepted  what is done anyhow, or changes nothing here: isGateway
    one value accepted with that, refused with others: ipMasq true
    refused   what is not done: vlan. Not if the value asks for nothing

Another key is no error: the specification has it ignored, and the caller logs
it. Keys of `ipam` are in `routes`, those of runtimeConfig in `capabilities`.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Final

from metropolis.node.core.network.cni import limits
from metropolis.node.core.network.cni.capabilities import asks_for_nothing

# The specification has them, or libcni, or other modules read them.
_TAKEN: Final = frozenset(
    (
        *("cniVersion", "cniVersions", "name", "type", "capabilities", "runtimeConfig", "args"),
        *("ipam", "dns", "prevResult", "disableCheck", "disableGC", "loadOnlyInlinedPlugins"),
        *("mtu", "routes"),
    )
)
_RESERVED: Final = "cni.dev/"  # for the specification, by itself

ACCEPTED: Final = {
    "isGateway": "the node is the gateway",
    "isDefaultGateway": "each container has a default route by the node",
    "hairpinMode": "a container reaches itself by its host ports",
    "forceAddress": "there is no bridge that could have another address",
    "preserveDefaultVlan": "there is no VLAN",
    "macspoofchk": "what a container sends is routed; its MAC reaches no other",
    "enabledad": "no other container has the address",
    "markMasqBit": "it is portmap's means; no mark is needed",
    "dataDir": "it is where tuning keeps files; none are needed",
}
"""Why any value is accepted."""

ONE_VALUE: Final[Mapping[str, tuple[object, str]]] = {
    "ipMasq": (True, "what containers send outside is masqueraded"),
    "ipMasqBackend": ("nftables", "the rules are nftables'"),
    "snat": (True, "a container that connects to its own host port needs it"),
    "backend": ("nftables", "the rules are nftables'"),
    "ingressPolicy": ("open", "containers of a node reach each other"),
}
"""The value that is accepted, and why."""

_NO_BRIDGE: Final = "containers are routed, there is no bridge"
_NOT_PARENT: Final = "the interface is one of a pair of its own, of no other link of the node"
_NO_TUNING: Final = "interfaces are not tuned; chain the plugin `tuning` after this one"
_CAPABILITY: Final = "it is asked for by runtimeConfig, with the capability of this name"

REFUSED: Final = {
    "bridge": _NO_BRIDGE,
    "promiscMode": _NO_BRIDGE,
    "vlan": _NO_BRIDGE,
    "vlanTrunk": _NO_BRIDGE,
    "portIsolation": f"{_NO_BRIDGE}; containers of a node reach each other",
    "disableContainerInterface": "the interface is set up, with addresses",
    **dict.fromkeys(
        ("master", "mode", "linkInContainer", "bcqueuelen", "vlanId", "device", "hwaddr",
         "kernelpath", "pciBusID", "deviceID", "owner", "group", "multiQueue", "selinuxContext"),
        _NOT_PARENT,
    ),
    "masqAll": "a container sees the addresses of its clients",
    "externalSetMarkChain": "no chain of another is used",
    "conditionsV4": "a host port has no conditions",
    "conditionsV6": "a host port has no conditions",
    "unshapedSubnets": "a limit is for every peer",
    "shapedSubnets": "a limit is for every peer",
    "iptablesAdminChainName": "no chain of iptables is used",
    "firewalldZone": "no zone of firewalld is used",
    **dict.fromkeys(("sysctl", "promisc", "allmulti", "txQLen"), _NO_TUNING),
    "table": "chain the plugin that has it, `sbr` or `vrf`, after this one",
    "vrfname": "chain the plugin `vrf` after this one",
    "delegate": "no other plugin is executed",
    **dict.fromkeys(("ips", "mac", "portMappings", "bandwidth", "ipRanges"), _CAPABILITY),
}  # fmt: skip
"""Why it is refused, and what to do instead if it is not to remove the key."""

_ACCEPTED: Final = {key.lower() for key in ACCEPTED}
_ONE_VALUE: Final = {key.lower(): one for key, one in ONE_VALUE.items()}
_REFUSED: Final = {key.lower(): why for key, why in REFUSED.items()}


def refused(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield each key that asks for what is not done, with its value and why."""
    for key, value in config.items():
        name = key.lower()
        if value is None or key in _TAKEN:
            continue
        if name in _ONE_VALUE:
            wanted, why = _ONE_VALUE[name]
            if type(value) is not type(wanted) or value != wanted:
                yield key, f"{value!r:.80}: only {wanted!r} is possible: {why}"
        elif name in _REFUSED and not asks_for_nothing(value):
            yield key, f"{value!r:.80}: {_REFUSED[name]}"


def unknown(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the keys that are known to no plugin, in order."""
    return tuple(
        key
        for key in config
        if not (
            key in _TAKEN
            or key.startswith(_RESERVED)
            or key.lower() in (_ACCEPTED | _ONE_VALUE.keys() | _REFUSED.keys())
            or limits.is_key(key)
        )
    )
