# SPDX-License-Identifier: Apache-2.0
"""GC by the real shim, server, engine and kernel, beside ADDs.

Runs in a network namespace of its own; CNIPROXY names the shim.
"""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from metropolis.node.core.network.cni.protocol import Code
from metropolis.node.core.network.cni.testing import (
    GatedEngine,
    Netns,
    cni,
    refused,
    until,
)
from metropolis.node.core.network.workloads.datapath.interface import Record
from metropolis.node.core.network.workloads.datapath.veth import KernelDatapath
from metropolis.node.core.network.workloads.errors import KernelRefused
from metropolis.node.core.network.workloads.model import (
    AttachIntent,
)


async def test_gc(service: Path, engine: GatedEngine) -> None:
    spaces = [Netns() for _ in range(6)]
    for i, netns in enumerate(spaces):
        await cni(service, "ADD", f"c{i}", netns.path)
    spaces.pop().close()  # the namespace of a stale one may be gone
    valid = [{"containerID": f"c{i}", "ifname": "eth0"} for i in (0, 3)]
    valid += [{"containerID": "c1", "ifname": "eth1"}, {"containerID": "x", "ifname": "eth0"}]
    assert await cni(service, "GC", **{"cni.dev/valid-attachments": valid}) is None
    assert {a.workload_id for a in engine.list()} == {"c0", "c3"}
    await refused(Code.INVALID_CONFIG, service, "GC")
    assert {a.workload_id for a in engine.list()} == {"c0", "c3"}
    assert await cni(service, "GC", **{"cni.dev/valid-attachments": []}) is None
    assert engine.list() == []
    for netns in spaces:
        netns.close()


EVERYTHING: dict[str, Any] = {"cni.dev/valid-attachments": []}


async def test_gc_spares_what_has_no_owner(
    service: Path, engine: GatedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As attachments from before owners were recorded."""
    spaces = [Netns() for _ in range(2)]
    await cni(service, "ADD", "new", spaces[0].path)
    with monkeypatch.context() as patch:
        patch.setattr("metropolis.node.core.network.cni.protocol.owner_of", lambda _: "")
        await cni(service, "ADD", "old", spaces[1].path)
    owners = {one.workload_id: one.owner for one in engine.list()}
    assert owners.pop("new").startswith("cni ")
    assert owners == {"old": ""}
    assert await cni(service, "GC", **{"cni.dev/valid-attachments": []}) is None
    assert [one.workload_id for one in engine.list()] == ["old"]
    await cni(service, "DEL", "old", spaces[1].path)
    assert engine.list() == []
    for netns in spaces:
        netns.close()


async def test_gc_spares_an_add_in_flight(service: Path, engine: GatedEngine) -> None:
    stale, early, late = Netns(), Netns(), Netns()
    await cni(service, "ADD", "stale", stale.path)
    engine.arrived.acquire()
    engine.made.clear()
    adding = [asyncio.create_task(cni(service, "ADD", "late", late.path))]
    await until(lambda: len(engine.list("late")) == 1)
    engine.gate.clear()
    adding.append(asyncio.create_task(cni(service, "ADD", "early", early.path)))
    for _ in adding:
        await asyncio.to_thread(engine.arrived.acquire)
    collecting = asyncio.create_task(cni(service, "GC", **EVERYTHING))
    await until(lambda: not engine.list("stale"))
    engine.gate.set()
    engine.made.set()
    await asyncio.gather(*adding, collecting)
    assert {a.workload_id for a in engine.list()} == {"early", "late"}
    for netns in (stale, early, late):
        netns.close()


async def start_gc_and_stop_it(service: Path, engine: GatedEngine) -> asyncio.Task[Any]:
    """Start a collection of everything; return when it has read the state."""
    engine.seen.clear()
    collecting = asyncio.create_task(cni(service, "GC", **EVERYTHING))
    await asyncio.to_thread(engine.collecting.acquire)
    return collecting


async def test_gc_spares_what_is_added_while_it_runs(
    service: Path, engine: GatedEngine, netns: Netns
) -> None:
    await cni(service, "ADD", "c1", netns.path)
    collecting = await start_gc_and_stop_it(service, engine)
    await cni(service, "ADD", "c1", netns.path)
    engine.seen.set()
    await collecting
    assert len(engine.list("c1")) == 1


async def test_gc_spares_what_is_not_what_it_saw(
    service: Path, engine: GatedEngine, netns: Netns
) -> None:
    await cni(service, "ADD", "c1", netns.path)
    collecting = await start_gc_and_stop_it(service, engine)
    engine.detach("c1")
    intent = AttachIntent("c1", netns.path, "eth0", owner="cni metropolis")
    again = await asyncio.to_thread(engine.attach, intent)
    engine.seen.set()
    await collecting
    assert engine.list() == [again]


async def test_gc_spares_an_add_that_waits_for_its_turn(
    service: Path, engine: GatedEngine, netns: Netns
) -> None:
    """It has not reached the engine yet; its attachment exists already."""
    await cni(service, "ADD", "c1", netns.path)
    engine.arrived.acquire()
    collecting = await start_gc_and_stop_it(service, engine)
    engine.gate.clear()
    adding = asyncio.create_task(cni(service, "ADD", "c1", netns.path))
    await asyncio.to_thread(engine.arrived.acquire)
    engine.seen.set()
    await collecting
    assert len(engine.list("c1")) == 1
    engine.gate.set()
    await adding


async def test_gc_tells_what_remains(
    service: Path, engine: GatedEngine, netns: Netns, monkeypatch: pytest.MonkeyPatch
) -> None:
    await cni(service, "ADD", "c1", netns.path)

    def refusing(self: KernelDatapath, records: Sequence[Record]) -> None:
        raise KernelRefused("detach 'c1': EPERM")

    with monkeypatch.context() as patch:
        for name in ("cut_off", "remove"):
            patch.setattr(KernelDatapath, name, refusing)
        said = await refused(Code.KERNEL_REFUSED, service, "GC", **EVERYTHING)
        assert "1 of 1 stale attachments remain" in said
        assert "c1 eth0: detach 'c1': EPERM" in said
    assert await cni(service, "GC", **EVERYTHING) is None
    assert netns.links() == {"lo"}
