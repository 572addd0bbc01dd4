# SPDX-License-Identifier: Apache-2.0
"""Machines that come, go and crash at random, with an etcd that does, too.

At every revision of the store, by the test's own watch: no node has two
prefixes of a family, and a claim must be free before another node gets it.
After every step: no two running machines use one prefix, except those that were
removed while they were cut off, which cannot know.
"""

import asyncio
import contextlib
import os
import random
from pathlib import Path

import pytest

from metropolis.node.core.curator import administration, etcd, keys, records
from metropolis.node.core.curator.administration import Refused
from metropolis.node.core.curator.directory import Directory, Entry
from metropolis.node.core.curator.keys import Kind
from metropolis.node.core.curator.testing.cluster import Cluster, Machine, claims, start

NAMES = [f"node-{number}" for number in range(12)]
STEPS = int(os.environ.get("CURATOR_STEPS", "60"))


async def audit(cluster: Cluster, revision: int) -> None:
    """Follow all claims ever made; raises AssertionError."""
    holders: dict[str, str] = {}
    directory = Directory("")
    while True:
        with contextlib.suppress(etcd.EtcdError):
            async with await cluster.connect() as client:
                async with contextlib.aclosing(client.watch(keys.ROOT, revision + 1)) as batches:
                    async for batch in batches:
                        directory.apply(batch.events)
                        revision = batch.revision
                        for event in batch.events:
                            key = keys.parse(event.key)
                            if key is not None and key.kind is Kind.CLAIM:
                                assert isinstance(event, Entry), "claims are not deleted"
                                before = holders.get(key.name, "")
                                now = records.decode_claim(event.value)
                                assert before in ("", now) or now == "", (key, before, now)
                                holders[key.name] = now
        await asyncio.sleep(0)


@pytest.mark.parametrize("seed", [1, 2])
async def test_no_prefix_is_held_twice(tmp_path: Path, seed: int) -> None:
    rand = random.Random(seed)
    async with start(tmp_path, "10.200.0.0/21:24", "fd00:200::/60:64") as cluster:
        running: dict[str, tuple[contextlib.AsyncExitStack, Machine]] = {}
        removed: set[str] = set()
        async with await cluster.connect() as client:
            auditing = asyncio.create_task(audit(cluster, (await client.status()).revision))
        try:
            for _ in range(STEPS):
                await step(cluster, rand, running, removed)
                assert not auditing.done(), auditing.exception()
                used = [
                    prefix
                    for name, (_, machine) in running.items()
                    if name not in removed
                    for prefix in prefixes_of(machine)
                ]
                assert len(set(used)) == len(used), used
            # In the end, all nodes that there is room for have joined.
            await cluster.server.start() if not cluster.server.running else None
            for name, (stack, _) in list(running.items())[6:]:
                await stack.aclose()
                del running[name]
            async with await cluster.connect() as client:
                for name in NAMES:
                    if name not in running:
                        with contextlib.suppress(Refused):
                            await administration.remove(client, name)
                for name in running:
                    with contextlib.suppress(Refused):
                        await administration.forget(client, name)
                for _, machine in running.values():
                    assert len(await machine.has_prefixes(lambda prefixes: len(prefixes) == 2)) == 2
                held = claims(await client.list(keys.ROOT))
            for name, (_, machine) in running.items():
                assert {held[prefix] for prefix in prefixes_of(machine)} == {name}
        finally:
            auditing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await auditing
            for stack, _ in running.values():
                await stack.aclose()


def prefixes_of(machine: Machine) -> tuple[records.IPNetwork, ...]:
    try:
        return machine.curator.pod_prefixes.peek().prefixes
    except LookupError:
        return ()


async def step(
    cluster: Cluster,
    rand: random.Random,
    running: dict[str, tuple[contextlib.AsyncExitStack, Machine]],
    removed: set[str],
) -> None:
    name = rand.choice(NAMES)
    what = rand.choices(
        ["join", "crash", "remove", "forget", "kill etcd", "wait"], [6, 3, 2, 2, 1, 2]
    )[0]
    if what == "kill etcd" and cluster.server.running:
        await cluster.server.kill()
        return
    if not cluster.server.running and rand.random() < 0.5:
        await cluster.server.start()
    if what == "join" and name not in running:
        stack = contextlib.AsyncExitStack()
        running[name] = stack, await stack.enter_async_context(cluster.machine(name))
    elif what == "crash" and name in running:
        stack, _ = running.pop(name)
        await stack.aclose()
        removed.discard(name)
    elif what in ("remove", "forget") and cluster.server.running:
        if what == "remove":
            removed.add(name)
        with contextlib.suppress(Refused):
            await (cluster.remove(name) if what == "remove" else cluster.forget(name))
    else:
        await asyncio.sleep(rand.random() * 0.2)
