# SPDX-License-Identifier: Apache-2.0
"""Other plugins: in the same chain, on the same node, in the same pod.

With the real shim, both sockets of the service, and the kernel; executed as by
runtimes.
"""

import asyncio
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from metropolis.node.core.network.cni import wire
from metropolis.node.core.network.cni.protocol import VERSIONS, Code
from metropolis.node.core.network.cni.testing import (
    GENEROUS_S,
    PROGRAM,
    GatedEngine,
    Netns,
    cni,
    refused,
)
from metropolis.node.core.network.workloads.api.server import WorkloadServer
from metropolis.node.core.network.workloads.model import AttachIntent
from metropolis.node.core.network.workloads.testing.lab import Pod, pods
from metropolis.node.core.network.workloads.testing.served import Client

EVERYTHING: dict[str, Any] = {"cni.dev/valid-attachments": []}


@pytest.fixture
def client(engine: GatedEngine, tmp_path: Path) -> Iterator[Client]:
    """Return a client of the same engine's API."""
    path = tmp_path / "workload.sock"
    server = WorkloadServer(engine, path)
    server.start()
    made = Client(path)
    yield made
    made.close()
    server.stop()


# ---- Garbage collection -----------------------------------------------------


async def add(service: Path, container: str, pod: Pod, name: str, **more: Any) -> Any:
    return await cni(service, "ADD", container, pod.path, name=name, **more)


async def collect_cni(service: Path, engine: GatedEngine, name: str) -> set[str]:
    """Run a GC of a network without valid attachments; return the rest."""
    assert await cni(service, "GC", name=name, **EVERYTHING) is None
    return {one.workload_id for one in engine.list()}


async def test_a_collection_is_of_its_owner_alone(
    service: Path, engine: GatedEngine, client: Client
) -> None:
    """Each owner's GC leaves the others' attachments, in each order."""
    with pods(5) as (one, two, three, four, five):

        async def everything() -> None:
            await add(service, "a", one, "podman")
            await add(service, "b", two, "metropolis")
            await add(service, "long", three, "n" * 300)
            await asyncio.to_thread(client.attach, "api", four)
            await add(service, "prefix", five, "pod")

        everybody = {"a", "b", "long", "api", "prefix"}
        await everything()
        for name in ("nobody", "api", "cni", "podm", "Podman", "n" * 299):
            assert await collect_cni(service, engine, name) == everybody
        for name, gone in [
            ("podman", "a"),
            ("metropolis", "b"),
            ("n" * 300, "long"),
            ("pod", "prefix"),
        ]:
            assert await collect_cni(service, engine, name) == everybody - {gone}
            await everything()
        assert await asyncio.to_thread(client.collect) == {"api"}
        assert {one.workload_id for one in engine.list()} == everybody - {"api"}
        await everything()
        # An owner by name, over gRPC.
        owned = {"cni podman": {"a"}, "api": {"api"}, "cni nobody": set()}
        for owner, theirs in owned.items():
            assert await asyncio.to_thread(client.collect, owner=owner) == theirs
            await everything()
        assert await asyncio.to_thread(client.collect, "api") == set()
        for name in ("podman", "metropolis", "n" * 300, "pod"):
            left = await collect_cni(service, engine, name)
        assert left == {"api"}


async def test_what_has_no_owner_is_not_collected(
    service: Path, engine: GatedEngine, client: Client
) -> None:
    """Attachments of older versions: no GC removes them."""
    with pods(1) as (pod,):
        intent = AttachIntent("old", pod.path, "eth0", owner="")
        await asyncio.to_thread(engine.attach, intent)
        for name in ("metropolis", "podman"):
            assert await collect_cni(service, engine, name) == {"old"}
        for owner in ("", "api", "cni metropolis"):
            assert await asyncio.to_thread(client.collect, owner=owner) == set()
        await asyncio.to_thread(client.detach, "old")
        assert engine.list() == []


async def test_what_is_valid_stays_and_only_of_its_network(
    service: Path, engine: GatedEngine
) -> None:
    with pods(3) as (one, two, three):
        await add(service, "a", one, "podman")
        await add(service, "b", two, "podman")
        await add(service, "c", three, "metropolis")
        valid = [{"containerID": name, "ifname": "eth0"} for name in ("a", "c")]
        assert (
            await cni(service, "GC", name="podman", **{"cni.dev/valid-attachments": valid}) is None
        )
        assert {made.workload_id for made in engine.list()} == {"a", "c"}


# ---- DEL --------------------------------------------------------------------


def execute(
    service: Path, stdin: bytes, *args: str, **env: str
) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [PROGRAM, *args],
        input=stdin,
        env=env | {"CNIPROXY_SOCKET": str(service)},
        capture_output=True,
        timeout=GENEROUS_S,
        check=False,
    )


CONFIGURATIONS = {
    "empty": b"",
    "broken": b'{"cniVersion": "1.1.0", "name": ',
    "not an object": b"[]",
    "not UTF-8": b"\xff\xfe",
    "nested": b"[" * 100_000,
    "no name": b'{"cniVersion": "1.1.0"}',
    "odd name": b'{"cniVersion": "1.1.0", "name": "a/b"}',
    "another name": b'{"cniVersion": "1.1.0", "name": "another"}',
    "no version": b'{"name": "metropolis"}',
    "too old": b'{"cniVersion": "0.2.0", "name": "metropolis"}',
    "too new": b'{"cniVersion": "2.0.0", "name": "metropolis"}',
    "odd version": b'{"cniVersion": 7, "name": "metropolis"}',
    "unknown fields": json.dumps(
        {
            "cniVersion": "1.1.0",
            "name": "metropolis",
            "runtimeConfig": {"portMappings": [{"hostPort": 80}], "new": 7},
            "prevResult": "x",
            "dns": 7,
            "ipam": {"type": "host-local"},
            "new": {"x": 1},
        }
    ).encode(),
    "huge": b'{"name": "' + b"x" * wire.STDIN_MAX + b'"}',
}


@pytest.mark.parametrize("stdin", CONFIGURATIONS.values(), ids=CONFIGURATIONS)
async def test_del_goes_by_its_environment_alone(
    service: Path, engine: GatedEngine, netns: Netns, stdin: bytes
) -> None:
    await cni(service, "ADD", "c1", netns.path)
    await cni(service, "ADD", "c1", netns.path, IFNAME="net1")
    env = {"CNI_COMMAND": "DEL", "CNI_CONTAINERID": "c1", "CNI_IFNAME": "eth0"}
    for path in (netns.path, netns.path, ""):
        done = await asyncio.to_thread(execute, service, stdin, **env, CNI_NETNS=path)
        assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
        assert netns.links() == {"lo", "net1"}
        assert [made.if_name for made in engine.list()] == ["net1"]


@pytest.mark.parametrize("more", [{}, {"CNI_ARGS": "x"}, {"CNI_PATH": "relative"}])
async def test_del_looks_at_what_it_needs(
    service: Path, engine: GatedEngine, netns: Netns, more: dict[str, str]
) -> None:
    await cni(service, "ADD", "c1", netns.path)
    env = {"CNI_COMMAND": "DEL", "CNI_CONTAINERID": "c1", "CNI_IFNAME": "eth0"} | more
    assert (await asyncio.to_thread(execute, service, b"", "--odd", **env)).returncode == 0
    assert engine.list() == []


@pytest.mark.parametrize(
    "odd",
    [{"IFNAME": name} for name in ("all", "default", "eth%d", "ethà", "a b", ".", "x" * 16)]
    + [{"CONTAINERID": name} for name in ("a" * 256, "_a", "a/b", "ü", "\udcff")],
    ids=str,
)
async def test_del_of_what_no_add_takes(
    service: Path, engine: GatedEngine, netns: Netns, odd: dict[str, str]
) -> None:
    """A runtime deletes what it could not add, until that succeeds. Multus has
    such names from people, and lets `all` and `default` pass.
    """
    await cni(service, "ADD", "c1", netns.path)
    await refused(Code.INVALID_ENVIRONMENT, service, "ADD", "c2", netns.path, **odd)
    assert await cni(service, "DEL", "c2", netns.path, **odd) is None
    assert [made.workload_id for made in engine.list()] == ["c1"]


async def test_del_works_when_nothing_can_be_added(
    service: Path, engine: GatedEngine, netns: Netns
) -> None:
    await cni(service, "ADD", "c1", netns.path)
    engine.set_prefixes([])
    engine.conditions.set("uplink", "there is no uplink")
    await refused(Code.LIMITED, service, "STATUS")
    assert await cni(service, "DEL", "c1", netns.path) is None
    assert engine.list() == []


# ---- Chains, Multus, CRI-O --------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
async def test_what_containerd_and_crio_send(
    service: Path, engine: GatedEngine, netns: Netns, version: str
) -> None:
    """All capabilities are declared, and most ask for nothing."""
    args = (
        "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web;"
        "K8S_POD_INFRA_CONTAINER_ID=c1;K8S_POD_UID=7f2c;K8S_POD_NEW=x"
    )
    runtime: dict[str, Any] = {
        "io.kubernetes.cri.pod-annotations": {"kubernetes.io/config.seen": "2026"},
        "cgroupPath": "/kubepods.slice/pod7f2c.slice",
        "portMappings": [],
        "bandwidth": {"ingressRate": 0, "ingressBurst": 0, "egressRate": 0, "egressBurst": 0},
        "ipRanges": [],
        "aliases": None,
        "ips": None,
        "mac": "",
        "dns": {"Servers": ["10.0.0.1"], "Searches": None, "Options": []},
    }
    result = await cni(
        service,
        "ADD",
        "c1",
        netns.path,
        version,
        ARGS=args,
        runtimeConfig=runtime,
        capabilities=dict.fromkeys(runtime, True),
        type="cniproxy",
        ipam={},
    )
    assert result["dns"] == {"nameservers": ["10.0.0.1"]}
    if version != "0.3.1":
        held = {"prevResult": result, "runtimeConfig": runtime, "ARGS": args}
        assert await cni(service, "CHECK", "c1", netns.path, version, **held) is None
    assert (
        await cni(service, "DEL", "c1", netns.path, version, ARGS=args, prevResult=result) is None
    )
    assert engine.list() == []


async def test_a_chain_that_makes_the_routes_again(service: Path, netns: Netns) -> None:
    """As `route-override` does; a result does not say what source address a
    route prefers.
    """
    result = await cni(service, "ADD", "c1", netns.path, name="chain")
    netns.run("ip", "route", "del", "default")
    netns.run("ip", "route", "add", "default", "via", "169.254.77.1", "metric", "100")
    (default,) = [one for one in result["routes"] if one["dst"] == "0.0.0.0/0"]
    default["priority"] = 100
    assert await cni(service, "CHECK", "c1", netns.path, prevResult=result, name="chain") is None
    netns.run("ip", "route", "del", "default")
    netns.run("ip", "route", "add", "default", "dev", "eth0")
    said = await refused(Code.CHECK_FAILED, service, "CHECK", "c1", netns.path, prevResult=result)
    assert "route to 0.0.0.0/0 inside" in said


async def test_a_chain_that_changes_the_interface(service: Path, netns: Netns) -> None:
    """As `tuning` and `sbr` do, with results that include their changes."""
    result = await cni(service, "ADD", "c1", netns.path, name="chain")
    netns.run("ip", "link", "set", "eth0", "address", "02:aa:00:00:00:07", "mtu", "1300")
    netns.run("ip", "address", "add", "192.0.2.7/24", "dev", "eth0")
    netns.run("ip", "route", "del", "default")
    said = await refused(Code.CHECK_FAILED, service, "CHECK", "c1", netns.path, prevResult=result)
    for word in ("MAC of 'eth0' inside", "MTU of 'eth0' inside", "route to 0.0.0.0/0 inside"):
        assert word in said
    result["interfaces"].append({"name": "ifb7"})
    result["interfaces"][1] |= {"mac": "02:aa:00:00:00:07", "mtu": 1300}
    result["ips"].append({"address": "192.0.2.7/24", "interface": 1})
    result["routes"] = [one for one in result["routes"] if one["dst"] != "0.0.0.0/0"]
    assert await cni(service, "CHECK", "c1", netns.path, prevResult=result, name="chain") is None
    netns.run("ip", "address", "del", f"{result['ips'][0]['address']}", "dev", "eth0")
    said = await refused(Code.CHECK_FAILED, service, "CHECK", "c1", netns.path, prevResult=result)
    assert "address 10.192.0" in said
    assert await cni(service, "DEL", "c1", netns.path, prevResult=result) is None
    assert netns.links() == {"lo"}


async def test_several_networks_of_one_pod(
    service: Path, engine: GatedEngine, netns: Netns
) -> None:
    """As Multus does: one container, a network and an interface each."""
    first = await cni(service, "ADD", "c1", netns.path, name="cluster")
    wanted = {"cni": {"ips": ["10.192.0.77"], "mac": "02:ab:00:00:00:01", "unknown": 7}}
    second = await cni(service, "ADD", "c1", netns.path, name="storage", IFNAME="net1", args=wanted)
    third = await cni(service, "ADD", "c1", netns.path, name="storage", IFNAME="net2")
    assert netns.links() == {"lo", "eth0", "net1", "net2"}
    assert second["ips"][0]["address"] == "10.192.0.77/32"
    assert second["interfaces"][1]["mac"] == "02:ab:00:00:00:01"
    # The first network's routes are used.
    assert "dev eth0" in netns.run("ip", "route", "get", "192.0.2.1")
    for name, result, more in [
        ("cluster", first, {}),
        ("storage", second, {"IFNAME": "net1"}),
        ("storage", third, {"IFNAME": "net2"}),
    ]:
        check = cni(service, "CHECK", "c1", netns.path, name=name, prevResult=result, **more)
        assert await check is None
    valid = [{"containerID": "c1", "ifname": name} for name in ("eth0", "net2")]
    await cni(service, "GC", name="storage", **{"cni.dev/valid-attachments": valid})
    assert netns.links() == {"lo", "eth0", "net2"}
    assert await cni(service, "DEL", "c1", netns.path, name="storage", IFNAME="net2") is None
    assert [made.if_name for made in engine.list()] == ["eth0"]
    netns.run("ping", "-c1", "-W30", "169.254.77.1")


async def test_an_interface_beside_another_plugins(
    service: Path, engine: GatedEngine, netns: Netns
) -> None:
    """Multus, with another plugin's eth0 that has the default routes."""
    for command in (
        "link add eth0 type veth peer name peer",
        "address add 192.0.2.7/24 dev eth0",
        "-6 address add 2001:db8::7/64 dev eth0 nodad",
        "link set peer up",
        "link set eth0 up",
        "route add default via 192.0.2.1",
        "-6 route add default via 2001:db8::1",
    ):
        netns.run("ip", *command.split())
    before = netns.run("ip", "route", "show", "default")
    result = await cni(service, "ADD", "c1", netns.path, name="storage", IFNAME="net1")
    assert before in netns.run("ip", "route", "show", "default")
    assert "dev eth0" in netns.run("ip", "route", "get", "198.51.100.1")
    check = cni(
        service, "CHECK", "c1", netns.path, name="storage", IFNAME="net1", prevResult=result
    )
    assert await check is None
    netns.run("ping", "-c1", "-W30", "-Inet1", "169.254.77.1")
    await cni(service, "DEL", "c1", netns.path, name="storage", IFNAME="net1")
    assert engine.list() == []
    assert before == netns.run("ip", "route", "show", "default")
