# SPDX-License-Identifier: Apache-2.0
"""Any message from the wire is decoded or refused."""

import contextlib
from ipaddress import IPv6Address

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from metropolis.node.core.network.workloads.api import wire
from metropolis.node.core.network.workloads.errors import InvalidArgument
from metropolis.node.core.network.workloads.spec import workload_pb2 as pb


@given(st.binary(max_size=100))
@example(b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff")
@example(b"\x08" + b"\xff" * 20)
def test_garbage_is_decoded_or_refused(data: bytes) -> None:
    for kind in (pb.AttachRequest, pb.DetachRequest, pb.StatusRequest, pb.ListRequest):
        try:
            wire.decode(kind, data)
        except InvalidArgument as error:
            reported = str(error)
        else:
            continue
        assert reported.isascii()
        assert len(reported) < 300


def test_strings_that_are_not_utf8_are_named() -> None:
    good = pb.AttachRequest(workload_id="w", requested_mac=b"\xff").SerializeToString()
    with pytest.raises(InvalidArgument, match=r"^workload_id b'\\xff\\xfe': is not UTF-8$"):
        wire.decode(pb.AttachRequest, good + b"\x0a\x02\xff\xfe")
    with pytest.raises(InvalidArgument, match=r"^netns.if_name b'\\xff': is not UTF-8$"):
        wire.decode(pb.AttachRequest, good + b"\x12\x03\x12\x01\xff")


def test_what_is_no_message_at_all_is_named() -> None:
    with pytest.raises(InvalidArgument, match=r"^request of 2 bytes: is no AttachRequest$"):
        wire.decode(pb.AttachRequest, b"\x0a\x05")


def test_fields_of_the_future_are_passed_over() -> None:
    data = pb.AttachRequest(workload_id="w").SerializeToString() + b"\xa2\x06\x01x"
    assert wire.decode(pb.AttachRequest, data).workload_id == "w"


def test_the_owner_of_a_collection_is_the_api_or_named() -> None:
    assert wire.owner(pb.CollectRequest()) == "api"
    for owner in ("cni podman", "x" * 255):
        assert wire.owner(pb.CollectRequest(owner=owner)) == owner
    for owner in ("x" * 256, "a\nb", "\u00e4"):
        with pytest.raises(InvalidArgument, match=r"^owner '"):
            wire.owner(pb.CollectRequest(owner=owner))


def test_absent_fields_are_empty() -> None:
    intent = wire.attach_intent(pb.AttachRequest())
    assert (intent.workload_id, intent.netns_path, intent.if_name) == ("", "", "")
    assert (intent.requested_ips, intent.requested_mac) == ((), None)


def test_host_ports() -> None:
    mappings = [
        pb.PortMapping(host_port=80, container_port=8080),
        pb.PortMapping(host_port=53, container_port=53, protocol="udp", host_ip=bytes(4)),
        pb.PortMapping(host_port=9, container_port=9, protocol="sctp", host_ip=b"\xfd" * 16),
    ]
    intent = wire.attach_intent(pb.AttachRequest(port_mapping=mappings))
    ip = ":".join(["fdfd"] * 8)
    assert intent.parts == (("h", f"t80=8080,u53=53@0.0.0.0,s9=9@{ip}"),)
    assert wire.attach_intent(pb.AttachRequest(port_mapping=mappings[::-1])) == intent
    assert wire.attach_intent(pb.AttachRequest()).parts == ()


def test_mtu_and_routes() -> None:
    routes = [
        pb.Route(destination=bytes([192, 0, 2, 0]), prefix_length=24),
        pb.Route(destination=bytes(4)),
        pb.Route(
            destination=IPv6Address("2001:db8::").packed,
            prefix_length=32,
            gateway=IPv6Address("fe80::1").packed,
        ),
    ]
    intent = wire.attach_intent(pb.AttachRequest(mtu=1400, routes=routes))
    assert intent.requested_mtu == 1400
    assert [f"{one.destination} via {one.gateway}" for one in intent.routes] == [
        "192.0.2.0/24 via 169.254.77.1",
        "2001:db8::/32 via fe80::1",
    ]
    plain = wire.attach_intent(pb.AttachRequest())
    assert (plain.requested_mtu, plain.routes) == (0, ())
    assert intent.digest() != plain.digest()


@pytest.mark.parametrize(
    ("route", "why"),
    [
        (pb.Route(), "b'': must have 4 or 16 bytes, has 0"),
        (pb.Route(destination=b"\xff" * 4000), ".*has 4000"),
        (pb.Route(destination=bytes(4), gateway=b"\1"), ".*has 1"),
        (pb.Route(destination=bytes(4), prefix_length=33), "0.0.0.0/33: is no prefix"),
        (pb.Route(destination=bytes(4), prefix_length=2**32 - 1), "0.0.0.0/4294967295: is no"),
        (pb.Route(destination=b"\x0a\0\0\1", prefix_length=8), "10.0.0.1/8: .*bits behind"),
        (
            pb.Route(destination=bytes(16), prefix_length=1, gateway=bytes(4)),
            "::/1: gateway 0.0.0.0",
        ),
    ],
)
def test_routes_that_are_wrong(route: pb.Route, why: str) -> None:
    with pytest.raises(InvalidArgument, match=f"^routes {why}") as caught:
        wire.attach_intent(pb.AttachRequest(routes=[route]))
    assert caught.value.field == "routes"
    assert str(caught.value).isascii()
    assert len(str(caught.value)) < 400


@given(st.binary(max_size=17), st.integers(0, 2**32 - 1), st.binary(max_size=17))
def test_any_route_is_made_or_refused(destination: bytes, bits: int, gateway: bytes) -> None:
    route = pb.Route(destination=destination, prefix_length=bits, gateway=gateway)
    with contextlib.suppress(InvalidArgument):
        wire.attach_intent(pb.AttachRequest(routes=[route]))


@pytest.mark.parametrize(
    ("mapping", "why"),
    [
        (pb.PortMapping(), "host_port 0"),
        (pb.PortMapping(host_port=80), "container_port 0"),
        (pb.PortMapping(host_port=2**32 - 1, container_port=1), "host_port 4294967295"),
        (pb.PortMapping(host_port=1, container_port=1, protocol="\u00e4" * 99), "protocol"),
        (pb.PortMapping(host_port=1, container_port=1, host_ip=b"\x7f\0\0"), "host_ip .* 4 or 16"),
    ],
)
def test_host_ports_that_are_wrong(mapping: pb.PortMapping, why: str) -> None:
    with pytest.raises(InvalidArgument, match=f"^port_mapping: {why}") as caught:
        wire.attach_intent(pb.AttachRequest(port_mapping=[mapping]))
    assert str(caught.value).isascii()
    assert len(str(caught.value)) < 400
