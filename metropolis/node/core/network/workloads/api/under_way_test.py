# SPDX-License-Identifier: Apache-2.0
"""Calls that are under way when the server stops, the deadline passes, or the
client cancels; and the calls that wait behind them.

Runs in a network namespace of its own, as its root.
"""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest

from metropolis.node.core.network.workloads.api.server import WorkloadServer
from metropolis.node.core.network.workloads.api.testing import (
    WAIT_S,
    Code,
    Gate,
    World,
    attach_bytes,
)
from metropolis.node.core.network.workloads.spec import workload_pb2 as pb
from metropolis.node.core.network.workloads.testing.lab import Pod, pods
from metropolis.node.core.network.workloads.testing.served import Client, texts


def test_stop_finishes_the_calls_under_way(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    inside = threading.Event()
    real = world.engine.status

    def slow() -> None:
        inside.set()
        stopping.wait(10)
        real()

    monkeypatch.setattr(world.engine, "status", slow)
    stopping = threading.Event()
    with ThreadPoolExecutor() as pool:
        call = pool.submit(world.client.stub.Status, pb.StatusRequest(), timeout=20)
        assert inside.wait(10)
        stop = pool.submit(world.server.stop, 10)
        stopping.set()
        assert call.result(20) == pb.StatusResponse()
        stop.result(20)


def attach_with(client: Client, workload_id: str, pod: Pod, timeout: float) -> Any:
    request = pb.AttachRequest.FromString(attach_bytes(pod.path, workload_id))
    return client.stub.Attach.future(request, timeout=timeout)


def test_stop_finishes_attaches_under_way(world: World, gate: Gate) -> None:
    """The last of their work is done after the server began to stop."""
    with pods(4) as made, ThreadPoolExecutor() as pool:
        calls = [world.client.attach_later(f"p{n}", pod) for n, pod in enumerate(made)]
        gate.wait(4)
        stop = pool.submit(world.server.stop, WAIT_S)
        while world.path.exists():
            pass
        gate.opened.set()
        answers = [call.result() for call in calls]
        stop.result(WAIT_S)
        assert {texts(answer.ip) for answer in answers} == {
            tuple(map(str, one.ips)) for one in world.engine.list()
        }
        for n, pod in enumerate(made):
            (checked,) = world.engine.check(f"p{n}", netns_path=pod.path)
            assert checked.findings == ()
            world.engine.detach(f"p{n}")


def test_after_the_grace_what_was_begun_is_finished_and_the_queue_is_not(
    tmp_path: Path, gate: Gate
) -> None:
    world = World(tmp_path, workers=1)
    with pods(2) as (one, two), ThreadPoolExecutor() as pool:
        begun = world.client.attach_later("begun", one)
        gate.wait()
        queued = world.client.attach_later("queued", two)
        world.client.stub.Status(pb.StatusRequest())
        stop = pool.submit(world.server.stop, 0.1)
        for call in (begun, queued):
            with pytest.raises(grpc.RpcError):
                call.result()
        gate.opened.set()
        stop.result(WAIT_S)
        assert [one.workload_id for one in world.engine.list()] == ["begun"]
        (checked,) = world.engine.check("begun", netns_path=one.path)
        assert checked.findings == ()
        assert len([line for line in two.objects() if "IFLA_IFNAME" in line]) == 1
    world.close()


def test_a_deadline_that_passes_leaves_the_whole_attachment(world: World, gate: Gate) -> None:
    call = attach_with(world.client, "w1", world.pod, timeout=0.5)
    gate.wait()
    with pytest.raises(grpc.RpcError) as caught:
        call.result()
    assert caught.value.code() == Code.DEADLINE_EXCEEDED
    gate.opened.set()
    answer = world.client.attach("w1", world.pod)
    assert world.client.list() == {"w1": texts(answer.ip)}
    (checked,) = world.client.check("w1", world.pod.path)
    assert (list(checked.findings), checked.entered) == ([], True)


def test_a_client_that_cancels_leaves_the_whole_attachment(world: World, gate: Gate) -> None:
    call = world.client.attach_later("w1", world.pod)
    gate.wait()
    call.cancel()
    gate.opened.set()
    answer = world.client.attach("w1", world.pod)
    assert world.client.list() == {"w1": texts(answer.ip)}
    assert not world.client.check("w1", world.pod.path)[0].findings


def test_what_expires_in_the_queue_is_not_begun(tmp_path: Path, gate: Gate) -> None:
    """Behind the only worker, and behind a call for the same workload."""
    for workers in (1, 8):
        world = World(tmp_path / str(workers), workers=workers)
        gate.opened.clear()
        with pods(2) as (one, two):
            first = world.client.attach_later("w1", one)
            gate.wait()
            late = "w2" if workers == 1 else "w1"
            request = pb.AttachRequest.FromString(attach_bytes(two.path, late, "net1"))
            with pytest.raises(grpc.RpcError) as caught:
                world.client.stub.Attach(request, timeout=0.2)
            assert caught.value.code() == Code.DEADLINE_EXCEEDED
            detach = pb.DetachRequest(workload_id="w1")
            with pytest.raises(grpc.RpcError):
                world.client.stub.Detach(detach, timeout=0.2)
            # On the same connection: the server has read that both have ended.
            world.client.stub.Status(pb.StatusRequest())
            gate.opened.set()
            first.result()
            world.server.stop()  # whatever else was taken up has ended
            (kept,) = world.engine.list()
            assert (kept.workload_id, kept.if_name) == ("w1", "eth0")
            assert len([line for line in two.objects() if "IFLA_IFNAME" in line]) == 1
        world.close()


def test_status_and_list_answer_while_all_workers_are_stuck(tmp_path: Path, gate: Gate) -> None:
    world = World(tmp_path, workers=2)
    with pods(3) as made:
        calls = [world.client.attach_later(f"p{n}", pod) for n, pod in enumerate(made)]
        gate.wait(2)
        world.client.stub.Status(pb.StatusRequest(), timeout=WAIT_S)
        assert world.client.list() == {}
        code, details = world.refused("Check", b"\x0a\x02p9")
        assert (code, details) == (Code.NOT_FOUND, "check 'p9': has no interface")
        refused = [world.refused("Check", f"\n\2p{n}".encode()) for n in range(3)]
        # The third is still in the queue.
        stuck = [details for code, details in refused if code is Code.UNAVAILABLE]
        assert len(stuck) == 2
        assert all("another call for this workload has taken over 1.5 s" in one for one in stuck)
        gate.opened.set()
        for call in calls:
            call.result()
    world.close()


def test_a_start_that_is_cancelled_leaves_no_server(world: World, tmp_path: Path) -> None:
    """As node core does it: the start goes on, and the server is stopped."""
    for number in range(10):
        path = tmp_path / str(number) / "s"
        server = WorkloadServer(world.engine, path)
        with ThreadPoolExecutor(2) as pool:
            start = pool.submit(server.start)
            pool.submit(server.stop, 0).result()
            start.exception()
        assert not path.exists()
        assert not list(path.parent.glob(".*"))
        with pytest.raises(RuntimeError, match="stopped before it started"):
            server.start()
