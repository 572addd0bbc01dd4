# SPDX-License-Identifier: Apache-2.0
"""Cases that are no cells: several mappings, several workloads, a life."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from metropolis.test.ports import kernel
from metropolis.test.ports.checks import (
    NODE,
    NODE6,
    SECOND,
    SECOND6,
    Case,
    Checks,
    ask,
    attempt,
    kill,
    listening,
    server,
)
from metropolis.test.ports.oracle import At, Port
from metropolis.test.ports.table import describe, request
from metropolis.test.ports.world import ADDRESSES, BEHIND_OTHER, OTHER, OUTSIDE, Space

_SOON_S: Final = 3.0
"""A stream must reach the new pod within this time of Attach's answer. Its
datagrams are 5 ms apart; conntrack would keep a wrong entry for 30 s. ARP asks
again after 1 s: the pod's end sends nothing before its carrier is looked at."""
_EVERY_S: Final = 0.005
_SOURCE_PORT: Final = 40_000
_RACERS: Final = 6


def same_port_three_times(checks: Checks) -> None:
    """Kubernetes' own conformance test has these three."""
    world = checks.world
    three = [
        Port("127.0.0.1", "tcp", 54323, 8001),
        Port(NODE, "tcp", 54323, 8002),
        Port("", "udp", 54323, 8003),
    ]
    why = "other protocol or other host address: no conflict"
    with server(world, "three", three) as pod:
        checks.answers("loopback", world.node, "127.0.0.1", 54323, pod, why, number=8001)
        checks.answers("node", world.outside, NODE, 54323, pod, why, number=8002)
        checks.answers("udp", world.outside, NODE, 54323, pod, why, number=8003, protocol="udp")
        checks.answers("second", world.outside, SECOND, 54323, "refused", why)
        checks.elements("elements", [("three", three)], why)


def other_loopback(checks: Checks) -> None:
    """An address of 127.0.0.0/8 that a mapping names is taken at that port."""
    world = checks.world
    ports = [Port("127.0.0.53", protocol, 8053, 53) for protocol in ("tcp", "udp")]
    ports.append(Port("", "tcp", 8054, 54))
    with server(world, "resolver", ports) as pod:
        hop, why = ADDRESSES[At.HOP, 4], "named by the mapping"
        for protocol in ("tcp", "udp"):
            checks.answers(
                f"named/{protocol}", world.node, "127.0.0.53", 8053, pod, why, number=53,
                protocol=protocol, source=hop,
            )  # fmt: skip
        why = "not named by the mapping"
        checks.answers("127.0.0.1", world.node, "127.0.0.1", 8053, "refused", why)
        checks.answers("outside", world.outside, NODE, 8053, "refused", why)
        checks.answers("any", world.node, "127.0.0.53", 8054, "refused", why)
        checks.elements("elements", [("resolver", ports)], why)
    why = "a listener would be cut off silently: refused, naming address and process"
    with listening(world.node, "own", [("udp", "127.0.0.53", 8053)]):
        words = ("127.0.0.53", str(world.node.pid), "8053")
        checks.refused("listens", request(ports), "FAILED_PRECONDITION", words, why)


def specific_wins(checks: Checks) -> None:
    """A wildcard and an address with the same port, of two workloads."""
    world = checks.world
    why = "a mapping of one address wins over the wildcard"
    wildcard, specific = [Port("", "tcp", 8080, 80)], [Port(NODE, "tcp", 8080, 81)]
    specific.append(Port(NODE6, "tcp", 8080, 81))
    for first, second in (("wildcard", "specific"), ("specific", "wildcard")):
        mine = {"wildcard": wildcard, "specific": specific}
        with server(world, first, mine[first]), server(world, second, mine[second]):
            one, all_ = world.pod("specific"), world.pod("wildcard")
            order = f"{first} first"
            checks.answers(f"{order}/node", world.outside, NODE, 8080, one, why, number=81)
            checks.answers(f"{order}/node6", world.outside, NODE6, 8080, one, why, number=81)
            checks.answers(f"{order}/second", world.outside, SECOND, 8080, all_, why, number=80)
            checks.answers(f"{order}/second6", world.outside, SECOND6, 8080, all_, why, number=80)
            checks.elements(order, [("specific", specific), ("wildcard", wildcard)], why)


def not_for_the_node(checks: Checks) -> None:
    """Packets to other addresses at a port that is mapped."""
    world = checks.world
    ports = [Port("", protocol, 8080, 80) for protocol in ("tcp", "udp")]
    why = "only packets for the node are translated"
    sockets = [(one.protocol, where, 8080) for one in ports for where in OUTSIDE.values()]
    neighbour = world.pod("neighbour")
    with (
        server(world, "ports", ports) as pod,
        world.workload("neighbour"),
        listening(world.outside, "outside", sockets),
        listening(world.other, "behind", [(o, BEHIND_OTHER[4], 8080) for o in ("tcp", "udp")]),
    ):
        for protocol in ("tcp", "udp"):
            for version, target in OUTSIDE.items():
                name = f"{protocol}{version}"
                for client in (pod, neighbour):
                    checks.answers(
                        f"{client.name} to outside/{name}", client, target, 8080,
                        world.outside, why, protocol=protocol,
                    )  # fmt: skip
                checks.answers(
                    f"node to outside/{name}", world.node, target, 8080, world.outside, why,
                    protocol=protocol,
                )  # fmt: skip
            got = ask(world.outside, protocol, BEHIND_OTHER[4], 8080)
            expected = f"behind port 8080, which sees {OUTSIDE[4]}"
            checks.check(
                f"outside through the node/{protocol}", describe(got) == expected,
                expected, describe(got), why,
            )  # fmt: skip
        address = world.attached["ports"][4]
        checks.answers("neighbour to the pod", neighbour, address, 8080, "refused", why)
        checks.answers(
            "at the other node", world.outside, OTHER[4], 8080, "refused",
            "host ports answer only at the node where the pod is",
        )  # fmt: skip


def conflicts(checks: Checks) -> None:
    """The same port of two workloads."""
    world = checks.world
    ports = [Port("", "tcp", 8080, 80), Port(NODE, "udp", 8053, 53), Port(NODE6, "tcp", 8081, 80)]
    with server(world, "holder-1", ports) as pod:
        for name, taken in (
            ("two wildcards", Port("", "tcp", 8080, 81)),
            ("0.0.0.0", Port("0.0.0.0", "tcp", 8080, 80)),
            ("::", Port("::", "tcp", 8080, 80)),
            ("two of one address", Port(NODE, "udp", 8053, 53)),
            ("two of one IPv6 address", Port(NODE6, "tcp", 8081, 80)),
        ):
            words, why = ("holder-1", str(taken.host_port)), "the error names the holder"
            free = Port("", "tcp", 9000, 80)
            checks.refused(name, request([free, taken]), "ALREADY_EXISTS", words, why)
        why = "other protocol or other address: no conflict"
        for name, free in (
            ("other protocol", Port("", "udp", 8080, 80)),
            ("other address", Port(SECOND, "udp", 8053, 53)),
            ("wildcard beside an address", Port("", "udp", 8053, 53)),
            ("other family", Port(NODE, "tcp", 8081, 80)),
        ):
            checks.allowed(name, "free", request([free]), why)
        again, text = attempt(world, "holder-1", request(ports))
        checks.check("repeated", again == "OK", "OK", f"{again} {text}", "Attach is idempotent")
        other, text = attempt(world, "holder-1", request(ports[:1]))
        checks.check(
            "repeated with other ports", other == "ALREADY_EXISTS", "ALREADY_EXISTS",
            f"{other} {text}", "the same request or an error",
        )  # fmt: skip
        checks.answers("still the holder's", world.outside, NODE, 8080, pod, why, number=80)
        checks.elements("elements", [("holder-1", ports)], why)
    names = [f"racer-{number}" for number in range(_RACERS)]
    for name in names:
        world.pod(name)  # made here: namespaces are entered by one thread
    before = kernel.snapshot(world.node)
    with ThreadPoolExecutor(_RACERS) as pool:
        codes = [
            code for code, _ in pool.map(lambda one: attempt(world, one, request(ports)), names)
        ]
    wanted = ["ALREADY_EXISTS"] * (_RACERS - 1) + ["OK"]
    why = "one of those that come at once has the port"
    checks.check("at once", sorted(codes) == wanted, "one OK", ", ".join(sorted(codes)), why)
    winners = [name for name, code in zip(names, codes, strict=True) if code == "OK"]
    checks.elements("elements of the winner", [(one, ports) for one in winners], why)
    for one in winners:
        world.detach(one)
    more = kernel.left(world.node, before)
    checks.check("at once/left", not more, "nothing", "; ".join(more[:3]) or "nothing", why)


def host_listens(checks: Checks) -> None:
    """A process of the node listens; see also `listening` in the table."""
    world = checks.world
    why = "a listener would be cut off silently: refused, naming address and process"
    pid = str(world.node.pid)
    wildcard = [Port("", "tcp", 8080, 80), Port("", "udp", 8080, 80)]
    for protocol, where, host in (
        ("tcp", "0.0.0.0", ""),
        ("tcp", "::", ""),
        ("udp", "0.0.0.0", ""),
        ("udp", "::", ""),
        ("tcp", NODE, ""),
        ("tcp", NODE, NODE),
        ("tcp", "0.0.0.0", NODE),
        ("tcp", "127.0.0.1", ""),
        ("tcp", "127.0.0.1", "127.0.0.1"),
        ("tcp", NODE6, "::"),
        ("udp", NODE6, NODE6),
        ("tcp", "*", NODE),
        ("udp", "*", "0.0.0.0"),
    ):
        with listening(world.node, "own", [(protocol, where, 8080)]):
            name = f"{protocol} {where} for {host or 'any'}"
            ports = request([Port(host, protocol, 8080, 80)])
            shown = "all addresses" if where in ("0.0.0.0", "::", "*") else where
            checks.refused(name, ports, "FAILED_PRECONDITION", (shown, pid, "8080", "python"), why)
    why = "the listener and the mapping do not meet"
    for protocol, where, host in (
        ("tcp", NODE, SECOND),
        ("tcp", "127.0.0.1", NODE),
        ("tcp", "127.0.0.53", ""),
        ("udp", "127.0.0.53", ""),
        ("tcp", "::1", ""),
        ("tcp", "::1", "::"),
        ("tcp", "169.254.77.1", ""),
        ("tcp", NODE6, "0.0.0.0"),
        ("tcp", "::", NODE),
    ):
        with listening(world.node, "own", [(protocol, where, 8080)]):
            ports = request([Port(host, protocol, 8080, 80)])
            checks.allowed(f"{protocol} {where} beside {host or 'any'}", "free", ports, why)
    with listening(world.node, "own", [("tcp", "0.0.0.0", 8080)]):
        checks.allowed("other protocol", "free", request(wildcard[1:]), why)
    checks.allowed("after its end", "free", request(wildcard), "nothing listens any more")
    why = "the mapping was there before the listener, and stays"
    with server(world, "first", wildcard) as pod:
        with listening(world.node, "own", [("tcp", NODE, 8080), ("udp", NODE, 8080)]):
            again, text = attempt(world, "first", request(wildcard))
            checks.check("begun later, repeated", again == "OK", "OK", f"{again} {text}", why)
            kill(world)
            world.start(access=False, versions=(4, 6))
            for protocol in ("tcp", "udp"):
                checks.answers(
                    f"begun later, restarted/{protocol}", world.outside, NODE, 8080, pod, why,
                    number=80, protocol=protocol,
                )  # fmt: skip
            checks.elements("begun later, elements", [("first", wildcard)], why)


def detached(checks: Checks) -> None:
    """After Detach, and when a namespace ends."""
    world = checks.world
    before = kernel.snapshot(world.node)
    ports = [Port("", protocol, 8080, 80) for protocol in ("tcp", "udp", "sctp")]
    why = "the port is free after Detach"
    for turn in ("first", "second"):
        with server(world, turn, ports) as pod:
            for protocol in ("tcp", "udp", "sctp"):
                checks.answers(
                    f"{turn}/{protocol}", world.outside, NODE, 8080, pod, why, number=80,
                    protocol=protocol,
                )  # fmt: skip
        for protocol in ("tcp", "udp", "sctp"):
            checks.answers(
                f"after the {turn}/{protocol}", world.outside, NODE, 8080, "refused", why,
                protocol=protocol,
            )  # fmt: skip
    more = kernel.left(world.node, before)
    checks.check("left", not more, "nothing", "; ".join(more[:3]) or "nothing", why)
    world.attach("mortal", request(ports))
    world.drop("mortal")
    got = kernel.until(
        lambda: attempt(world, "heir", request(ports)), lambda one: one[0] == "OK", 10.0
    )
    checks.check("after its namespace", got[0] == "OK", "OK", " ".join(got), "its link is gone")
    if got[0] == "OK":
        checks.elements("elements of the heir", [("heir", ports)], why)
        world.detach("heir")


def replaced(checks: Checks) -> None:
    """A UDP client that never stops, with and without answers."""
    world = checks.world
    ports = [Port("", "udp", 5000, 53)]
    why = "no wrong entry of conntrack outlives the change"
    old, new = world.pod("old"), world.pod("new")
    source = _SOURCE_PORT
    for version, target in ((4, NODE), (6, NODE6)):
        for mute in (False, True):
            name = f"ipv{version}/{'without' if mute else 'with'} answers"
            source += 1
            sockets = [("udp", "0.0.0.0" if version == 4 else "::", 53, mute)]
            with listening(old, "old", sockets), listening(new, "new", sockets):
                world.outside.call(
                    "stream", address=target, port=5000, source_port=source, every=_EVERY_S
                )
                try:
                    time.sleep(10 * _EVERY_S)  # a flow to the node itself begins
                    for pod in (old, new):
                        with world.workload(pod.name, request(ports)):
                            _reached(checks, f"{name}/{pod.name}", pod, version, why)
                finally:
                    answers = world.outside.call("stop")["heard"]
                if not mute:
                    ok = set(answers) == {"old", "new"}
                    checks.check(f"{name}/answered", ok, "by both", str(answers), why)


def taken_over(checks: Checks) -> None:
    """A UDP client that never stops, while a mapping of its address comes and
    goes beside a wildcard.
    """
    world = checks.world
    wide, narrow = world.pod("wide"), world.pod("narrow")
    why = "the mapping of one address wins as long as it exists"
    with (
        listening(wide, "wide", [("udp", "0.0.0.0", 53, True)]),
        listening(narrow, "narrow", [("udp", "0.0.0.0", 54, True)]),
        world.workload("wide", request([Port("", "udp", 5000, 53)])),
    ):
        port = _SOURCE_PORT + 10
        world.outside.call("stream", address=NODE, port=5000, source_port=port, every=_EVERY_S)
        try:
            _reached(checks, "wildcard", wide, 4, why)
            with world.workload("narrow", request([Port(NODE, "udp", 5000, 54)])):
                _reached(checks, "specific", narrow, 4, why, "54")
            _reached(checks, "wildcard again", wide, 4, why)
        finally:
            world.outside.call("stop")


def _reached(
    checks: Checks, name: str, pod: Space, version: int, why: str, port: str = "53"
) -> None:
    """Check that the stream reaches a pod from now on."""
    begun = time.monotonic()
    heard = kernel.until(
        lambda: pod.call("heard", name=pod.name)["heard"].get(port),
        lambda found: found is not None and found["last"] > begun,
        _SOON_S,
    )
    expected = f"within {_SOON_S:g} s, from {OUTSIDE[version]}"
    if heard is None or heard["last"] <= begun:
        checks.check(name, False, expected, "never", why)
        return
    got = f"after {(heard['last'] - begun) * 1000:.0f} ms, from {', '.join(heard['sources'])}"
    checks.check(name, heard["sources"] == [OUTSIDE[version]], expected, got, why)


def many(checks: Checks) -> None:
    """As many ports as an attach may have."""
    world = checks.world
    ports = [Port("", "tcp", 21_000 + n, 1_000 + n) for n in range(1024)]
    why = "ranges come as single mappings, at most 1,024"
    pod = world.pod("many")
    with listening(pod, "many", [("tcp", "0.0.0.0", 1_000 + n) for n in (0, 511, 1023)]):
        with world.workload("many", request(ports)):
            for n in (0, 511, 1023):
                checks.answers(
                    f"number {n}", world.outside, NODE, 21_000 + n, pod, why, number=1_000 + n
                )
            checks.elements("elements", [("many", ports)], why)
            world.core.stop()
            checks.answers(
                "without the service", world.outside, NODE, 21_000, pod, why, number=1000
            )
            world.start(access=False, versions=(4, 6))
            checks.elements("after a restart", [("many", ports)], why)
    checks.elements("detached", [], why)


CASES: Final[dict[str, Case]] = {
    "same-port-three-times": same_port_three_times,
    "other-loopback": other_loopback,
    "specific-wins": specific_wins,
    "not-for-the-node": not_for_the_node,
    "conflicts": conflicts,
    "host-listens": host_listens,
    "detached": detached,
    "replaced": replaced,
    "taken-over": taken_over,
    "many": many,
}
