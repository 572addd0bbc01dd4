# SPDX-License-Identifier: Apache-2.0
"""The containerds' configurations: the node's, with differences. Pure."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from metropolis.test.bench.runtimes.model import Runtime

type Toml = dict[str, Any]

_RUNTIME = "io.containerd.cri.v1.runtime"

CNI_CONF_DIR = "/tmp/cni/net.d"
"""Where the bridge's configuration is written."""

# As in containerd's documentation (docs/cri/installation.md, and the script
# install-cni of its sources), except the IPv6 prefix: theirs is assigned.
BRIDGE: Toml = {
    "cniVersion": "1.0.0",
    "name": "containerd-net",
    "plugins": [
        {
            "type": "bridge",
            "bridge": "cni0",
            "isGateway": True,
            "ipMasq": True,
            "promiscMode": True,
            "ipam": {
                "type": "host-local",
                "ranges": [
                    [{"subnet": "10.88.0.0/16"}],
                    [{"subnet": "fd00:88::/64"}],
                ],
                "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
            },
        },
        {"type": "portmap", "capabilities": {"portMappings": True}},
    ],
}

# The differences of each. The first is as on the node; the second has
# containerd's defaults, with its `loopback` plugin; the third is how a node of
# stock packages would use our service.
_NETWORK: Mapping[Runtime, Toml | None] = {
    Runtime.OURS: None,
    Runtime.CNI: {"bin_dirs": ["/usr/lib/cni"], "conf_dir": CNI_CONF_DIR},
    Runtime.SHIM: {
        "bin_dirs": ["/usr/libexec/cni"],
        "conf_dir": "/etc/cni/net.d",
        "use_internal_loopback": True,
    },
}


@dataclass(frozen=True, slots=True)
class Place:
    """Where a containerd is: its programs, its files, its metrics."""

    runtime: Runtime
    number: int

    @property
    def path(self) -> str:
        """PATH: ours has its own shim of runc."""
        own = "/usr/libexec/ours:" if self.runtime is Runtime.OURS else ""
        return f"{own}/usr/sbin:/usr/bin"

    @property
    def program(self) -> str:
        folder = "/usr/libexec/ours" if self.runtime is Runtime.OURS else "/usr/bin"
        return f"{folder}/containerd"

    @property
    def root(self) -> str:
        return f"/var/lib/bench/{self.runtime}"

    @property
    def state(self) -> str:
        return f"/run/bench/{self.runtime}"

    @property
    def socket(self) -> str:
        return f"{self.state}/containerd.sock"

    @property
    def metrics(self) -> str:
        """Return where it serves its metrics: host and port."""
        return f"127.0.0.1:{1338 + self.number}"


def config(node: Toml, place: Place) -> Toml:
    """Return a configuration. node: the node's, parsed; not changed."""
    made: Toml = json.loads(json.dumps(node))
    made["root"] = place.root
    made["state"] = place.state
    made.setdefault("grpc", {})["address"] = place.socket
    made["metrics"] = {"address": place.metrics}
    network = _NETWORK[place.runtime]
    if network is not None:
        made.setdefault("plugins", {}).setdefault(_RUNTIME, {})["cni"] = network
    return made


def to_toml(tables: Toml) -> str:
    """Return TOML text. As in containerd's, arrays contain no tables."""
    return "\n".join(_lines(tables, ())) + "\n"


def _lines(table: Toml, name: tuple[str, ...]) -> Iterator[str]:
    if name:
        yield f"[{'.'.join(map(_value, name))}]"
    for key, value in table.items():
        if not isinstance(value, dict):
            yield f"{_value(key)} = {_value(value)}"
    for key, value in table.items():
        if isinstance(value, dict):
            yield from _lines(value, (*name, key))


def _value(value: object) -> str:
    """Return a TOML value. JSON of a string, number, boolean or array of these
    is also TOML, except surrogates and DEL.
    """
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
