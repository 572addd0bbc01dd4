# SPDX-License-Identifier: Apache-2.0
"""What runtimes ask of an interface, by the exec shim, to the kernel:
addresses, MAC, MTU, routes, several interfaces. What cannot be has an error of
CNI that names it, and leaves nothing.
"""

import itertools
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from metropolis.node.core.network.cni.protocol import Code
from metropolis.node.core.network.cni.testing import (
    GENEROUS_S,
    PREFIXES,
    GatedEngine,
    Netns,
    cni,
    refused,
)

FOUR, SIX, MAC = "10.192.0.77", "fd00:10:192::77", "02:00:00:00:00:77"


def capability(**wanted: Any) -> dict[str, Any]:
    return {"runtimeConfig": wanted}


def cni_args(**wanted: Any) -> dict[str, Any]:
    """Multus writes these from a pod's cni-args."""
    return {"args": {"cni": wanted}}


def environment(**wanted: Any) -> dict[str, Any]:
    """containerd sends K8S_... so; nerdctl, and people, the others."""
    words = ["IgnoreUnknown=1", "K8S_POD_NAME=web"]
    if "ips" in wanted:
        words.append(f"IP={','.join(map(str, wanted['ips']))}")
    if "mac" in wanted:
        words.append(f"MAC={wanted['mac']}")
    return {"ARGS": ";".join(words)}


SOURCES = [capability, cni_args, environment]


@pytest.fixture
def second() -> Iterator[Netns]:
    made = Netns()
    yield made
    made.close()


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize(
    "ips",
    [
        [FOUR],
        [SIX],
        [FOUR, SIX],
        [SIX, FOUR],
        [f"{FOUR}/24", f"{SIX}/64"],
        [f"{SIX}/112", FOUR],
    ],
)
async def test_addresses_and_mac(service: Path, netns: Netns, source: Any, ips: list[str]) -> None:
    """With a prefix length and without, each family, either order."""
    result = await cni(service, "ADD", "c1", netns.path, **source(ips=ips, mac=MAC))
    wanted = {ip.partition("/")[0] for ip in ips}
    answered = {one["address"].partition("/")[0] for one in result["ips"]}
    assert wanted <= answered
    assert len(answered) == 2
    (shown,) = json.loads(netns.run("ip", "-j", "address", "show", "eth0"))
    assert wanted <= {one["local"] for one in shown["addr_info"]}
    assert shown["address"] == result["interfaces"][1]["mac"] == MAC
    assert await cni(service, "ADD", "c1", netns.path, **source(ips=ips, mac=MAC)) == result


async def test_the_capability_comes_before_the_arguments(service: Path, netns: Netns) -> None:
    asked = (
        capability(ips=[FOUR]) | cni_args(ips=["10.192.0.78"]) | environment(ips=["10.192.0.79"])
    )
    result = await cni(service, "ADD", "c1", netns.path, **asked)
    assert f"{FOUR}/32" in [one["address"] for one in result["ips"]]


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "outside every prefix": ({"ips": ["192.0.2.7"]}, "192.0.2.7"),
    "outside, IPv6": ({"ips": ["2001:db8::7"]}, "2001:db8::7"),
    "one good and one bad": ({"ips": [FOUR, "2001:db8::7"]}, "2001:db8::7"),
    "network address": ({"ips": ["10.192.0.0"]}, "10.192.0.0"),
    "broadcast address": ({"ips": ["10.192.0.255"]}, "10.192.0.255"),
    "network address, IPv6": ({"ips": ["fd00:10:192::"]}, "fd00:10:192::"),
    "the node's first hop": ({"ips": ["169.254.77.1"]}, "169.254.77.1"),
    "loopback": ({"ips": ["127.0.0.1"]}, "127.0.0.1"),
    "link-local": ({"ips": ["fe80::7"]}, "fe80::7"),
    "multicast": ({"ips": ["224.0.0.7"]}, "224.0.0.7"),
    "mapped": ({"ips": ["::ffff:10.192.0.7"]}, "::ffff:10.192.0.7"),
    "two of a family": ({"ips": [FOUR, "10.192.0.78"]}, "10.192.0.78"),
    "no address": ({"ips": ["10.192.0.300"]}, "10.192.0.300"),
    "a zone": ({"ips": ["fe80::7%eth0"]}, "fe80::7%eth0"),
    "a name": ({"ips": ["web"]}, "web"),
    "multicast MAC": ({"mac": "01:00:5e:00:00:07"}, "mac b"),
    "broadcast MAC": ({"mac": "ff:ff:ff:ff:ff:ff"}, "mac b"),
    "zero MAC": ({"mac": "00:00:00:00:00:00"}, "mac b"),
    "short MAC": ({"mac": "02:00:00:00:00"}, "02:00:00:00:00"),
    "a MAC of 8 bytes": ({"mac": "02:00:00:00:00:00:00:01"}, "02:00:00:00:00:00:00:01"),
    "a MAC that is none": ({"mac": "mac"}, "mac"),
}


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("what", BAD)
async def test_bad_addresses_and_macs(
    service: Path, engine: GatedEngine, netns: Netns, source: Any, what: str
) -> None:
    asked, word = BAD[what]
    said = await refused(Code.INVALID_CONFIG, service, "ADD", "c1", netns.path, **source(**asked))
    assert word in said
    assert engine.list() == []
    assert netns.links() == {"lo"}
    # The next ADD has what was refused beside it.
    assert await cni(service, "ADD", "c1", netns.path, **source(ips=[FOUR, SIX], mac=MAC))


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("ip", [FOUR, SIX])
async def test_an_address_in_use(
    service: Path, engine: GatedEngine, netns: Netns, second: Netns, source: Any, ip: str
) -> None:
    await cni(service, "ADD", "c1", netns.path, **source(ips=[ip]))
    said = await refused(Code.ALREADY_EXISTS, service, "ADD", "c2", second.path, **source(ips=[ip]))
    assert ip in said
    assert "c1" in said
    assert [one.workload_id for one in engine.list()] == ["c1"]
    assert second.links() == {"lo"}


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize(("prefix", "ip"), [(0, SIX), (1, FOUR)])
async def test_an_address_of_a_family_that_the_node_lacks(
    service: Path, engine: GatedEngine, netns: Netns, source: Any, prefix: int, ip: str
) -> None:
    engine.set_prefixes([PREFIXES[prefix]])
    said = await refused(Code.INVALID_CONFIG, service, "ADD", "c1", netns.path, **source(ips=[ip]))
    assert ip in said
    assert netns.links() == {"lo"}


@pytest.mark.parametrize(
    ("asked", "code", "word"),
    [
        ({"ARGS": "IP"}, Code.INVALID_ENVIRONMENT, "CNI_ARGS"),
        ({"ARGS": "=10.192.0.7"}, Code.INVALID_ENVIRONMENT, "CNI_ARGS"),
        ({"ARGS": "IP=10.192.0.7;GATEWAY=10.192.0.1"}, Code.INVALID_ENVIRONMENT, "GATEWAY"),
        (capability(ips=FOUR), Code.INVALID_CONFIG, "ips"),
        (capability(ips=[7]), Code.INVALID_CONFIG, "ips"),
        (capability(mac=7), Code.INVALID_CONFIG, "mac"),
        (cni_args(ips={"a": FOUR}), Code.INVALID_CONFIG, "args.cni.ips"),
        ({"runtimeConfig": [FOUR]}, Code.INVALID_CONFIG, "runtimeConfig"),
        (capability(ipRanges=[[{"subnet": "10.88.0.0/16"}]]), Code.UNSUPPORTED_FIELD, "ipRanges"),
        (capability(infinibandGUID="c2:11:22:33:44:55:66"), Code.UNSUPPORTED_FIELD, "infiniband"),
        (capability(deviceID="0000:03:02.3"), Code.UNSUPPORTED_FIELD, "deviceID"),
        (capability(aliases={"net": ["web"]}), Code.UNSUPPORTED_FIELD, "aliases"),
        (capability(colour="blue"), Code.UNSUPPORTED_FIELD, "colour"),
        ({"mtu": "1400"}, Code.INVALID_CONFIG, "mtu is '1400'"),
        ({"mtu": 67}, Code.INVALID_CONFIG, "mtu 67"),
        ({"mtu": 1279}, Code.INVALID_CONFIG, "which IPv6 needs"),
        ({"mtu": 9000}, Code.INVALID_CONFIG, "mtu 9000: must be at most 1500"),
        (cni_args(mtu=9000), Code.INVALID_CONFIG, "mtu 9000"),
        ({"routes": [{"dst": "192.0.2.0/24", "gw": "10.192.0.1"}]}, Code.INVALID_CONFIG,
         "gateway 10.192.0.1 is not reachable"),
        ({"ipam": {"routes": [{"dst": "0.0.0.0/0"}] * 2}}, Code.INVALID_CONFIG, "is there twice"),
        ({"ipam": {"type": "host-local", "subnet": "10.88.0.0/16"}}, Code.INVALID_CONFIG, "subnet"),
    ],
)  # fmt: skip
async def test_what_cannot_be_done_is_refused_by_name(
    service: Path, engine: GatedEngine, netns: Netns, asked: dict[str, Any], code: Code, word: str
) -> None:
    assert word in await refused(code, service, "ADD", "c1", netns.path, **asked)
    assert engine.list() == []
    assert netns.links() == {"lo"}
    assert await cni(service, "DEL", "c1", netns.path, **asked) is None


@pytest.mark.parametrize("version", ["0.3.1", "0.4.0", "1.0.0", "1.1.0"])
async def test_mtu_and_routes(service: Path, netns: Netns, version: str) -> None:
    asked: dict[str, Any] = {
        "mtu": 1400,
        "ipam": {"routes": [{"dst": "0.0.0.0/0"}, {"dst": "192.0.2.0/24"}]},
        "routes": [{"dst": "2001:db8::/32", "gw": "fe80::1"}],
    }
    result = await cni(service, "ADD", "c1", netns.path, version, **asked)
    routes = [(one["dst"], one["gw"]) for one in result["routes"] if "gw" in one]
    assert sorted(routes) == [
        ("0.0.0.0/0", "169.254.77.1"),
        ("192.0.2.0/24", "169.254.77.1"),
        ("2001:db8::/32", "fe80::1"),
        ("::/0", "fe80::1"),
    ]
    for target in ("192.0.2.0/24", "2001:db8::/32"):
        (there,) = json.loads(netns.run("ip", "-j", "route", "show", target) or "[]") or json.loads(
            netns.run("ip", "-6", "-j", "route", "show", target)
        )
        assert there["dev"] == "eth0"
    (shown,) = json.loads(netns.run("ip", "-j", "link", "show", "eth0"))
    assert shown["mtu"] == 1400
    if version == "1.1.0":
        assert [one["mtu"] for one in result["interfaces"]] == [1400, 1400]
    if version != "0.3.1":
        found = await cni(service, "CHECK", "c1", netns.path, version, prevResult=result, **asked)
        assert found is None
    assert await cni(service, "ADD", "c1", netns.path, version, **asked) == result
    await refused(Code.ALREADY_EXISTS, service, "ADD", "c1", netns.path, version)


@pytest.mark.parametrize("order", itertools.permutations(["eth0", "net1"]))
async def test_two_interfaces_as_multus_adds_them(
    service: Path, netns: Netns, order: tuple[str, str]
) -> None:
    """Two networks, one container: each answers on its own addresses, and a
    port of the node leads to the second. DEL of one, with the pod alive, takes
    its rules away.
    """
    results = {
        if_name: await cni(
            service,
            "ADD",
            "c1",
            netns.path,
            IFNAME=if_name,
            **(capability(portMappings=[{"hostPort": 8080, "containerPort": 80}]) if last else {}),
        )
        for if_name, last in zip(order, (False, True), strict=True)
    }
    with netns.listen(80) as server:
        targets = [("127.0.0.1", 8080)]
        for result in results.values():
            targets += [(ip["address"].partition("/")[0], 80) for ip in result["ips"]]
        for target in [one for one in targets if ":" not in one[0]]:
            with socket.create_connection(target, timeout=GENEROUS_S):
                server.accept()[0].close()
    for if_name in order:
        again = {"IFNAME": if_name, "prevResult": results[if_name]}
        assert await cni(service, "CHECK", "c1", netns.path, **again) is None
    assert "32000:" in netns.run("ip", "rule")
    assert await cni(service, "DEL", "c1", netns.path, IFNAME=order[1]) is None
    assert netns.links() == {"lo", order[0]}
    for family in ("-4", "-6"):
        assert "32000:" not in netns.run("ip", family, "rule")
