# SPDX-License-Identifier: Apache-2.0
"""Reads what a workload is, for network policies. Pure."""

from collections.abc import Mapping
from typing import Final

from metropolis.node.core.network.workloads.errors import InvalidArgument
from metropolis.node.core.network.workloads.model import Identity
from metropolis.node.core.network.workloads.spec import workload_pb2 as pb
from metropolis.node.core.network.workloads.validate import show

LABELS_MAX: Final = 128
"""For a workload or a namespace."""
PORTS_MAX: Final = 256
"""Named ports of a workload."""
TEXT_MAX: Final = 512
"""Characters of a name, a key or a value."""

_PROTOCOLS: Final = ("tcp", "udp", "sctp")


def identity(message: pb.Identity) -> Identity:
    """Read an identity. Raises InvalidArgument."""
    if not message.namespace:
        if message.labels or message.ports:
            raise InvalidArgument(
                "identity.namespace: is empty; labels and ports need one",
                field="identity.namespace",
            )
        return Identity()
    return Identity(
        text("identity.namespace", message.namespace),
        labels("identity.labels", message.labels),
        _ports(message),
    )


def message_of(one: Identity) -> pb.Identity:
    """Return the message that `identity` reads."""
    ports = [
        pb.ContainerPort(name=name, protocol=protocol, port=port)
        for name, (protocol, port) in one.ports.items()
    ]
    return pb.Identity(namespace=one.namespace or "", labels=one.labels, ports=ports)


def labels(path: str, found: Mapping[str, str]) -> dict[str, str]:
    """Check labels. Raises InvalidArgument."""
    if len(found) > LABELS_MAX:
        raise InvalidArgument(f"{path}: at most {LABELS_MAX} are possible", field=path)
    for key, value in found.items():
        text(f"{path} key", key)
        if len(value) > TEXT_MAX:
            raise _wrong(f"{path}[{show(key)}]", value, f"must have at most {TEXT_MAX} characters")
    return dict(found)


def text(path: str, value: str) -> str:
    """Check a name. Raises InvalidArgument."""
    if not 1 <= len(value) <= TEXT_MAX or not value.isprintable():
        raise _wrong(path, value, f"must be 1 to {TEXT_MAX} printable characters")
    return value


def _ports(message: pb.Identity) -> dict[str, tuple[str, int]]:
    if len(message.ports) > PORTS_MAX:
        path = "identity.ports"
        raise InvalidArgument(f"{path}: at most {PORTS_MAX} are possible", field=path)
    found: dict[str, tuple[str, int]] = {}
    for number, one in enumerate(message.ports):
        path = f"identity.ports[{number}]"
        if one.name in found:
            raise _wrong(f"{path}.name", one.name, "is there twice")
        protocol = one.protocol or _PROTOCOLS[0]
        if protocol not in _PROTOCOLS:
            raise _wrong(f"{path}.protocol", protocol, f"must be one of {', '.join(_PROTOCOLS)}")
        if not 1 <= one.port <= 0xFFFF:
            most = f"{path}.port {one.port}: must be 1 to 65535"
            raise InvalidArgument(most, field=f"{path}.port")
        found[text(f"{path}.name", one.name)] = (protocol, one.port)
    return found


def _wrong(path: str, value: str, why: str) -> InvalidArgument:
    return InvalidArgument(f"{path} {show(value)}: {why}", field=path)
