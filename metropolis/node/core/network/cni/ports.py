# SPDX-License-Identifier: Apache-2.0
"""The capability portMappings: its JSON, to the part of a request; pure.

CNI's CONVENTIONS.md has the keys: hostPort, containerPort, protocol, hostIP.
Runtimes write them in several ways, all of which are understood:

    keys         in any case: go-cni sets no JSON names, so containerd sends
                 HostPort; ocicni and Podman send hostPort
    protocol     in any case; absent or "": tcp
    hostIP       absent or "": all addresses, of both families. 0.0.0.0 or ::,
                 all of one (containernetworking/plugins#487), so Podman's two
                 entries for one port are no conflict. ::ffff:192.0.2.1 is an
                 IPv4 address, as for Go
    hostPort 0   or absent: a port that the container only declares, without
                 one of the host (kubernetes#47529). containerd leaves it out,
                 and so does this module

Everything else is an error that names the entry, not a guess: an unknown key
may be a wish, as `range` is in Podman's own format. One error has all entries
that are wrong, or the first few and how many more.
"""

from collections.abc import Mapping
from ipaddress import IPv6Address, ip_address
from typing import Any, NoReturn

from metropolis.node.core.network.cni import shapes
from metropolis.node.core.network.workloads import host_ports
from metropolis.node.core.network.workloads.errors import InvalidArgument
from metropolis.node.core.network.workloads.model import IPAddress, PartText
from metropolis.node.core.network.workloads.validate import several

_NAMES = {
    "host_port": "hostPort",
    "container_port": "containerPort",
    "protocol": "protocol",
    "host_ip": "hostIP",
}
_KEYS = {key.lower(): key for key in _NAMES.values()}


def part_of(value: object, source: str) -> tuple[PartText, ...]:
    """Return the part of the request; (): no port of the host is asked for.

    source: where the value is from, for errors. Raises InvalidArgument, its
    field `port_mapping`.
    """
    wrong: list[tuple[int, str]] = []
    wanted: list[tuple[int, str, host_ports.Mapping]] = []
    for at, (path, entry) in enumerate(shapes.entries(value, source, host_ports.FIELD)):
        try:
            if (mapping := _mapping(entry, path)) is not None:
                wanted.append((at, path, mapping))
        except InvalidArgument as error:
            wrong.append((at, str(error)))
    mappings = [mapping for _, _, mapping in wanted]
    for fault in host_ports.faults(mappings):
        at, path, _ = wanted[fault.at]
        field = f".{_NAMES[fault.field]}" if fault.field else ":"
        wrong.append((at, f"{path}{field} {fault.value}: {fault.why}"))
    if wrong:
        _fail(several(text for _, text in sorted(wrong)))
    try:
        return host_ports.part_of(mappings)
    except InvalidArgument as error:
        _fail(f"{source}: {str(error).removeprefix(f'{host_ports.FIELD}: ')}")


def _mapping(entry: object, path: str) -> host_ports.Mapping | None:
    """Return the mapping; None: the port is only declared."""
    fields = shapes.fields(entry, _KEYS, path, host_ports.FIELD)
    host_port = _port(fields, "hostPort", path)
    container_port = _port(fields, "containerPort", path)
    protocol = _string(fields, "protocol", path).lower() or "tcp"
    if protocol not in host_ports.PROTOCOLS:
        _fail(f"{path}.protocol is {fields['protocol']!r:.80}: tcp, udp or sctp is expected")
    host_ip = _host_ip(fields, path)
    if host_port == 0:
        return None
    if container_port == 0:
        _fail(f"{path}.containerPort is 0 or absent: a number from 1 to 65535 is expected")
    return host_ports.Mapping(protocol, host_port, container_port, host_ip)


def _port(fields: Mapping[str, Any], name: str, path: str) -> int:
    value = fields.get(name, 0)
    # A bool is an int in Python, and a float may be whole.
    if type(value) is not int or not 0 <= value <= 65535:
        _fail(f"{path}.{name} is {value!r:.80}: a number from 1 to 65535 is expected")
    return value


def _string(fields: Mapping[str, Any], name: str, path: str) -> str:
    value = fields.get(name, "")
    if not isinstance(value, str):
        _fail(f"{path}.{name} is {value!r:.80}: a string is expected")
    return value


def _host_ip(fields: Mapping[str, Any], path: str) -> IPAddress | None:
    text = _string(fields, "hostIP", path)
    if not text:
        return None
    try:
        ip = ip_address(text)
    except ValueError:
        _fail(f"{path}.hostIP is {text!r:.80}: it is no IP address")
    if isinstance(ip, IPv6Address):
        if ip.scope_id is not None:
            _fail(f"{path}.hostIP is {text!r:.80}: a zone is not possible")
        return ip.ipv4_mapped or ip
    return ip


def _fail(text: str) -> NoReturn:
    raise InvalidArgument(text, field=host_ports.FIELD)
