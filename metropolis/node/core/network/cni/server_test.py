# SPDX-License-Identifier: Apache-2.0
"""The real shim, the real server, the real engine and the kernel.

Runs in a network namespace of its own; CNIPROXY names the shim.
"""

import asyncio
import contextlib
import json
import os
import resource
import socket
import stat
from ipaddress import ip_address, ip_interface, ip_network
from pathlib import Path

import pytest

from metropolis.node.core.network.cni import wire
from metropolis.node.core.network.cni.adapter import Adapter
from metropolis.node.core.network.cni.protocol import Code
from metropolis.node.core.network.cni.server import CniServer
from metropolis.node.core.network.cni.testing import (
    PREFIXES,
    Failure,
    GatedEngine,
    Netns,
    cni,
    execution,
    refused,
    run,
    start,
    until,
)
from metropolis.node.core.network.cni.wire import Answer, Request
from metropolis.node.core.network.workloads.model import (
    AttachIntent,
    Attachment,
)


@pytest.mark.parametrize("version", ["0.3.1", "0.4.0", "1.0.0", "1.1.0"])
async def test_add_makes_an_interface_that_reaches_the_first_hop(
    service: Path, netns: Netns, version: str
) -> None:
    result = await cni(service, "ADD", "c1", netns.path, version)
    assert result["cniVersion"] == version
    host, workload = result["interfaces"]
    shown = json.loads(netns.run("ip", "-j", "address", "show", "eth0"))[0]
    assert workload["mac"] == shown["address"]
    assert workload["sandbox"] == netns.path
    assert workload.get("mtu", shown["mtu"]) == shown["mtu"]
    addresses = {ip_interface(ip["address"]).ip for ip in result["ips"]}
    assert {a.version for a in addresses} == {4, 6}
    assert addresses <= {ip_address(a["local"]) for a in shown["addr_info"]}
    (link,) = json.loads(run("ip", "-j", "link", "show", host["name"]))
    assert host["mac"] == link["address"]
    netns.run("ping", "-c1", "-W30", "169.254.77.1")
    netns.run("ping", "-c1", "-W30", "fe80::1%eth0")
    assert await cni(service, "DEL", "c1", netns.path, version) is None
    assert netns.links() == {"lo"}


async def test_del_is_idempotent_and_needs_no_namespace(service: Path, engine: GatedEngine) -> None:
    for how in ("twice", "empty", "gone", "odd"):
        netns = Netns()
        await cni(service, "ADD", how, netns.path)
        path = {"empty": "", "odd": "../" * 2000}.get(how, netns.path)
        if how == "gone":
            netns.close()
        await cni(service, "DEL", how, path)
        await cni(service, "DEL", how, path)
        assert engine.list() == []
        if how != "gone":
            netns.close()


@pytest.mark.parametrize(
    "sent", [wire.encode_request(Request((), {"CNI_COMMAND": "VERSION"}, b"")), bytes(20)]
)
async def test_callers_that_take_no_answer_keep_nobody_out(
    service: Path, netns: Netns, sent: bytes
) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(150):  # more than are served at once
            _, writer = await asyncio.open_unix_connection(service)
            stack.callback(writer.close)
            writer.write(sent)
        await cni(service, "ADD", "c1", netns.path)
        await cni(service, "DEL", "c1", netns.path)


async def test_silent_callers_do_not_use_up_the_files(
    engine: GatedEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both ends are in this process, which may have 256 descriptors."""
    path = tmp_path / "cni.sock"
    monkeypatch.setattr(f"{CniServer.__module__}._REQUEST_S", 0.5)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        serving = asyncio.create_task(CniServer(engine, path).run())
        await until(path.exists)
        with contextlib.ExitStack() as stack:
            for _ in range(128):
                caller = stack.enter_context(socket.socket(socket.AF_UNIX))
                caller.connect(str(path))
            assert await cni(path, "STATUS") is None
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_del_of_another_sandbox_leaves_this_one(
    service: Path, engine: GatedEngine, netns: Netns
) -> None:
    await cni(service, "ADD", "new", netns.path)
    await cni(service, "DEL", "old", netns.path)
    assert [a.workload_id for a in engine.list()] == ["new"]
    netns.run("ping", "-c1", "-W30", "169.254.77.1")


async def test_check(service: Path, engine: GatedEngine, netns: Netns) -> None:
    result = await cni(service, "ADD", "c1", netns.path)
    assert await cni(service, "CHECK", "c1", netns.path, prevResult=result) is None
    old = await cni(service, "ADD", "c1", netns.path, "0.4.0")
    assert await cni(service, "CHECK", "c1", netns.path, "0.4.0", prevResult=old) is None
    netns.run("ip", "link", "set", "eth0", "mtu", "1300")
    said = await refused(Code.CHECK_FAILED, service, "CHECK", "c1", netns.path, prevResult=result)
    assert "MTU of 'eth0' inside: expected 1500, found 1300" in said
    netns.run("ip", "link", "set", "eth0", "mtu", "1500")
    netns.run("ip", "route", "del", "default")
    said = await refused(Code.CHECK_FAILED, service, "CHECK", "c1", netns.path, prevResult=result)
    assert "route to 0.0.0.0/0 inside: expected via 169.254.77.1" in said
    other = Netns()
    said = await refused(Code.CHECK_FAILED, service, "CHECK", "c1", other.path, prevResult=result)
    assert "network namespace at" in said
    other.close()
    name = result["interfaces"][0]["name"]
    # Not `in`: whether the engine has heard of it yet must not matter.
    run("ip", "link", "delete", name)
    with pytest.raises(Failure) as info:
        await cni(service, "CHECK", "c1", netns.path, prevResult=result)
    assert info.value.code in (Code.CHECK_FAILED, Code.UNKNOWN_CONTAINER)
    await until(lambda: not engine.list())
    await refused(Code.UNKNOWN_CONTAINER, service, "CHECK", "c1", netns.path, prevResult=result)


async def test_check_of_a_container_that_was_never_added(service: Path, netns: Netns) -> None:
    await refused(Code.UNKNOWN_CONTAINER, service, "CHECK", "c1", netns.path, prevResult={})


async def test_add_may_be_repeated(service: Path, netns: Netns) -> None:
    first = await cni(service, "ADD", "c1", netns.path)
    assert await cni(service, "ADD", "c1", netns.path) == first


async def test_requested_addresses_and_mac(service: Path, netns: Netns) -> None:
    runtime = {"ips": ["10.192.0.77/24", "fd00:10:192::77"], "mac": "02:AB:00:00:00:01"}
    result = await cni(service, "ADD", "c1", netns.path, runtimeConfig=runtime)
    assert [ip["address"] for ip in result["ips"]] == ["10.192.0.77/32", "fd00:10:192::77/128"]
    assert result["interfaces"][1]["mac"] == "02:ab:00:00:00:01"


async def test_what_add_is_refused_for(
    service: Path, engine: GatedEngine, netns: Netns, tmp_path: Path
) -> None:
    path = netns.path
    await refused(Code.INVALID_ENVIRONMENT, service, "ADD", "c1", "/run/netns/missing")
    await refused(Code.INVALID_ENVIRONMENT, service, "ADD", "c1", "/dev/null")
    # Whatever words are in a path.
    await refused(Code.INVALID_ENVIRONMENT, service, "ADD", "c1", "/run/netns/requested_ip")
    requested = tmp_path / "requested_mac"
    requested.touch()
    await refused(Code.INVALID_ENVIRONMENT, service, "ADD", "c1", str(requested))
    outside = {"ips": ["192.0.2.1"]}
    await refused(Code.INVALID_CONFIG, service, "ADD", "c1", path, runtimeConfig=outside)
    multicast = {"mac": "03:00:00:00:00:01"}
    await refused(Code.INVALID_CONFIG, service, "ADD", "c1", path, runtimeConfig=multicast)
    limits = {"bandwidth": {"ingressRate": 1000}}
    said = await refused(Code.INVALID_CONFIG, service, "ADD", "c1", path, runtimeConfig=limits)
    assert "runtimeConfig.bandwidth.ingressRate 1000" in said
    netns.run("ip", "link", "add", "eth0", "type", "veth", "peer", "eth9")
    await refused(Code.ALREADY_EXISTS, service, "ADD", "c1", path)
    netns.run("ip", "link", "delete", "eth0")
    engine.set_prefixes([])
    await refused(Code.TRY_AGAIN_LATER, service, "ADD", "c1", path)
    assert engine.list() == []
    assert netns.links() == {"lo"}


async def test_status_follows_the_prefixes(service: Path, engine: GatedEngine) -> None:
    assert await cni(service, "STATUS") is None
    engine.set_prefixes([])
    await refused(Code.NOT_AVAILABLE, service, "STATUS")


async def test_status_says_all_that_is_wrong(service: Path, engine: GatedEngine) -> None:
    engine.conditions.set("rules", "the rule set is gone")
    engine.conditions.set("sysctls", "ip_forward is 0")
    error = await refused(Code.LIMITED, service, "STATUS")
    assert "the rule set is gone; ip_forward is 0" in error
    engine.set_prefixes([])
    assert "no address prefix" in await refused(Code.LIMITED, service, "STATUS")


@pytest.mark.parametrize("full", ["10.192.0.0/30", "fd00:10:192::/126"])
async def test_status_of_a_node_that_is_full(service: Path, engine: GatedEngine, full: str) -> None:
    """One family is full: an ADD must have both. The API's own Status is about
    the node, and stays OK.
    """
    other = PREFIXES[1] if "." in full else PREFIXES[0]
    engine.set_prefixes([ip_network(full), other])
    spaces = [Netns() for _ in range(ip_network(full).num_addresses - 2)]
    for i, netns in enumerate(spaces):
        assert await cni(service, "STATUS") is None
        await cni(service, "ADD", f"c{i}", netns.path)
    if ":" in full:  # it has no broadcast address
        spaces.append(Netns())
        await cni(service, "ADD", "last", spaces[-1].path)
    error = await refused(Code.NOT_AVAILABLE, service, "STATUS")
    assert f"no free IPv{ip_network(full).version} address left in {full}" in error
    engine.status()
    assert full in engine.notes()["addresses"]
    await cni(service, "DEL", "c0", spaces[0].path)
    assert await cni(service, "STATUS") is None
    assert "addresses" not in engine.notes()
    for netns in spaces:
        netns.close()


async def test_version(service: Path) -> None:
    assert await cni(service, "VERSION", "", "", "0.4.0") == {
        "cniVersion": "0.4.0",
        "supportedVersions": ["0.3.1", "0.4.0", "1.0.0", "1.1.0"],
    }


async def test_a_killed_add_is_taken_back(service: Path, engine: GatedEngine, netns: Netns) -> None:
    engine.gate.clear()
    process = await start(service, execution("ADD", "c1", netns.path))
    await asyncio.to_thread(engine.arrived.acquire)
    process.kill()
    await process.wait()
    # The retry waits for the first one's end, and is not undone with it.
    retry = asyncio.create_task(cni(service, "ADD", "c1", netns.path))
    engine.gate.set()
    result = await retry
    netns.run("ping", "-c1", "-W30", "169.254.77.1")
    (attachment,) = engine.list()
    assert attachment.host_interface == result["interfaces"][0]["name"]
    assert ip_interface(result["ips"][0]["address"]).ip == attachment.ips[0]


async def test_a_killed_add_without_a_retry_leaves_nothing(
    service: Path, engine: GatedEngine, netns: Netns
) -> None:
    engine.gate.clear()
    process = await start(service, execution("ADD", "c1", netns.path))
    await asyncio.to_thread(engine.arrived.acquire)
    process.kill()
    await process.wait()
    engine.gate.set()
    await until(lambda: engine.list() == [] and netns.links() == {"lo"})


async def test_an_add_that_is_repeated_and_killed_stays(
    service: Path, engine: GatedEngine, netns: Netns
) -> None:
    await cni(service, "ADD", "c1", netns.path)
    before = engine.list()
    engine.arrived.acquire()
    engine.gate.clear()
    process = await start(service, execution("ADD", "c1", netns.path))
    await asyncio.to_thread(engine.arrived.acquire)
    process.kill()
    await process.wait()
    engine.gate.set()
    await cni(service, "DEL", "other", netns.path)
    await cni(service, "ADD", "c1", netns.path)
    assert engine.list() == before


async def test_an_add_whose_caller_left_while_it_waited_is_not_begun(
    service: Path, engine: GatedEngine, netns: Netns
) -> None:
    engine.gate.clear()
    first = asyncio.create_task(cni(service, "ADD", "c1", netns.path))
    await asyncio.to_thread(engine.arrived.acquire)
    _, writer = await asyncio.open_unix_connection(service)
    writer.write(wire.encode_request(execution("ADD", "c1", netns.path, IFNAME="eth1")))
    # The loop serves in order: now it has the request ...
    await cni(service, "VERSION")
    writer.close()
    await cni(service, "VERSION")  # ... and now it knows that the caller left.
    engine.gate.set()
    await first
    await cni(service, "DEL", "c1", IFNAME="eth1")  # waits for it
    assert not engine.arrived.acquire(blocking=False)
    assert netns.links() == {"lo", "eth0"}


async def test_what_waits_for_an_operation_that_does_not_end_gives_up(
    service: Path, engine: GatedEngine, netns: Netns, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Adapter, "patience_s", 0.05)
    await cni(service, "ADD", "c1", netns.path)
    engine.arrived.acquire()
    engine.gate.clear()
    hung = asyncio.create_task(cni(service, "ADD", "c1", netns.path))
    await asyncio.to_thread(engine.arrived.acquire)
    await refused(Code.TRY_AGAIN_LATER, service, "ADD", "c1", netns.path)
    await refused(Code.TRY_AGAIN_LATER, service, "DEL", "c1", netns.path)
    assert await cni(service, "STATUS") is None
    engine.gate.set()
    await hung
    await cni(service, "DEL", "c1", netns.path)
    assert engine.list() == []


async def test_many_at_once(service: Path, engine: GatedEngine) -> None:
    spaces = [Netns() for _ in range(40)]
    adds = [cni(service, "ADD", f"c{i}", n.path) for i, n in enumerate(spaces)]
    results = await asyncio.gather(*adds)
    assert len({r["ips"][0]["address"] for r in results}) == 40
    assert len(engine.list()) == 40
    dels = [cni(service, "DEL", f"c{i}", n.path) for i, n in enumerate(spaces)]
    await asyncio.gather(*dels)
    assert engine.list() == []
    for netns in spaces:
        netns.close()


async def test_status_does_not_wait_behind_attaches(service: Path, engine: GatedEngine) -> None:
    spaces = [Netns() for _ in range(20)]
    engine.gate.clear()
    adds = [asyncio.create_task(cni(service, "ADD", f"c{i}", n.path)) for i, n in enumerate(spaces)]
    for _ in range(16):  # as many as there are threads
        await asyncio.to_thread(engine.arrived.acquire)
    assert await cni(service, "STATUS") is None
    engine.gate.set()
    await asyncio.gather(*adds)
    for netns in spaces:
        netns.close()


async def raw(service: Path, data: bytes) -> bytes:
    reader, writer = await asyncio.open_unix_connection(service)
    with contextlib.suppress(ConnectionError):
        writer.write(data)
        writer.write_eof()
        await writer.drain()
    answer = await reader.read()
    writer.close()
    return answer


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"GET / HTTP/1.1\r\n\r\n",
        os.urandom(100_000),
        wire.encode_request(Request((), {}, b"x" * 50))[:-1],
        wire.encode_request(Request((), {}, b""))[:-1],
    ],
)
async def test_garbage_is_answered_and_forgotten(service: Path, data: bytes) -> None:
    answer = wire.parse_answer(await raw(service, data))
    assert json.loads(answer.stdout)["code"] == Code.IO_FAILURE
    assert await cni(service, "STATUS") is None


async def test_an_engine_that_fails_is_an_internal_error(
    service: Path, engine: GatedEngine, netns: Netns, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(intent: AttachIntent) -> Attachment:
        raise ZeroDivisionError("not for the caller")

    monkeypatch.setattr(engine, "attach", broken)
    said = await refused(Code.INTERNAL, service, "ADD", "c1", netns.path)
    assert "not for the caller" not in said


async def test_a_result_that_cannot_be_made_is_undone(
    service: Path, engine: GatedEngine, netns: Netns
) -> None:
    deep = json.loads('{"x":' * 900 + "1" + "}" * 900)
    wide = {"interfaces": [{"name": "x" * 1000, "deep": deep}] * 700}
    await refused(Code.INVALID_CONFIG, service, "ADD", "c1", netns.path, prevResult=wide)
    await until(lambda: engine.list() == [])


async def test_stopping_finishes_calls_in_flight(
    engine: GatedEngine, tmp_path: Path, netns: Netns
) -> None:
    path = tmp_path / "cni.sock"
    server = asyncio.create_task(CniServer(engine, path).run())
    await until(path.exists)
    engine.gate.clear()
    adding = asyncio.create_task(cni(path, "ADD", "c1", netns.path))
    await asyncio.to_thread(engine.arrived.acquire)
    server.cancel()
    await until(lambda: not path.exists())
    assert not server.done()
    engine.gate.set()
    assert (await adding)["interfaces"]
    with pytest.raises(asyncio.CancelledError):
        await server
    await refused(Code.NOT_AVAILABLE, path, "STATUS")


async def test_the_socket_is_private_and_replaces_one_that_is_left(
    engine: GatedEngine, tmp_path: Path
) -> None:
    path = tmp_path / "made" / "cni.sock"
    path.parent.mkdir(0o700)
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    server = asyncio.create_task(CniServer(engine, path).run())
    await until(lambda: stat.S_IMODE(path.stat().st_mode) == 0o600)
    assert await cni(path, "STATUS") is None
    with pytest.raises(OSError, match="another server listens there"):
        await CniServer(engine, path).run()
    assert await cni(path, "STATUS") is None
    server.cancel()
    with pytest.raises(asyncio.CancelledError):
        await server


async def test_an_answer_that_no_one_reads_holds_nobody_up(
    service: Path, engine: GatedEngine, netns: Netns
) -> None:
    """A caller that gives no receipt holds its own container.

    Nothing is undone while it lives.
    """
    reader, writer = await asyncio.open_unix_connection(service)
    writer.write(wire.encode_request(execution("ADD", "c1", netns.path)))
    header = await reader.readexactly(wire.ANSWER_HEADER_SIZE)
    size = int.from_bytes(header[-4:])
    answer = wire.parse_answer(header + await reader.readexactly(size))
    assert answer == Answer(answer.stdout, 0)
    other = Netns()
    await cni(service, "ADD", "c2", other.path)
    assert {a.workload_id for a in engine.list()} == {"c1", "c2"}
    writer.close()
    await until(lambda: {a.workload_id for a in engine.list()} == {"c2"})
    other.close()
