# SPDX-License-Identifier: Apache-2.0
"""The curator and a server like the workloads' run in one process.

gRPC's asyncio stack and the completion queues of //osbase/rpc share its core.
"""

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path

import grpc

from metropolis.node.core.curator.testing.cluster import NETWORKS, WAIT_S, start
from osbase.rpc.call import Call
from osbase.rpc.server import Server


def echo(message: bytes, call: Call) -> bytes:
    return message


async def test_calls_are_served_while_the_curator_lives_and_dies(tmp_path: Path) -> None:
    server = Server(blocking={"/t/Echo": echo}, quick={}, streams={}, workers=4)
    server.listen(f"unix:{tmp_path}/s")
    server.start()
    ended = threading.Event()
    served = 0

    def ask() -> None:
        nonlocal served
        with grpc.insecure_channel(f"unix:{tmp_path}/s") as channel:
            call: Callable[..., bytes] = channel.unary_unary("/t/Echo")
            while not ended.is_set():
                assert call(b"x", timeout=WAIT_S) == b"x"
                served += 1

    asking = asyncio.create_task(asyncio.to_thread(ask))
    async with start(tmp_path, *NETWORKS) as cluster, cluster.machine("a") as one:
        for number in range(3):
            async with cluster.machine(f"b{number}") as two:
                await two.joined()
                await one.sees(lambda peers, number=number: f"b{number}" in peers)  # type: ignore[misc]
            await cluster.server.kill()
            await cluster.server.start()
    ended.set()
    await asking
    assert served > 3
    await asyncio.to_thread(server.stop, 1.0)
