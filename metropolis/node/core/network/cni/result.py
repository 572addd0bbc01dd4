# SPDX-License-Identifier: Apache-2.0
"""CNI results of an attachment, in the shape of each version; pure.

The CNI specification 1.1.0, section 5, and those of 0.3.1, 0.4.0 and 1.0.0:

    ips[].version ("4", "6")    0.3.1, 0.4.0
    interfaces[].mtu            from 1.1.0 on
    routes[].scope              from 1.1.0 on

The route to the first hop has no next hop of its own. Before 1.1.0 there was no
scope to say so, and a route without gw means the gateway of the address: such
routes are only in results that have scopes.
"""

from ipaddress import ip_interface
from typing import Any

from metropolis.node import allocs
from metropolis.node.core.network.cni.protocol import VERSIONS, Add, Check, Json
from metropolis.node.core.network.workloads.model import Attachment

_SCOPE_LINK = 253  # RT_SCOPE_LINK, linux/rtnetlink.h


def success(add: Add, attachment: Attachment) -> Json:
    """Make the result of ADD: what the previous plugin returned, then ours."""
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


def differences(check: Check, attachment: Attachment) -> list[str]:
    """List what of CHECK's prevResult does not hold for the attachment.

    Other plugins' interfaces, addresses and routes may be in there, too; ours
    are the interface of CNI_IFNAME with its addresses, and its host side.
    """
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
    for i in ours:
        mac = interfaces[i].get("mac")
        if mac and str(mac).lower() != attachment.mac.hex(":"):
            found.append(f"MAC of {check.if_name} is {attachment.mac.hex(':')}, not {mac!r:.40}")
    expected = set()
    for ip in check.prev_result.get("ips") or []:
        if ip.get("interface") in ours:
            try:
                expected.add(ip_interface(str(ip.get("address"))).ip)
            except ValueError:
                found.append(f"prevResult has address {ip.get('address')!r:.80}")
    for address in sorted(expected - set(attachment.ips), key=str):
        found.append(f"{check.if_name} has no address {address}")
    return found


def versions(asked: str) -> Json:
    """Make the result of VERSION."""
    return {"cniVersion": asked, "supportedVersions": list(VERSIONS)}
