# SPDX-License-Identifier: Apache-2.0
"""Between protobuf messages and the engine's values. Pure."""

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from ipaddress import ip_address, ip_network
from typing import cast

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import DecodeError, Message

from metropolis.node.core.network.workloads import bandwidth, host_ports
from metropolis.node.core.network.workloads.api.identity import identity
from metropolis.node.core.network.workloads.engine.watchers import Event, Kind
from metropolis.node.core.network.workloads.errors import InvalidArgument
from metropolis.node.core.network.workloads.model import (
    OWNER_API,
    AttachIntent,
    Attachment,
    Checked,
    Collected,
    Identity,
    IPAddress,
    IPNetwork,
    PartText,
    Route,
    first_hop,
    routes_of,
    unknown_pod,
)
from metropolis.node.core.network.workloads.spec import workload_pb2 as pb
from metropolis.node.core.network.workloads.validate import (
    check_if_name,
    check_owner,
    check_workload_id,
    parse_ips,
    parse_routes,
    show,
)


def decode[M: Message](kind: type[M], data: bytes) -> M:
    """Decode a message. Raises InvalidArgument if it is malformed, naming the
    field if that is a string that is not UTF-8.
    """
    try:
        return kind.FromString(data)
    except DecodeError:
        pass
    for name, value in _bad_strings(cast(Descriptor, kind.DESCRIPTOR), data):
        raise InvalidArgument(f"{name} {show(value)}: is not UTF-8", field=name)
    raise InvalidArgument(f"request of {len(data)} bytes: is no {kind.DESCRIPTOR.name}")


def _bad_strings(kind: Descriptor, data: bytes, path: str = "") -> Iterator[tuple[str, bytes]]:
    """Yield the strings that are not UTF-8, where the data is well-formed.

    A message without fields takes anything, and keeps it as unknown fields.
    """
    from google.protobuf.unknown_fields import UnknownFieldSet  # for errors only

    try:
        found = UnknownFieldSet(pb.StatusRequest.FromString(data))
    except DecodeError:
        return
    for unknown in map(found.__getitem__, range(len(found))):
        field = kind.fields_by_number.get(unknown.field_number)
        if field is None or not isinstance(unknown.data, bytes):
            continue
        name = f"{path}{field.name}"
        if field.message_type is not None:
            yield from _bad_strings(field.message_type, unknown.data, f"{name}.")
        elif field.type == FieldDescriptor.TYPE_STRING and not _is_utf8(unknown.data):
            yield name, unknown.data


def _is_utf8(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True


def attach_intent(request: pb.AttachRequest) -> AttachIntent:
    """Return the intent. Only addresses, limits and ports are checked:
    InvalidArgument.
    """
    parts: tuple[PartText, ...] = ()
    if request.HasField("bandwidth"):
        parts = bandwidth.part_of(_bandwidth(request.bandwidth))
    if request.port_mapping:
        parts += _host_ports(request.port_mapping)
    return AttachIntent(
        workload_id=request.workload_id,
        netns_path=request.netns.netns_path,
        if_name=request.netns.if_name,
        requested_ips=parse_ips(request.requested_ip),
        requested_mac=request.requested_mac or None,
        parts=parts,
        requested_mtu=request.mtu,
        routes=parse_routes(map(_route, request.routes)) if request.routes else (),
        identity=_identity_of(request) if request.labels or request.HasField("identity") else None,
    )


def _identity_of(request: pb.AttachRequest) -> Identity | None:
    if request.HasField("identity"):
        return identity(request.identity)
    return unknown_pod(request.labels)


def limits_to_set(request: pb.SetBandwidthRequest) -> PartText:
    """Return the part with its other text. Raises InvalidArgument."""
    return bandwidth.LETTER, bandwidth.changed(_bandwidth(request.bandwidth))


def _bandwidth(limits: pb.Bandwidth) -> bandwidth.Bandwidth:
    return bandwidth.Bandwidth(
        bandwidth.Limit(limits.ingress_rate, limits.ingress_burst),
        bandwidth.Limit(limits.egress_rate, limits.egress_burst),
    )


def _route(route: pb.Route) -> tuple[IPNetwork, IPAddress | None]:
    for packed in [route.destination] + [route.gateway] * bool(route.gateway):
        if len(packed) not in (4, 16):
            text = f"routes {show(packed)}: must have 4 or 16 bytes, has {len(packed)}"
            raise InvalidArgument(text, field="routes")
    address = ip_address(route.destination)
    try:
        destination = ip_network((route.destination, route.prefix_length))
    except ValueError as error:
        raise InvalidArgument(
            f"routes {address}/{route.prefix_length}: is no prefix, or has bits behind it",
            field="routes",
        ) from error
    return destination, ip_address(route.gateway) if route.gateway else None


def _host_ports(mappings: Sequence[pb.PortMapping]) -> tuple[PartText, ...]:
    return host_ports.part_of(
        host_ports.Mapping(
            one.protocol or "tcp",
            one.host_port,
            one.container_port,
            host_ports.parse_host_ip(one.host_ip) if one.host_ip else None,
        )
        for one in mappings
    )


def attach_response(made: Attachment) -> bytes:
    """Return the answer to an Attach, encoded."""
    answer = pb.AttachResponse(
        ip=[ip.packed for ip in made.ips],
        mac=made.mac,
        host_interface=made.host_interface,
        mtu=made.mtu,
    )
    versions = tuple([ip.version for ip in made.ips])
    encoded = answer.SerializeToString() + _first_hops(versions)
    if len(made.routes) > len(routes_of(versions)):
        more = made.routes[len(routes_of(versions)) :]
        encoded += pb.AttachResponse(routes=map(_route_message, more)).SerializeToString()
    return encoded


@functools.cache
def _first_hops(versions: tuple[int, ...]) -> bytes:
    """Return the part of the answer that only depends on the IP versions. Parts
    of a message may simply be concatenated (protobuf.dev, encoding).
    """
    return pb.AttachResponse(
        gateway=[first_hop(version).packed for version in versions],
        routes=map(_route_message, routes_of(versions)),
    ).SerializeToString()


def _route_message(route: Route) -> pb.Route:
    return pb.Route(
        destination=route.destination.network_address.packed,
        prefix_length=route.destination.prefixlen,
        gateway=b"" if route.gateway is None else route.gateway.packed,
    )


def status_response(notes: Mapping[str, str], problems: Mapping[str, str]) -> pb.StatusResponse:
    """Return the answer to a Status that is OK, or reports problems."""
    return pb.StatusResponse(notes=_notes(notes), problems=_notes(problems))


def _notes(texts: Mapping[str, str]) -> list[pb.Note]:
    return [pb.Note(name=name, text=text) for name, text in texts.items()]


def attachment(made: Attachment) -> pb.Attachment:
    """Return an entry of a List."""
    return pb.Attachment(
        workload_id=made.workload_id,
        if_name=made.if_name,
        ip=[ip.packed for ip in made.ips],
        mac=made.mac,
        host_interface=made.host_interface,
        host_ifindex=made.host_ifindex,
        mtu=made.mtu,
        owner=made.owner,
        port_mapping=[_port_mapping(one) for one in host_ports.of_parts(made.parts)],
        bandwidth=_limits(bandwidth.of_parts(made.parts)),
    )


def _limits(limits: bandwidth.Bandwidth) -> pb.Bandwidth | None:
    if limits == bandwidth.NO_LIMITS:
        return None
    return pb.Bandwidth(
        ingress_rate=limits.ingress.rate,
        ingress_burst=limits.ingress.burst,
        egress_rate=limits.egress.rate,
        egress_burst=limits.egress.burst,
    )


def _port_mapping(one: host_ports.Mapping) -> pb.PortMapping:
    return pb.PortMapping(
        host_port=one.host_port,
        container_port=one.container_port,
        protocol=one.protocol,
        host_ip=b"" if one.host_ip is None else one.host_ip.packed,
    )


def check_response(checked: Iterable[Checked]) -> pb.CheckResponse:
    """Return the answer to a Check."""
    return pb.CheckResponse(
        attachments=[
            pb.CheckedAttachment(
                attachment=attachment(one.attachment),
                findings=[
                    pb.Finding(what=each.what, expected=each.expected, found=each.found)
                    for each in one.findings
                ],
                entered=one.entered,
            )
            for one in checked
        ]
    )


def watch_event(event: Event) -> pb.WatchEvent:
    """Return a message of a Watch."""
    made = None if event.attachment is None else attachment(event.attachment)
    return pb.WatchEvent(kind=_KINDS[event.kind], attachment=made)


_KINDS = {
    Kind.PRESENT: pb.WatchEvent.PRESENT,
    Kind.COMPLETE: pb.WatchEvent.COMPLETE,
    Kind.ATTACHED: pb.WatchEvent.ATTACHED,
    Kind.DETACHED: pb.WatchEvent.DETACHED,
    Kind.LOST: pb.WatchEvent.LOST,
    Kind.CHANGED: pb.WatchEvent.CHANGED,
}


def owner(request: pb.CollectRequest) -> str:
    """Return the owner whose attachments to collect. Raises InvalidArgument if
    it cannot be an owner.
    """
    chosen = request.owner or OWNER_API
    check_owner(chosen)
    return chosen


def live(request: pb.CollectRequest) -> Callable[[str, str], bool]:
    """Return which attachments stay. Raises InvalidArgument for impossible ids:
    their sender may mean attachments that would be removed.
    """
    workloads = frozenset(request.live_workload_id)
    interfaces = {(one.workload_id, one.if_name) for one in request.live_interface}
    for workload_id in workloads:
        check_workload_id(workload_id)
    for workload_id, if_name in interfaces:
        check_workload_id(workload_id)
        check_if_name(if_name)
    return lambda workload_id, if_name: (
        workload_id in workloads or (workload_id, if_name) in interfaces
    )


def collect_response(collected: Collected) -> pb.CollectResponse:
    """Return the answer to a Collect."""
    return pb.CollectResponse(
        removed=[attachment(one) for one in collected.removed],
        remaining=[
            pb.Remaining(attachment=attachment(one), reason=reason)
            for one, reason in collected.remaining
        ],
    )
