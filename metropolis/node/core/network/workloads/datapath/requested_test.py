# SPDX-License-Identifier: Apache-2.0
"""A requested MTU and requested routes, in the kernel; those that cannot be are
refused by name, and leave nothing.
"""

import contextlib
import json
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_address, ip_network
from typing import Any

import pytest

from metropolis.node.core.network.workloads.datapath.veth import KernelDatapath
from metropolis.node.core.network.workloads.engine.engine import Engine
from metropolis.node.core.network.workloads.errors import (
    AlreadyExists,
    InvalidArgument,
    KernelRefused,
    Unavailable,
    WorkloadError,
)
from metropolis.node.core.network.workloads.model import AttachIntent
from metropolis.node.core.network.workloads.testing.lab import Pod, objects, pods
from metropolis.node.core.network.workloads.validate import parse_routes
from osbase.test.namespaces import sh

PREFIXES = [ip_network("10.192.0.0/28"), ip_network("fd00:10:192::/124")]
HOPS = {4: "169.254.77.1", 6: "fe80::1"}


@pytest.fixture
def engine() -> Iterator[Engine]:
    made = Engine(KernelDatapath())
    made.set_prefixes(PREFIXES)
    made.start()
    yield made
    with contextlib.suppress(Unavailable):  # a test has stopped it
        made.collect(lambda *_: False)
        made.settle()
    made.close()


@pytest.fixture
def pod() -> Iterator[Pod]:
    with pods(1) as (made,):
        yield made


def listed(pod: Pod, command: str) -> Any:
    return json.loads(pod.inside(lambda: sh(command)) or "[]")


def routes(*pairs: str) -> Any:
    """Parse `DESTINATION` or `DESTINATION via GATEWAY`."""
    split = [pair.partition(" via ") for pair in pairs]
    return parse_routes((ip_network(to), ip_address(by) if by else None) for to, _, by in split)


def intent(pod: Pod, if_name: str = "eth0", **more: Any) -> AttachIntent:
    return AttachIntent("w1", pod.path, if_name, **more)


# ---- MTU --------------------------------------------------------------------


@pytest.mark.parametrize("mtu", [1280, 1400, 1500])
def test_both_ends_have_the_mtu(engine: Engine, pod: Pod, mtu: int) -> None:
    made = engine.attach(intent(pod, requested_mtu=mtu))
    assert made.mtu == mtu
    (inside,) = listed(pod, "ip -json link show eth0")
    (host,) = json.loads(sh(f"ip -json link show {made.host_interface}"))
    assert (inside["mtu"], host["mtu"]) == (mtu, mtu)
    (checked,) = engine.check("w1", netns_path=pod.path)
    assert checked.findings == ()


def test_ipv4_alone_may_have_less(engine: Engine, pod: Pod) -> None:
    engine.set_prefixes(PREFIXES[:1])
    assert engine.attach(intent(pod, requested_mtu=68)).mtu == 68


@pytest.mark.parametrize(
    ("mtu", "prefixes", "why"),
    [
        (1279, PREFIXES, "mtu 1279: must be at least 1280, which IPv6 needs"),
        (1279, PREFIXES[1:], "mtu 1279: must be at least 1280, which IPv6 needs"),
        (67, PREFIXES[:1], "mtu 67: must be at least 68, which IPv4 needs"),
        (1, PREFIXES[:1], "mtu 1: must be at least 68, which IPv4 needs"),
        (1501, PREFIXES, "mtu 1501: must be at most 1500, the node's"),
        (1 << 31, PREFIXES, "mtu 2147483648: must be at most 1500, the node's"),
    ],
)
def test_mtus_that_cannot_be(engine: Engine, pod: Pod, mtu: int, prefixes: Any, why: str) -> None:
    engine.set_prefixes(prefixes)
    before = objects(), pod.objects()
    with pytest.raises(InvalidArgument) as refused:
        engine.attach(intent(pod, requested_mtu=mtu))
    assert (str(refused.value), refused.value.field) == (why, "mtu")
    assert (objects(), pod.objects()) == before
    assert not engine.list()


# ---- Routes -----------------------------------------------------------------


@pytest.mark.parametrize("if_name", ["eth0", "eth1"])
def test_routes_are_made_and_answered(engine: Engine, pod: Pod, if_name: str) -> None:
    """In both families, of a first interface and a further one."""
    if if_name != "eth0":
        engine.attach(intent(pod))
    wanted = routes(
        "192.0.2.0/24",
        "192.0.2.128/25",  # within the other: the longer prefix has precedence
        "198.51.100.7/32 via 169.254.77.1",
        "2001:db8::/32 via fe80::1",
        "0.0.0.0/0",
        "::/0 via fe80::1",
    )
    made = engine.attach(intent(pod, if_name, routes=wanted))
    assert [str(one.destination) for one in made.routes] == [
        "169.254.77.1/32",
        "0.0.0.0/0",
        "fe80::1/128",
        "::/0",
        "192.0.2.0/24",
        "192.0.2.128/25",
        "198.51.100.7/32",
        "2001:db8::/32",
    ]
    for version in (4, 6):
        source = str(made.ips[0 if version == 4 else 1])
        there = {
            one["dst"]: (one["gateway"], one.get("prefsrc"))
            for one in listed(pod, f"ip -{version} -json route show dev {if_name}")
            if "gateway" in one and one["dst"] != "default"
        }
        for one in wanted:
            if one.destination.version == version:
                shown = str(one.destination).removesuffix("/32" if version == 4 else "/128")
                assert there.pop(shown) == (HOPS[version], source)
        assert not there
    (checked,) = engine.check("w1", if_name, pod.path)
    assert checked.findings == ()
    again = engine.attach(intent(pod, if_name, routes=wanted))
    assert again == made


@pytest.mark.parametrize(
    ("pairs", "why"),
    [
        (["192.0.2.0/24 via 192.0.2.1"], "gateway 192.0.2.1 is not reachable"),
        (["192.0.2.0/24 via 10.192.0.1"], "gateway 10.192.0.1 is not reachable"),
        (["2001:db8::/32 via fe80::2"], "gateway fe80::2 is not reachable"),
        (["192.0.2.0/24 via fe80::1"], "gateway fe80::1 is of the other family"),
        (["2001:db8::/32 via 169.254.77.1"], "gateway 169.254.77.1 is of the other family"),
        (["192.0.2.0/24", "192.0.2.0/24"], "routes 192.0.2.0/24: is there twice"),
        (["192.0.2.0/24", "192.0.2.0/24 via 169.254.77.1"], "is there twice"),
        (["0.0.0.0/0", "0.0.0.0/0 via 169.254.77.1"], "routes 0.0.0.0/0: is there twice"),
        (["::/0", "::/0"], "routes ::/0: is there twice"),
        (["169.254.77.1/32"], "lies in 169.254.77.0/24"),
        (["127.0.0.0/8"], "lies in 127.0.0.0/8"),
        (["224.1.0.0/16"], "lies in 224.0.0.0/4"),
        (["fe80::/10"], "lies in fe80::/10"),
        (["::1/128"], "lies in ::1/128"),
        (["ff02::/16"], "lies in ff00::/8"),
        (["::ffff:192.0.2.0/120"], "lies in ::ffff:"),
        ([f"10.{n}.0.0/16" for n in range(65)], "at most 64"),
    ],
)
def test_routes_that_cannot_be(pairs: list[str], why: str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        routes(*pairs)
    assert why in str(refused.value)
    assert refused.value.field == "routes"


@pytest.mark.parametrize(("prefix", "route"), [(0, "2001:db8::/32"), (1, "192.0.2.0/24")])
def test_a_route_of_a_family_that_the_interface_lacks(
    engine: Engine, pod: Pod, prefix: int, route: str
) -> None:
    engine.set_prefixes([PREFIXES[prefix]])
    before = objects(), pod.objects()
    version = ip_network(route).version
    with pytest.raises(InvalidArgument, match=f"{route}: the interface has no IPv{version} addr"):
        engine.attach(intent(pod, routes=routes(route)))
    assert (objects(), pod.objects()) == before


def test_64_routes_are_one_batch(engine: Engine, pod: Pod) -> None:
    engine.attach(intent(pod, routes=routes(*(f"10.{n}.0.0/16" for n in range(64)))))
    assert len(listed(pod, "ip -json route show proto static")) == 66


def test_another_programs_route_keeps_its_precedence(engine: Engine, pod: Pod) -> None:
    for command in ("link add other type bridge", "link set other up"):
        pod.inside(lambda: sh(f"ip {command}"))  # noqa: B023 - called at once
    pod.inside(lambda: sh("ip route add 192.0.2.0/24 dev other"))
    engine.attach(intent(pod, routes=routes("192.0.2.0/24")))
    found = listed(pod, "ip -json route show 192.0.2.0/24")
    assert sorted((one.get("metric", 0) > 0, one["dev"]) for one in found) == [
        (False, "other"),
        (True, "eth0"),
    ]


# ---- Both -------------------------------------------------------------------


def test_another_request_is_another(engine: Engine, pod: Pod) -> None:
    first = intent(pod, requested_mtu=1400, routes=routes("192.0.2.0/24"))
    engine.attach(first)
    for other in (
        replace(first, requested_mtu=0),
        replace(first, requested_mtu=1401),
        replace(first, routes=()),
        replace(first, routes=routes("192.0.2.0/25")),
    ):
        with pytest.raises(AlreadyExists, match="another MAC, MTU or other routes"):
            engine.attach(other)


def test_the_order_of_routes_is_no_difference(engine: Engine, pod: Pod) -> None:
    """A runtime may keep them in a map. The answer has the request's order."""
    wanted = routes("192.0.2.0/24", "198.51.100.0/24", "2001:db8::/32")
    made = engine.attach(intent(pod, routes=wanted))
    again = engine.attach(intent(pod, routes=wanted[::-1]))
    assert again.ips == made.ips
    assert again.routes[4:] == wanted[::-1]


def test_a_restart_knows_the_mtu_and_the_request(engine: Engine, pod: Pod) -> None:
    asked = intent(pod, requested_mtu=1400, routes=routes("192.0.2.0/24"))
    made = engine.attach(asked)
    engine.close()
    again = Engine(KernelDatapath())
    again.set_prefixes(PREFIXES)
    again.start()
    try:
        assert again.attach(asked) == made
        again.detach("w1", pod.path, until_gone=True)
        assert not pod.inside(lambda: sh("ip route"))
    finally:
        again.close()


def test_where_ipv6_is_optional_and_off(pod: Pod) -> None:
    """A route of IPv6 asks for it: it is not dropped."""
    pod.inside(lambda: sh("sysctl -qw net.ipv6.conf.all.disable_ipv6=1"))
    pod.inside(lambda: sh("sysctl -qw net.ipv6.conf.default.disable_ipv6=1"))
    engine = Engine(KernelDatapath())
    engine.set_prefixes(PREFIXES)
    engine.set_ipv6_optional(True)
    engine.start()
    try:
        with pytest.raises(KernelRefused, match="was asked for"):
            engine.attach(intent(pod, routes=routes("2001:db8::/32")))
        made = engine.attach(intent(pod, routes=routes("192.0.2.0/24")))
        assert [ip.version for ip in made.ips] == [4]
        engine.detach("w1", until_gone=True)
    finally:
        engine.close()


def test_refused_and_undone(engine: Engine, pod: Pod, monkeypatch: pytest.MonkeyPatch) -> None:
    before = pod.objects()

    def refused(*_: object) -> None:
        raise WorkloadError("no")

    monkeypatch.setattr(KernelDatapath, "_commit", refused)
    with pytest.raises(WorkloadError):
        engine.attach(intent(pod, requested_mtu=1400, routes=routes("192.0.2.0/24")))
    assert pod.objects() == before
