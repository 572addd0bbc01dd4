# SPDX-License-Identifier: Apache-2.0
"""CNI results of an attachment, in the shape of each version; pure.

See the CNI specification 1.1.0, section 5, and those of 0.3.1, 0.4.0 and 1.0.0:

    ips[].version ("4", "6")    0.3.1, 0.4.0
    interfaces[].mtu            from 1.1.0 on
    routes[].scope              from 1.1.0 on

The route to the first hop has no next hop of its own. Before 1.1.0 no scope
could say so, and a route without gw means the gateway of the address: such
routes are only in results that have scopes.
"""

from ipaddress import ip_interface
from typing import Any

from metropolis.node import allocs
from metropolis.node.core.network.cni.protocol import VERSIONS, Add, Check, Json
from metropolis.node.core.network.workloads.model import (
    Attachment,
    Checked,
    Finding,
    Route,
)
from metropolis.node.core.network.workloads.validate import show

_SCOPE_LINK = 253  # RT_SCOPE_LINK, linux/rtnetlink.h


def success(add: Add, attachment: Attachment) -> Json:
    """Make the result of ADD: the previous plugin's, then ours."""
    modern = add.version == "1.1.0"
    prev: dict[str, Any] = add.prev_result or {}
    interfaces: list[Json] = list(prev.get("interfaces") or [])
    host: Json = {"name": attachment.host_interface, "mac": allocs.FIRST_HOP_MAC.hex(":")}
    workload: Json = {"name": attachment.if_name, "mac": attachment.mac.hex(":")}
    for interface in (host, workload) if modern else ():
        interface["mtu"] = attachment.mtu
    interfaces += [host, workload | {"sandbox": add.netns}]

    ips: list[Json] = list(prev.get("ips") or [])
    gateways = {gateway.version: gateway for gateway in attachment.gateways}
    for address in attachment.ips:
        ip: Json = {"address": f"{address}/{address.max_prefixlen}"}
        if address.version in gateways:
            ip["gateway"] = str(gateways[address.version])
        ip["interface"] = len(interfaces) - 1
        if VERSIONS.index(add.version) < VERSIONS.index("1.0.0"):
            ip["version"] = str(address.version)
        ips.append(ip)

    routes: list[Json] = list(prev.get("routes") or [])
    for route in attachment.routes:
        if route.gateway is not None:
            routes.append({"dst": str(route.destination), "gw": str(route.gateway)})
        elif modern:
            routes.append({"dst": str(route.destination), "scope": _SCOPE_LINK})

    result: Json = {"cniVersion": add.version, "interfaces": interfaces, "ips": ips}
    result["routes"] = routes
    dns = add.dns or prev.get("dns") or {}
    return result | ({"dns": dns} if dns else {})


def differences(check: Check, checked: Checked) -> list[str]:
    """List the differences from the attachment, except those that later plugins
    of the chain have legally made: their changes are in CHECK's prevResult.

    So another MAC (`tuning`), another MTU and a removed route are all right
    when prevResult has them; and the MTU always before 1.1.0, whose results
    have none. prevResult may also have other plugins' interfaces, addresses and
    routes, and more addresses of our interface; ours are the interface of
    CNI_IFNAME, our addresses on it, and its host end. An address without
    `interface`, which is optional, may be on any.
    """
    attachment = checked.attachment
    found: list[str] = []
    interfaces: list[Json] = check.prev_result.get("interfaces") or []
    names = [interface.get("name") for interface in interfaces]
    ours = [
        i
        for i, interface in enumerate(interfaces)
        if interface.get("sandbox") and interface.get("name") == check.if_name
    ]
    if attachment.host_interface not in names:
        found.append(f"host interface is {attachment.host_interface}, prevResult has it not")
    if not ours:
        found.append(f"prevResult has no interface {check.if_name} in a sandbox")
    changed = {finding.what: finding.found for finding in checked.findings}
    mac_inside = changed.get(_inside("MAC", check), attachment.mac.hex(":"))
    for i in ours:
        mac = interfaces[i].get("mac")
        if mac and str(mac).lower() != mac_inside:
            found.append(f"MAC of {check.if_name} is {mac_inside}, not {mac!r:.40}")
    listed = set()
    for ip in check.prev_result.get("ips") or []:
        if ip.get("interface") is None or ip.get("interface") in ours:
            try:
                listed.add(ip_interface(str(ip.get("address"))).ip)
            except ValueError:
                found.append(f"prevResult has address {ip.get('address')!r:.80}")
    for address in attachment.ips:
        if address not in listed:
            found.append(f"{check.if_name} has address {address}, prevResult has it not")
    mine = [interfaces[i] for i in ours]
    unexpected = [one for one in checked.findings if not _is_legal(one, check, mine, attachment)]
    return found + [str(one) for one in unexpected]


def _inside(what: str, check: Check) -> str:
    """Return the name in findings of workloads.checks."""
    return f"{what} of {show(check.if_name)} inside"


def _is_legal(finding: Finding, check: Check, ours: list[Json], attachment: Attachment) -> bool:
    """Return whether prevResult says that a later plugin made it so."""
    if finding.what == _inside("MAC", check):
        return any(str(one.get("mac")).lower() == finding.found for one in ours)
    if finding.what == _inside("MTU", check):
        return any(one.get("mtu") is None or str(one["mtu"]) == finding.found for one in ours)
    for route in attachment.routes:
        if finding.what == f"route to {route.destination} inside":
            return not _is_promised(route, check) or _is_as_promised(route, finding)
    return False


def _is_promised(route: Route, check: Check) -> bool:
    """Return whether the result still has our route."""
    if route.gateway is None and check.version != "1.1.0":
        return True  # results had no such routes
    wanted = str(route.destination), str(route.gateway or "")
    routes: list[Json] = check.prev_result.get("routes") or []
    return wanted in [(one.get("dst"), one.get("gw") or "") for one in routes]


def _is_as_promised(route: Route, finding: Finding) -> bool:
    """Return whether a plugin has replaced it by the result's: a result cannot
    express a route's preferred source address.
    """
    via = f"via {route.gateway} src "
    return route.gateway is not None and any(
        one.startswith(via) for one in finding.found.split(" and ")
    )


def versions(asked: str) -> Json:
    """Make the result of VERSION."""
    return {"cniVersion": asked, "supportedVersions": list(VERSIONS)}
