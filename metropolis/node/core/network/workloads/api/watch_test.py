# SPDX-License-Identifier: Apache-2.0
"""Watches over gRPC, with an engine on the fake datapath, without a kernel."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import grpc
import pytest

from metropolis.node.core.network.workloads.api.server import WATCHERS_MAX, WorkloadServer
from metropolis.node.core.network.workloads.engine.engine import Engine
from metropolis.node.core.network.workloads.engine.watchers import BACKLOG, Event, Kind, Watchers
from metropolis.node.core.network.workloads.errors import Aborted, Unavailable
from metropolis.node.core.network.workloads.model import AttachIntent, Attachment
from metropolis.node.core.network.workloads.spec import workload_pb2 as pb
from metropolis.node.core.network.workloads.testing.fake import FakeDatapath
from metropolis.node.core.network.workloads.testing.served import Client

Code = grpc.StatusCode
WAIT_S = 20.0


class World:
    """A server of two workers with namespaces `/0` to `/9`, and its client."""

    def __init__(self, directory: Path, watch_backlog: int = BACKLOG) -> None:
        self.datapath = FakeDatapath()
        for number in range(10):
            self.datapath.kernel.add_netns(f"/{number}")
        self.engine = Engine(self.datapath)
        self.engine.set_prefixes([ip_network("10.0.0.0/16")])
        self.engine.start()
        path = directory / "run" / "s"
        self.server = WorkloadServer(self.engine, path, workers=2, watch_backlog=watch_backlog)
        self.server.start()
        self.client = Client(path)

    def close(self) -> None:
        self.client.close()
        self.server.stop(0)
        self.engine.close()

    def attach(self, number: int) -> Attachment:
        return self.engine.attach(AttachIntent(f"w{number}", f"/{number}", "eth0"))


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.close()


def test_a_watch_has_the_set_and_every_change(world: World) -> None:
    made = world.attach(0)
    watch = world.client.watch()
    event = next(watch.call)
    assert event.kind == pb.WatchEvent.PRESENT
    assert event.attachment == pb.Attachment(
        workload_id="w0",
        if_name="eth0",
        ip=[made.ips[0].packed],
        mac=made.mac,
        host_interface=made.host_interface,
        host_ifindex=made.host_ifindex,
        mtu=1500,
        owner="api",
    )
    assert watch.next() == [("COMPLETE", "")]
    world.attach(1)
    world.engine.detach("w0")
    world.datapath.kill_netns("/1")
    assert watch.next(3) == [("ATTACHED", "w1"), ("DETACHED", "w0"), ("LOST", "w1")]


def test_watches_leave_the_workers_alone_and_are_limited(world: World) -> None:
    watches = [world.client.watch() for _ in range(WATCHERS_MAX)]
    for watch in watches:
        watch.next()
    for _ in range(2):
        assert world.client.watch().end() == (0, Code.RESOURCE_EXHAUSTED)
    request = pb.AttachRequest(workload_id="w0")
    request.netns.netns_path, request.netns.if_name = "/0", "eth0"
    world.client.stub.Attach(request, timeout=WAIT_S)
    for watch in watches:
        assert watch.next() == [("ATTACHED", "w0")]


def test_a_place_is_free_again_after_a_watch(world: World) -> None:
    """Also a client that goes while nothing happens."""

    def begun() -> Any:
        while True:
            watch = world.client.watch()
            try:
                watch.next()
            except grpc.RpcError as error:
                # Those before are ending.
                assert error.code() is Code.RESOURCE_EXHAUSTED
            else:
                return watch

    for _ in range(3):
        for watch in [begun() for _ in range(WATCHERS_MAX)]:
            watch.call.cancel()


def test_a_client_that_does_not_read_is_told_to_begin_anew(tmp_path: Path) -> None:
    """gRPC takes some thousands of events for it; then comes the backlog."""
    world = World(tmp_path, watch_backlog=100)
    watch = world.client.watch()
    watch.next()
    while world.engine._ledger.watchers:
        world.attach(0)
        world.engine.detach("w0")
    _, code = watch.end()
    assert code == Code.ABORTED
    assert world.client.watch().next() == [("COMPLETE", "")]
    world.close()


def test_stop_ends_watches_at_once(world: World) -> None:
    watch = world.client.watch()
    watch.next()
    world.server.stop(1000)
    assert watch.end() == (0, Code.UNAVAILABLE)


def test_garbage_and_an_engine_that_is_not_there(world: World) -> None:
    raw: Any = world.client.channel.unary_stream(
        "/metropolis.node.core.network.workloads.WorkloadNetworking/Watch"
    )
    with pytest.raises(grpc.RpcError) as caught:
        next(raw(b"\xff\xff", timeout=WAIT_S))
    assert caught.value.code() == Code.INVALID_ARGUMENT
    watch = world.client.watch()
    watch.next()
    world.engine.close()
    assert watch.end() == (0, Code.UNAVAILABLE)
    assert world.client.watch().end() == (0, Code.UNAVAILABLE)


# ---- The queues alone -----------------------------------------------------


CHANGE = Event(Kind.LOST)


def test_the_set_is_not_part_of_the_backlog() -> None:
    watchers = Watchers()
    watcher = watchers.add([], backlog=1)
    watchers.publish(CHANGE)
    assert [next(watcher), next(watcher)] == [Event(Kind.COMPLETE), CHANGE]
    watchers.publish(CHANGE)
    watchers.publish(CHANGE)
    with pytest.raises(Aborted):
        next(watcher)
    assert not watchers


def test_closing_wakes_the_reader() -> None:
    watchers = Watchers()
    watcher = watchers.add([])
    next(watcher)
    with ThreadPoolExecutor() as pool:
        reading = pool.submit(list, watcher)
        watcher.close()
        assert reading.result(WAIT_S) == []
    assert not watchers
    watchers.publish(CHANGE)


def test_ending_drops_what_was_not_read() -> None:
    watchers = Watchers()
    watcher = watchers.add([])
    watchers.publish(CHANGE)
    watchers.end("over")
    with pytest.raises(Unavailable, match="over"):
        next(watcher)


def test_every_watcher_has_every_event_of_every_thread_once() -> None:
    watchers, publishing = Watchers(), threading.Lock()
    readers = [watchers.add([], backlog=10_000) for _ in range(3)]

    def publish() -> None:
        for _ in range(1000):
            with publishing:
                watchers.publish(CHANGE)

    threads = [threading.Thread(target=publish) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for reader in readers:
        assert [next(reader) for _ in range(4001)][1:] == [CHANGE] * 4000
