# SPDX-License-Identifier: Apache-2.0
"""What a configuration asks of the interface itself: MTU and routes; pure.

    mtu      a key of the plugin, as of `bridge` and `ptp`, and of `args.cni`,
             which has priority. 0 asks for nothing
    routes   `routes` of the plugin, and of its `ipam`, in which IPAM plugins
             have them: dst, and gw if there is one

`ipam` is otherwise what an IPAM plugin would do: none is executed, so a key
that chooses addresses is an error. So is a property of a route that is not
kept, such as its own MTU or a table (CNI 1.1.0).
"""

import contextlib
from collections.abc import Iterator, Mapping
from ipaddress import ip_address, ip_network
from typing import Any, Final, NoReturn

from metropolis.node.core.network.cni import shapes
from metropolis.node.core.network.workloads.errors import InvalidArgument
from metropolis.node.core.network.workloads.model import IPAddress, IPNetwork, Route
from metropolis.node.core.network.workloads.validate import parse_routes, several

_FIELD: Final = "routes"
_IPAM: Final = frozenset(("type", "routes"))
_ROUTE: Final = frozenset(("dst", "gw"))


def mtu_of(config: Mapping[str, Any], args: Mapping[str, Any]) -> int:
    """Return the MTU that is asked for; 0: none. args: `args.cni`. Raises
    InvalidArgument, its field `mtu`.
    """
    source, value = ("args.cni.mtu", args["mtu"]) if args.get("mtu") else ("mtu", config.get("mtu"))
    if value is None:
        return 0
    # A bool is an int in Python, and a float may be whole.
    if type(value) is not int or not 0 <= value < 1 << 32:
        raise InvalidArgument(f"{source} is {value!r:.80}: a number is expected", field="mtu")
    return value


def routes_of(config: Mapping[str, Any]) -> tuple[Route, ...]:
    """Return the routes that are asked for. Raises InvalidArgument, its field
    `routes`.
    """
    ipam = config.get("ipam")
    ipam = {} if ipam is None else shapes.an_object(ipam, "ipam", _FIELD)
    if unknown := [name for name, value in ipam.items() if value and name not in _IPAM]:
        listed = several(f"ipam {name!r:.80} is {ipam[name]!r:.80}" for name in unknown)
        _fail(
            f"{listed}: no IPAM plugin is executed; addresses come from the prefixes of the node, "
            "or ask for one by `ips`"
        )
    found = [*_entries(ipam.get("routes"), "ipam.routes")]
    return parse_routes([*found, *_entries(config.get("routes"), "routes")])


def _entries(value: object, source: str) -> Iterator[tuple[IPNetwork, IPAddress | None]]:
    if value is None:
        return
    for path, entry in shapes.entries(value, source, _FIELD):
        route = shapes.an_object(entry, path, _FIELD)
        for name in route:
            if name not in _ROUTE and route[name]:
                _fail(f"{path} has {name!r:.80}: dst and gw are possible")
        yield _network(route.get("dst"), path), _gateway(route.get("gw"), path)


def _network(value: object, path: str) -> IPNetwork:
    # As Go's net.ParseCIDR: the length is not optional and no mask, bits behind
    # it are cut.
    if isinstance(value, str) and "%" not in value and value.rpartition("/")[2].isdigit():
        with contextlib.suppress(ValueError):
            return ip_network(value, strict=False)
    return _fail(f"{path}.dst is {value!r:.80}: an address and a prefix length are expected")


def _gateway(value: object, path: str) -> IPAddress | None:
    if value in (None, ""):
        return None
    if isinstance(value, str) and "%" not in value:
        with contextlib.suppress(ValueError):
            return ip_address(value)
    return _fail(f"{path}.gw is {value!r:.80}: an address is expected")


def _fail(text: str) -> NoReturn:
    raise InvalidArgument(text, field=_FIELD)
