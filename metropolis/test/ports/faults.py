# SPDX-License-Identifier: Apache-2.0
"""Cases of wrong requests, and of a node where things go wrong."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Final

from metropolis.node.core.network.workloads.spec import workload_pb2 as pb
from metropolis.test.ports.checks import NODE, NODE6, SECOND, Case, Checks, answering, kill, server
from metropolis.test.ports.oracle import PROTOCOLS, At, Port
from metropolis.test.ports.table import request
from metropolis.test.ports.world import ADDRESSES, OTHER, OUTSIDE, Space, port

_RESTORED_S: Final = 30.0
_FIELD: Final = ("port_mapping",)


def bad_input(checks: Checks) -> None:
    """Each is a clear error, and nothing is left."""
    why = "bad input: an error that names the field, and nothing is left"
    raw = pb.PortMapping
    for name, ports in {
        "host port 0": [port(0, 80)],
        "host port 65536": [port(65536, 80)],
        "host port 2^32-1": [port(2**32 - 1, 80)],
        "container port 0": [port(8080, 0)],
        "container port 65536": [port(8080, 65536)],
        "protocol icmp": [port(8080, 80, "icmp")],
        "protocol TCP6": [port(8080, 80, "TCP6")],
        "protocol with a command": [port(8080, 80, "tcp } ; flush ruleset")],
        "1,025 ports": [port(10_000 + n, 80) for n in range(1025)],
        "the same port twice": [port(8080, 80), port(8080, 81)],
        "the same port twice, once 0.0.0.0": [port(8080, 80), port(8080, 80, "", "0.0.0.0")],
        "host address of 3 bytes": [raw(host_port=8080, container_port=80, host_ip=b"\x0a\0\1")],
        "host address of 17 bytes": [raw(host_port=8080, container_port=80, host_ip=bytes(17))],
    }.items():
        checks.refused(name, ports, "INVALID_ARGUMENT", _FIELD, why)
    why = "no address of the node that can be translated: refused by name"
    for name, address in {
        "outside": OUTSIDE[4],
        "outside, IPv6": OUTSIDE[6],
        "another node": OTHER[4],
        "nobody": "192.0.2.77",
        "the network": "192.0.2.0",
        "the broadcast": "192.0.2.255",
        "all broadcast": "255.255.255.255",
        "multicast": "224.0.0.1",
        "IPv6 multicast": "ff02::1",
        "::1": "::1",
        "link-local": "fe80::1",
        "the uplink's link-local": checks.world.link_local(),
        "the first hop": "169.254.77.1",
        "a pod's": "10.192.0.9",
        "IPv4 in IPv6": f"::ffff:{NODE}",
    }.items():
        mapping = port(8080, 80, "tcp", address)
        checks.refused(f"host address/{name}", [mapping], "INVALID_ARGUMENT", _FIELD, why)
    checks.refused(
        "a port of the node itself", [port(51820, 80, "udp")],
        "INVALID_ARGUMENT|FAILED_PRECONDITION", ("51820",), "WireGuard's port is the node's",
    )  # fmt: skip
    good = [Port("", "tcp", 8080, 80)]
    with server(checks.world, "good", good) as pod:
        checks.answers(
            "a good one afterwards", checks.world.outside, NODE, 8080, pod, why, number=80
        )
        checks.elements("elements", [("good", good)], why)


def flushed(checks: Checks) -> None:
    """Another program flushes all rules while ports are mapped."""
    world = checks.world
    why = "the reconciler makes the table and its elements again"
    ports = _PORTS
    with server(world, "ports", ports):
        _all_answer(checks, "before", why)
        world.node.run(["nft", "flush", "ruleset"])
        took = answering(world.outside, "tcp", NODE, 8080, _RESTORED_S)
        checks.check("restored", took >= 0, f"within {_RESTORED_S:g} s", f"after {took:.2f} s", why)
        checks.elements("elements", [("ports", ports)], why)
        _all_answer(checks, "after", why)
        table = ("delete", "table", "inet", "metropolis_workloads")
        world.node.run(["nft", *table])
        took = answering(world.outside, "tcp", NODE, 8080, _RESTORED_S)
        checks.check(
            "table deleted", took >= 0, f"within {_RESTORED_S:g} s", f"after {took:.2f} s", why
        )
        checks.elements("elements of the new table", [("ports", ports)], why)
        world.node.run(["nft", "flush", "ruleset"])
    _none_answers(checks, "detached after a flush", why)
    checks.elements("none", [], why)


def deleted_elements(checks: Checks) -> None:
    """Another program deletes some elements. No event wakes the service for
    that: Check reports it, and the next of its looks restores them.
    """
    world = checks.world
    why = "the reconciler compares the elements now and then"
    with server(world, "ports", _PORTS):
        for key in ("any4 { tcp . 8080 }", f"at6 {{ {NODE6} . udp . 8081 }}"):
            world.node.run(["nft", f"delete element inet metropolis_workloads {key}"])
        found = world.check("ports")
        ok = len(found) == 2 and "8080" in found[0] and "8081" in found[1]
        checks.check("Check", ok, "both", "; ".join(found) or "nothing", "Check compares them")
        checks.elements("restored", [("ports", _PORTS)], why, _RESTORED_S)
        _all_answer(checks, "restored", why)


def killed(checks: Checks) -> None:
    """The service dies by SIGKILL, and comes back."""
    world = checks.world
    why = "what a restart needs is in the kernel"
    with server(world, "ports", _PORTS):
        kill(world)
        _all_answer(checks, "without the service", why)
        world.start(access=False, versions=(4, 6))
        _all_answer(checks, "restarted", why)
        checks.elements("elements", [("ports", _PORTS)], why)
        kill(world)
        world.node.run(["nft", "flush", "ruleset"])
        world.start(access=False, versions=(4, 6))
        took = answering(world.outside, "tcp", NODE, 8080, _RESTORED_S)
        checks.check(
            "flushed while it was dead", took >= 0, f"within {_RESTORED_S:g} s",
            f"after {took:.2f} s", why,
        )  # fmt: skip
        checks.elements("elements after the flush", [("ports", _PORTS)], why)
        _all_answer(checks, "after the flush", why)
        with_other = [Port("", "tcp", 9090, 80)]
        world.attach("mortal", request(with_other))
        kill(world)
        world.drop("mortal")
        world.start(access=False, versions=(4, 6))
        checks.elements("of a pod that died meanwhile", [("ports", _PORTS)], why)
    _none_answers(checks, "detached", why)
    checks.elements("none", [], why)
    checks.allowed("its port is free", "free", request(_PORTS), why)


_PORTS: Final = [
    Port("", "tcp", 8080, 80),
    Port("", "udp", 8080, 80),
    Port("", "sctp", 8080, 80),
    Port(SECOND, "tcp", 8081, 81),
    Port(NODE6, "udp", 8081, 81),
    Port("127.0.0.1", "tcp", 8082, 82),
]


def _asked(checks: Checks) -> Sequence[tuple[Port, Space, str]]:
    world = checks.world
    outside: list[tuple[Port, Space, str]] = [
        (one, world.outside, address) for one in _PORTS[:3] for address in (NODE, NODE6, SECOND)
    ]
    return [
        *outside,
        (_PORTS[3], world.outside, SECOND),
        (_PORTS[4], world.outside, NODE6),
        (_PORTS[5], world.node, ADDRESSES[At.LOOPBACK, 4]),
        (_PORTS[0], world.node, ADDRESSES[At.LOOPBACK, 4]),
    ]


def _all_answer(checks: Checks, name: str, why: str) -> None:
    for one, client, address in _asked(checks):
        checks.answers(
            f"{name}/{one.protocol} {address} {one.host_port}", client, address, one.host_port,
            checks.world.pod("ports"), why, number=one.container_port, protocol=one.protocol,
        )  # fmt: skip


def _none_answers(checks: Checks, name: str, why: str) -> None:
    for one, client, address in _asked(checks):
        checks.answers(
            f"{name}/{one.protocol} {address} {one.host_port}", client, address, one.host_port,
            "refused", why, protocol=one.protocol,
        )  # fmt: skip


def established(checks: Checks) -> None:
    """A connection that is open needs none of the elements."""
    world = checks.world
    ports = [Port("", "tcp", 8080, 80)]
    neighbour = world.pod("neighbour")
    with server(world, "ports", ports, mute=True) as pod, world.workload("neighbour"):
        clients = {
            "outside": (world.outside, (NODE, NODE6)),
            "node": (world.node, ("127.0.0.1", NODE)),
            "neighbour": (neighbour, (NODE, NODE6)),
            "self": (pod, (NODE, NODE6)),
        }
        for client, addresses in clients.values():
            for address in addresses:
                client.call("open", address=address, port=8080)

        def talk(name: str, why: str) -> None:
            for who, (client, addresses) in clients.items():
                got = client.call("talk")["ok"]
                expected = [True] * len(addresses)
                checks.check(f"{name}/{who}", got == expected, str(expected), str(got), why)

        try:
            talk("open", "it has just begun")
            specific = [Port(NODE, "tcp", 8080, 81)]
            with world.workload("specific", request(specific)):
                talk("another takes the address", "only first packets are looked up")
            kill(world)
            talk("without the service", "conntrack translates")
            # What is sent while there are no rules ends its connection: the
            # kernel translates only while there is a chain for it.
            world.node.run(["nft", "flush", "ruleset"])
            world.start(access=False, versions=(4, 6))
            talk("flushed and restarted", "the rules let established flows pass")
        finally:
            for client, _ in clients.values():
                client.call("shut")


def no_uplink(checks: Checks) -> None:
    """A node on its own: the kernel has no address to choose as a source."""
    world = checks.world
    hop, addresses = ADDRESSES[At.HOP, 4], {4: "192.0.2.99", 6: "2001:db8:99::9"}
    world.start_without_uplink()
    try:
        ports = [Port("", protocol, 8080, 80) for protocol in PROTOCOLS]
        with server(world, "alone", ports) as pod:
            for protocol in PROTOCOLS:
                checks.answers(
                    f"127.0.0.1/{protocol}", world.node, "127.0.0.1", 8080, pod,
                    "the source is the first hop, whatever addresses there are",
                    number=80, protocol=protocol, source=hop,
                )  # fmt: skip
            for version, address in addresses.items():
                world.node.run(["ip", "address", "add", address, "dev", "lo"])
                why = "the node's only address of the family is on lo"
                for protocol, client in itertools.product(PROTOCOLS, (pod, world.node)):
                    checks.answers(
                        f"{client.name} to its node{version}/{protocol}", client, address, 8080,
                        pod, why, number=80, protocol=protocol,
                    )  # fmt: skip
            checks.elements("elements", [("alone", ports)], "as with an uplink")
    finally:
        for address in addresses.values():
            world.node.run(["ip", "address", "del", address, "dev", "lo"], ok=False)
        world.core.stop()
        world.start(access=False, versions=(4, 6))


def one_family(checks: Checks) -> None:
    """Host addresses of a family that the pod has no address of."""
    other, wildcard = (NODE6, "::") if checks.setting.versions == (4,) else (NODE, "0.0.0.0")
    why = "nothing can be mapped: refused by name"
    for address in (other, wildcard):
        mapping = port(8080, 80, "tcp", address)
        checks.refused(f"host address {address}", [mapping], "INVALID_ARGUMENT", _FIELD, why)


CASES: Final[dict[str, Case]] = {
    "bad-input": bad_input,
    "flushed": flushed,
    "deleted-elements": deleted_elements,
    "killed": killed,
    "established": established,
    "no-uplink": no_uplink,
}

ONE_FAMILY: Final[dict[str, Case]] = {"one-family": one_family}
"""For nodes whose pods have addresses of one family."""
