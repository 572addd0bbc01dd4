# SPDX-License-Identifier: Apache-2.0
"""Host ports by CNI: the shim, the server, the engine and the kernel."""

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from metropolis.node import allocs
from metropolis.node.core.network.cni.protocol import Code
from metropolis.node.core.network.cni.testing import (
    GENEROUS_S,
    GatedEngine,
    Netns,
    cni,
    refused,
    run,
    until,
)

TABLE = f"inet {allocs.NFTABLES_WORKLOADS}"


def elements(name: str) -> str:
    """Return the elements of a map, as `nft` prints them."""
    (found,) = [
        one["map"]
        for one in json.loads(run("nft", "-j", "list", "map", *TABLE.split(), name))["nftables"]
        if "map" in one
    ]
    return json.dumps(found.get("elem", []))


def ports(*mappings: dict[str, Any]) -> dict[str, Any]:
    return {"runtimeConfig": {"portMappings": list(mappings)}}


WEB = {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}
# As containerd writes it.
DNS = {"HostPort": 5353, "ContainerPort": 53, "Protocol": "UDP", "HostIP": ""}
DECLARED = {"hostPort": 0, "containerPort": 9000, "protocol": "tcp"}


@pytest.fixture
def second() -> Iterator[Netns]:
    made = Netns()
    yield made
    made.close()


async def test_a_port_from_add_to_del(service: Path, engine: GatedEngine, netns: Netns) -> None:
    asked = ports(WEB, DNS, DECLARED)
    plain = await cni(service, "ADD", "c1", netns.path)
    assert await cni(service, "DEL", "c1", netns.path) is None
    result = await cni(service, "ADD", "c1", netns.path, **asked)
    # Host ports add nothing to the result.
    assert result.keys() == plain.keys()
    for name in ("any4", "any6"):
        found = elements(name)
        assert all(port in found for port in ("8080", "5353")), found
        assert " 9000]" not in found
    # Again, in other words; but not with other ports.
    assert await cni(service, "ADD", "c1", netns.path, **ports(DNS, WEB)) == result
    await refused(Code.ALREADY_EXISTS, service, "ADD", "c1", netns.path, **ports(WEB))
    assert await cni(service, "CHECK", "c1", netns.path, prevResult=result, **asked) is None
    # DEL does not depend on portMappings.
    assert await cni(service, "DEL", "c1", netns.path, **ports({"hostPort": "x"})) is None
    assert engine.list() == []
    assert elements("any4") == elements("any6") == "[]"


async def test_a_client_reaches_it(service: Path, netns: Netns) -> None:
    await cni(service, "ADD", "c1", netns.path, **ports(WEB))
    with (
        netns.listen(80) as server,
        socket.create_connection(("127.0.0.1", 8080), timeout=GENEROUS_S),
    ):
        accepted, source = server.accept()
        accepted.close()
    assert source[0] == str(allocs.FIRST_HOP_IPV4)
    await cni(service, "DEL", "c1", netns.path)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", 8080), timeout=GENEROUS_S)


@pytest.mark.parametrize(
    ("family", "node"), [(socket.AF_INET, "192.0.2.78"), (socket.AF_INET6, "2001:db8::78")]
)
async def test_a_pod_reaches_itself_by_the_interface_that_has_the_port(
    service: Path, netns: Netns, family: socket.AddressFamily, node: str
) -> None:
    """Also if that is not the first one: then a client is bound to it."""
    run("ip", "address", "add", node, "dev", "lo", "nodad")
    run("sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
    clients = {}
    for name, port in (("eth0", 8080), ("eth1", 8081)):
        asked = ports({"hostPort": port, "containerPort": 80})
        result = await cni(service, "ADD", "c1", netns.path, IFNAME=name, **asked)
        own = [one["address"].partition("/")[0] for one in result["ips"]]
        (clients[port],) = [ip for ip in own if (":" in ip) == (family == socket.AF_INET6)]
    with netns.listen(80, family) as server:
        server.settimeout(GENEROUS_S)
        for port, own_address in clients.items():
            with netns.client(family) as client:
                client.settimeout(GENEROUS_S)
                client.bind((own_address, 0))
                client.connect((node, port))
                accepted, source = server.accept()
                accepted.close()
                assert source[0] != own_address
    run("ip", "address", "del", node, "dev", "lo")


async def test_check_notices_a_port_that_is_gone(service: Path, netns: Netns) -> None:
    result = await cni(service, "ADD", "c1", netns.path, **ports(WEB))
    run("nft", f"flush map {TABLE} any4")
    said = await refused(
        Code.CHECK_FAILED, service, "CHECK", "c1", netns.path, prevResult=result, **ports(WEB)
    )
    assert "8080" in said


@pytest.mark.parametrize("address", ["192.0.2.77", "2001:db8::77"])
async def test_check_notices_an_address_that_the_node_has_lost(
    service: Path, engine: GatedEngine, netns: Netns, address: str
) -> None:
    """It is reported, and its port stays: the address may come back."""
    asked = ports(WEB | {"hostIP": address}, DNS)
    run("ip", "address", "add", address, "dev", "lo", "nodad")
    result = await cni(service, "ADD", "c1", netns.path, **asked)
    before = elements("at4") + elements("at6")
    assert await cni(service, "CHECK", "c1", netns.path, prevResult=result, **asked) is None
    run("ip", "address", "del", address, "dev", "lo")
    said = await refused(
        Code.CHECK_FAILED, service, "CHECK", "c1", netns.path, prevResult=result, **asked
    )
    assert f"host port 8080/tcp of {address}" in said
    assert "the node has no such address now" in said
    assert "5353" not in said
    assert engine.repair(lambda _: True) == []
    assert elements("at4") + elements("at6") == before
    run("ip", "address", "add", address, "dev", "lo", "nodad")
    assert await cni(service, "CHECK", "c1", netns.path, prevResult=result, **asked) is None
    run("ip", "address", "del", address, "dev", "lo")


async def test_a_port_of_another(
    service: Path, engine: GatedEngine, netns: Netns, second: Netns
) -> None:
    await cni(service, "ADD", "c1", netns.path, **ports(WEB))
    said = await refused(Code.ALREADY_EXISTS, service, "ADD", "c2", second.path, **ports(WEB))
    assert "8080" in said
    assert "c1" in said
    # A runtime deletes what it could not add; the other's port stays.
    assert await cni(service, "DEL", "c2", second.path, **ports(WEB)) is None
    assert "8080" in elements("any4")
    assert [made.workload_id for made in engine.list()] == ["c1"]
    assert second.links() == {"lo"}
    await cni(service, "DEL", "c1", netns.path)
    await cni(service, "ADD", "c2", second.path, **ports(WEB))


async def test_a_port_of_a_process(service: Path, engine: GatedEngine, netns: Netns) -> None:
    with socket.create_server(("0.0.0.0", 0)) as listening:
        port = listening.getsockname()[1]
        asked = ports({"hostPort": port, "containerPort": 80})
        said = await refused(Code.IN_USE, service, "ADD", "c1", netns.path, **asked)
        assert f"tcp port {port}" in said
    assert engine.list() == []
    await cni(service, "ADD", "c1", netns.path, **asked)


async def test_all_that_is_wrong_is_in_one_error(
    service: Path, engine: GatedEngine, netns: Netns
) -> None:
    for wrong in (
        [WEB | {"hostIP": "::1"}, WEB | {"hostPort": 81, "containerPort": 0}, WEB, WEB],
        [WEB | {"hostIP": f"198.51.100.{n}"} for n in range(4)],
    ):
        said = await refused(Code.INVALID_CONFIG, service, "ADD", "c1", netns.path, **ports(*wrong))
        words = ["[0].hostIP", "[1].containerPort", "[3]: tcp port 8080"]
        assert all(word in said for word in words) or said.count("is not an address") == 4
    assert engine.list() == []
    assert netns.links() == {"lo"}


@pytest.mark.parametrize(
    ("mapping", "word"),
    [
        (WEB | {"hostIP": "::1"}, "::1"),
        (WEB | {"hostIP": "198.51.100.1"}, "is not an address of this node"),
        (WEB | {"protocol": "icmp"}, "portMappings[0].protocol"),
        (WEB | {"hostPort": "80"}, "portMappings[0].hostPort"),
    ],
)
async def test_what_is_refused_leaves_nothing(
    service: Path, engine: GatedEngine, netns: Netns, mapping: dict[str, Any], word: str
) -> None:
    said = await refused(Code.INVALID_CONFIG, service, "ADD", "c1", netns.path, **ports(mapping))
    assert word in said
    assert engine.list() == []
    assert netns.links() == {"lo"}


async def test_an_add_that_nobody_received_leaves_no_port(
    service: Path, engine: GatedEngine, netns: Netns
) -> None:
    huge = {"interfaces": [{"name": "x" * (1 << 20)}]}
    await refused(
        Code.INVALID_CONFIG, service, "ADD", "c1", netns.path, prevResult=huge, **ports(WEB)
    )
    # The answer comes before the ADD is taken back.
    await until(lambda: engine.list() == [] and elements("any4") == "[]")
