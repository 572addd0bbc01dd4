# SPDX-License-Identifier: Apache-2.0
"""What a workload is, by its message: read, or refused by the path."""

from typing import Any

import pytest

from metropolis.node.core.network.workloads.api.identity import (
    LABELS_MAX,
    PORTS_MAX,
    TEXT_MAX,
    identity,
    message_of,
)
from metropolis.node.core.network.workloads.api.wire import attach_intent
from metropolis.node.core.network.workloads.errors import InvalidArgument
from metropolis.node.core.network.workloads.model import Identity
from metropolis.node.core.network.workloads.spec import workload_pb2 as pb

NETNS = pb.NetNSAttachment(netns_path="/a", if_name="eth0")


def port(name: str = "http", number: int = 80, protocol: str = "") -> pb.ContainerPort:
    return pb.ContainerPort(name=name, port=number, protocol=protocol)


@pytest.mark.parametrize(
    "said",
    [
        Identity(),
        Identity("shop"),
        Identity("shop", {"app": "web", "empty": ""}),
        Identity("shop", {}, {"http": ("tcp", 80), "dns": ("udp", 65535), "s": ("sctp", 1)}),
        Identity("n" * TEXT_MAX, {"k" * TEXT_MAX: "v" * TEXT_MAX}),
        Identity("shop", {str(number): "" for number in range(LABELS_MAX)}),
        Identity("shop", {}, {str(number): ("tcp", 80) for number in range(PORTS_MAX)}),
    ],
)
def test_what_is_written_is_read(said: Identity) -> None:
    assert identity(message_of(said)) == said
    request = pb.AttachRequest(workload_id="w", netns=NETNS, identity=message_of(said))
    assert attach_intent(request).identity == said


def test_an_attach_that_says_nothing() -> None:
    assert attach_intent(pb.AttachRequest(workload_id="w", netns=NETNS)).identity is None


def test_a_port_is_of_tcp_unless_said_otherwise() -> None:
    found = identity(pb.Identity(namespace="shop", ports=[port()]))
    assert found.ports == {"http": ("tcp", 80)}


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "labels without a namespace": (
        {"namespace": "", "labels": {"app": "web"}}, "identity.namespace",
    ),
    "ports without a namespace": ({"namespace": "", "ports": [port()]}, "identity.namespace"),
    "a long namespace": ({"namespace": "n" * (TEXT_MAX + 1)}, "identity.namespace"),
    "a namespace of two lines": ({"namespace": "a\nb"}, "identity.namespace"),
    "an empty key": ({"labels": {"": "x"}}, "identity.labels key"),
    "a long key": ({"labels": {"k" * (TEXT_MAX + 1): ""}}, "identity.labels key"),
    "a long value": ({"labels": {"k": "v" * (TEXT_MAX + 1)}}, "identity.labels['k']"),
    "many labels": (
        {"labels": {str(number): "" for number in range(LABELS_MAX + 1)}}, "identity.labels",
    ),
    "many ports": (
        {"ports": [port(str(number)) for number in range(PORTS_MAX + 1)]}, "identity.ports",
    ),
    "a port twice": ({"ports": [port(), port(number=81)]}, "identity.ports[1].name"),
    "a port without a name": ({"ports": [port(), port("")]}, "identity.ports[1].name"),
    "another protocol": ({"ports": [port(protocol="TCP")]}, "identity.ports[0].protocol"),
    "port 0": ({"ports": [port(number=0)]}, "identity.ports[0].port"),
    "port 65536": ({"ports": [port(number=65536)]}, "identity.ports[0].port"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(name: str) -> None:
    fields, path = REFUSED[name]
    message = pb.Identity(**({"namespace": "shop"} | fields))
    with pytest.raises(InvalidArgument) as refused:
        identity(message)
    assert refused.value.field == path
    assert str(refused.value).startswith(path)
    assert str(refused.value).isascii()
    assert len(str(refused.value)) < 4096
    with pytest.raises(InvalidArgument):
        attach_intent(pb.AttachRequest(workload_id="w", netns=NETNS, identity=message))
