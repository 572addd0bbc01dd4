# SPDX-License-Identifier: Apache-2.0
"""The API as callers use it: gRPC, the kernel, and bad input.

Runs in a network namespace of its own, as its root.
"""

import os
import socket
import stat
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_network
from pathlib import Path

import grpc
import pytest
from pyroute2 import IPRoute

from metropolis.node.core.network.workloads.api.server import WorkloadServer
from metropolis.node.core.network.workloads.api.testing import (
    WAIT_S,
    Code,
    World,
    attach_bytes,
)
from metropolis.node.core.network.workloads.datapath.veth import KernelDatapath
from metropolis.node.core.network.workloads.engine.engine import Engine
from metropolis.node.core.network.workloads.errors import WorkloadError
from metropolis.node.core.network.workloads.spec import workload_pb2 as pb
from metropolis.node.core.network.workloads.testing.lab import Pod, objects, pods, settled
from metropolis.node.core.network.workloads.testing.served import Client, texts


def bad_inputs(directory: Path, good: str) -> Iterator[tuple[bytes, grpc.StatusCode, str]]:
    fifo, file = directory / "fifo", directory / "file"
    os.mkfifo(fifo)
    file.touch()
    wrong = Code.INVALID_ARGUMENT
    yield attach_bytes("/nowhere/at/all"), Code.NOT_FOUND, "netns_path '/nowhere/at/all'"
    yield attach_bytes(str(file)), wrong, "is not a network namespace"
    yield attach_bytes("/proc/self/ns/mnt"), wrong, "is not a network namespace"
    yield attach_bytes(str(fifo)), wrong, "is not a network namespace"
    yield attach_bytes("relative/path"), wrong, "must be an absolute path"
    yield attach_bytes(""), wrong, "netns.netns_path '': must not be empty"
    yield attach_bytes("/" + "x" * 4999), wrong, "(5000 characters): must have at most 4095"
    yield attach_bytes(f"/proc/{os.getpid()}/ns/net"), wrong, "namespace of the host"
    for name in ("", "x" * 16, "a/b", "a\nb", "eth%d"):
        yield attach_bytes(good, if_name=name), wrong, "if_name"
    yield attach_bytes(good, if_name="lo"), Code.ALREADY_EXISTS, "if_name 'lo': is taken"
    for workload_id in ("", "x" * 300, "ü", "a\n"):
        yield attach_bytes(good, workload_id=workload_id), wrong, "workload_id"
    yield b"\x0a\x02\xff\xfe", wrong, "workload_id b'\\xff\\xfe': is not UTF-8"
    yield b"\x0a\x50garbage", wrong, "request of 9 bytes"
    yield pb.AttachRequest(workload_id="w1").SerializeToString(), wrong, "netns.netns_path"
    for ip in (b"", b"\1\2\3", bytes(4), bytes([10, 192, 0, 7]), bytes([9, 9, 9, 9])):
        request = pb.AttachRequest.FromString(attach_bytes(good))
        request.requested_ip.append(ip)
        yield request.SerializeToString(), wrong, "requested_ip"
    request = pb.AttachRequest.FromString(attach_bytes(good))
    request.requested_mac = b"\xff" * 6
    yield request.SerializeToString(), wrong, "requested_mac"


def test_bad_input_is_refused_and_leaves_nothing(world: World, tmp_path: Path) -> None:
    outside, inside = objects(), world.pod.objects()
    count = 0
    for data, code, text in bad_inputs(tmp_path, world.pod.path):
        found, details = world.refused("Attach", data)
        assert (found, text in details) == (code, True), (found, details, text)
        assert len(details) < 500
        assert (objects(), world.pod.objects()) == (outside, inside), details
        count += 1
    assert count == 27
    world.client.attach("w1", world.pod)
    world.client.detach("w1")


@pytest.mark.parametrize(
    "method", ["Attach", "Detach", "Status", "List", "Check", "Collect", "SetBandwidth"]
)
def test_garbage_is_an_invalid_argument(world: World, method: str) -> None:
    code, details = world.refused(method, b"\xff\xff\xff")
    assert (code, "request of 3 bytes: is no" in details) == (Code.INVALID_ARGUMENT, True)


def test_an_unexpected_error_is_no_traceback(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(world.engine, "status", lambda: 1 // 0)
    code, details = world.refused("Status", b"")
    assert (code, details) == (
        Code.INTERNAL,
        "status: unexpected ZeroDivisionError; see the service's log",
    )


def test_a_name_that_is_taken_in_the_namespace(world: World) -> None:
    world.client.attach("w1", world.pod)
    before = (settled("fe80::1"), settled("fd00:10:192::1", look=world.pod.objects))
    code, details = world.refused("Attach", attach_bytes(world.pod.path, "w2"))
    assert code == Code.ALREADY_EXISTS
    assert details == "if_name 'eth0': is taken in the network namespace by workload 'w1'"
    assert (objects(), world.pod.objects()) == before


def test_exhaustion_is_told_and_leaves_nothing(world: World) -> None:
    pods = [Pod() for _ in range(6)]
    given = [texts(world.client.attach(f"p{n}", pod).ip)[0] for n, pod in enumerate(pods)]
    assert given == [f"10.192.0.{n}" for n in range(1, 7)]  # neither .0 nor .7
    before = (settled("fe80::1", 6), world.pod.objects())
    code, details = world.refused("Attach", attach_bytes(world.pod.path))
    assert code == Code.RESOURCE_EXHAUSTED
    assert details == (
        "no free IPv4 address left in 10.192.0.0/29 (6 usable, 6 in use, 0 reserved)"
    )
    assert (objects(), world.pod.objects()) == before
    world.client.detach("p3")
    assert texts(world.client.attach("w1", world.pod).ip)[0] == "10.192.0.4"
    for pod in pods:
        pod.close()


def test_two_attaches_of_one_id_at_once(world: World) -> None:
    with ThreadPoolExecutor() as pool:
        for _ in range(10):
            answers = list(pool.map(lambda _: world.client.attach("w1", world.pod), range(4)))
            assert all(answer == answers[0] for answer in answers)
            assert len(world.client.list()) == 1
            world.client.detach("w1")


def test_different_workloads_at_once(world: World) -> None:
    world.engine.set_prefixes([ip_network("10.192.0.0/16"), ip_network("fd00:10:192::/112")])
    before = objects()
    pods = [Pod() for _ in range(32)]
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda n: world.client.attach(f"p{n}", pods[n]), range(32)))
        assert len({ip for answer in answers for ip in answer.ip}) == 64
        list(pool.map(lambda n: world.client.detach(f"p{n}"), range(32)))
    world.engine.settle()
    assert objects() == before
    for pod in pods:
        pod.close()


def test_two_workloads_for_one_name_at_once(world: World) -> None:
    def attempt(number: int) -> str:
        try:
            world.client.attach(f"p{number}", world.pod)
        except grpc.RpcError as error:
            return "" if error.code() == Code.ALREADY_EXISTS else str(error)
        return f"p{number}"

    with ThreadPoolExecutor() as pool:
        won = [name for name in pool.map(attempt, range(8)) if name]
    assert len(won) == 1
    assert list(world.client.list()) == won


def test_not_ready(world: World) -> None:
    world.engine.set_prefixes([])
    code, details = world.refused("Status", b"")
    assert (code, "no address prefix" in details) == (Code.UNAVAILABLE, True)
    code, _ = world.refused("Attach", attach_bytes(world.pod.path))
    assert code == Code.UNAVAILABLE
    world.client.detach("w1")  # all the same


def test_detach_of_a_pod_that_is_gone(world: World) -> None:
    before = objects()
    pod = Pod()
    world.client.attach("w2", pod)
    path = pod.path
    pod.close()
    world.client.detach("w2", path)
    world.engine.settle()
    assert objects() == before


def test_the_socket_is_private(world: World) -> None:
    assert stat.S_IMODE(world.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(world.path.parent.stat().st_mode) == 0o700
    assert os.listdir(world.path.parent) == [world.path.name]


def test_the_socket_is_never_more_open(tmp_path: Path) -> None:
    """A thread watches as fast as it can, with nothing masked."""
    path = tmp_path / "run" / "s"
    modes: set[int] = set()
    done = threading.Event()

    def look() -> None:
        while not done.is_set():
            try:
                modes.add(stat.S_IMODE(path.stat().st_mode))
            except FileNotFoundError:
                continue

    thread = threading.Thread(target=look)
    thread.start()
    mask = os.umask(0)
    engine = Engine(KernelDatapath())
    try:
        for _ in range(20):
            server = WorkloadServer(engine, path)
            server.start()
            server.stop(0)
    finally:
        os.umask(mask)
        done.set()
        thread.join()
    assert modes == {0o600}
    assert os.listdir(path.parent) == []


def test_a_dead_servers_socket_is_replaced_and_a_live_ones_is_not(
    world: World, tmp_path: Path
) -> None:
    with pytest.raises(OSError, match="another server listens there"):
        WorkloadServer(world.engine, world.path).start()
    world.client.stub.Status(pb.StatusRequest())  # unharmed
    stale = tmp_path / "run" / "stale.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(stale))
    server = WorkloadServer(world.engine, stale)
    server.start()
    client = Client(stale)
    client.stub.Status(pb.StatusRequest(), timeout=10)
    client.close()
    server.stop()
    assert not stale.exists()


def test_places_where_no_socket_can_be(world: World, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o1777)
    for path, why in [
        (file, "is not a socket"),
        (file / "s", "exists"),
        (shared / "s", "directory of our own"),
        (tmp_path / ("x" * 120) / "s", "too long"),
    ]:
        with pytest.raises(OSError, match=why):
            WorkloadServer(world.engine, path).start()
    assert file.exists()


def test_check(world: World) -> None:
    made = world.client.attach("w1", world.pod)
    (checked,) = world.client.check("w1")
    assert checked.attachment.ip == made.ip
    assert (list(checked.findings), checked.entered) == ([], False)
    with IPRoute() as other:
        other.link("set", ifname=made.host_interface, mtu=1300)
    (checked,) = world.client.check("w1", world.pod.path)
    (found,) = checked.findings
    assert (found.what, found.expected, found.found) == (
        f"MTU of {made.host_interface}",
        "1500",
        "1300",
    )
    with pods(1) as (other_pod,):
        (checked,) = world.client.check("w1", other_pod.path)
        assert "network namespace at" in checked.findings[0].what
        assert not checked.entered
    code, details = world.refused("Check", b"\x0a\x02w2")
    assert (code, details) == (Code.NOT_FOUND, "check 'w2': has no interface")
    code, _ = world.refused("Check", attach_bytes("/gone", "w1"))
    assert code == Code.NOT_FOUND
    world.pod.close()
    while world.client.list():
        pass
    code, _ = world.refused("Check", b"\x0a\x02w1")
    assert code == Code.NOT_FOUND


def test_collect(world: World) -> None:
    outside = objects()
    with pods(4) as made:
        for n, pod in enumerate(made):
            world.client.attach(f"p{n}", pod)
        world.client.attach("p1", made[1], "net1")
        for bad in (
            pb.CollectRequest(live_workload_id=[""]),
            pb.CollectRequest(live_interface=[pb.LiveInterface(workload_id="p1")]),
            pb.CollectRequest(live_interface=[pb.LiveInterface(if_name="eth0")]),
            pb.CollectRequest(owner="a\nb"),
        ):
            code, _ = world.refused("Collect", bad.SerializeToString())
            assert code == Code.INVALID_ARGUMENT
        assert len(world.engine.list()) == 5
        interface = pb.LiveInterface(workload_id="p1", if_name="net1")
        request = pb.CollectRequest(live_workload_id=["p0", "px"], live_interface=[interface])
        answer = world.client.stub.Collect(request, timeout=WAIT_S)
        assert [(one.workload_id, one.if_name) for one in answer.removed] == [
            ("p1", "eth0"),
            ("p2", "eth0"),
            ("p3", "eth0"),
        ]
        assert not answer.remaining
        assert world.client.collect() == {"p0", "p1"}
        assert world.client.collect() == set()
        world.engine.settle()
        assert objects() == outside


def test_a_watch_is_told_every_loss_of_a_flood(tmp_path: Path) -> None:
    """More namespaces die while nobody reads than the kernel has room for."""
    world = World(tmp_path, event_buffer=1)
    world.engine.set_prefixes([ip_network("10.192.0.0/26")])
    watch = world.client.watch()
    assert watch.next() == [("COMPLETE", "")]
    with pods(32) as made:
        for n, pod in enumerate(made):
            world.client.attach(f"p{n}", pod)
        watch.next(32)
        with world.engine._ledger._mutex, IPRoute() as witness:  # the reader waits
            for pod in made:
                pod.close()
            while any(link.get("group") == 8 for link in witness.get_links()):
                pass
    assert {watch.next()[0] for _ in range(32)} == {("LOST", f"p{n}") for n in range(32)}
    assert world.engine._ledger._overruns > 0
    assert world.client.list() == {}
    world.close()


def test_every_error_has_a_code() -> None:
    for kind in WorkloadError.__subclasses__():
        assert isinstance(kind.code, grpc.StatusCode)
