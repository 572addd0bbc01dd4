# SPDX-License-Identifier: Apache-2.0
"""Where the microseconds of one Attach go.

    ./bazelw run //metropolis/test/bench/attach:breakdown -- [--json]

    --samples N   attaches (dual stack), one after the other; default 400
    --json        as the last line: {"machine", "attaches", "total_us",
                  "stages": [{"stage", "us", "kernel"}],
                  "messages": [{"send", "message", "us"}]}

It prints two tables. Stages: a client and a service, in separate processes,
record the clock (CLOCK_MONOTONIC, the same for both) at points of a call. The
values are means over the middle half of the attaches, so the stages add up to
the total. Messages: the same netlink messages are sent one by one, each with
its acknowledgement, so their sum is somewhat more than in the three sends.

Recording costs about 0.2 us a stage. The first and the last stage include the
kernel's wake-ups between the processes.
"""

import argparse
import errno
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import grpc

from metropolis.node.core.network.host import prepare_host
from metropolis.node.core.network.workloads.api.server import WorkloadServer
from metropolis.node.core.network.workloads.datapath import messages, names
from metropolis.node.core.network.workloads.datapath.interface import Record
from metropolis.node.core.network.workloads.datapath.veth import KernelDatapath
from metropolis.node.core.network.workloads.engine.engine import Engine
from metropolis.node.core.network.workloads.spec import workload_pb2 as pb
from metropolis.node.core.network.workloads.spec import workload_pb2_grpc as rpc
from metropolis.test.bench.attach.messages import acknowledgement
from metropolis.test.bench.common import machine
from metropolis.test.world.namespaces import Netns, enter_namespaces
from osbase.netlink.message import Request
from osbase.netlink.netns import open_current, open_socket
from osbase.netlink.route import RTM_NEWROUTE
from osbase.netlink.template import encoded
from osbase.netlink.transport import open_raw
from osbase.rpc.queued import WorkerCall

_SOCKET = "/run/breakdown/workload.sock"
_PREFIXES = ("10.192.0.0/16", "fd00:10:192::/112")
_WARM = 50  # warm-up attaches, not counted
_DEADLINE_S = 30.0

# The stages between two marks. Kernel: inside a send, which executes requests.
_STAGES = (
    ("client: encode; C-core; the worker wakes up", False),
    ("C-core: the request is read", False),
    ("decode, validate, lock", False),
    ("network namespace: open, enter, socket, leave, cookie", False),
    ("reserve addresses, names, indexes; encode", False),
    ("kernel: create the veth pair", True),
    ("acknowledgement; is lo up; encode", False),
    ("kernel: lo, link, addresses, routes inside", True),
    ("acknowledgement; encode", False),
    ("kernel: alias, records, up, first hop, host routes", True),
    ("acknowledgement; close; unlock; encode the answer", False),
    ("C-core: send; the client wakes up; decode", False),
)


def main(arguments: list[str]) -> int:
    """See the module."""
    parser = argparse.ArgumentParser(
        prog="breakdown",
        description="Where the microseconds of one Attach go.",
        epilog="exit status: 0 measured, 2 wrong arguments, 130 after Ctrl-C",
    )
    parser.add_argument("--samples", type=int, default=400, help="attaches (default 400)")
    parser.add_argument("--json", action="store_true", help="JSON as the last line")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    if chosen.serve:
        return _serve()
    if chosen.samples < 4:
        parser.error("--samples: at least 4")
    found_machine = machine.describe(Path(os.environ["BENCH_LOCK"]))
    enter_namespaces()
    prepare_host()
    with ExitStack() as stack:
        pods = [Netns() for _ in range(chosen.samples + 2 * _WARM)]
        for pod in pods:
            stack.callback(pod.close)
        print(f"{chosen.samples} attaches over gRPC ...", file=sys.stderr)
        marks = _attach_all(pods[_WARM:])[_WARM:]
        print("the same messages, one by one ...", file=sys.stderr)
        messages = _messages(pods[:_WARM])
    middle = sorted(marks, key=lambda mark: mark[-1] - mark[0])
    middle = middle[len(middle) // 4 : len(middle) - len(middle) // 4]
    stages = [
        statistics.fmean(mark[number + 1] - mark[number] for mark in middle) / 1000
        for number in range(len(_STAGES))
    ]
    _print(stages, messages)
    if chosen.json:
        answer = {
            "machine": found_machine,
            "attaches": chosen.samples,
            "total_us": round(sum(stages), 1),
            "stages": [
                {"stage": name, "us": round(us, 1), "kernel": kernel}
                for (name, kernel), us in zip(_STAGES, stages, strict=True)
            ],
            "messages": [
                {"send": send, "message": message, "us": round(us, 1)}
                for send, message, us in messages
            ],
        }
        print(json.dumps(answer))
    return 0


def _print(stages: list[float], messages: list[tuple[str, str, float]]) -> None:
    total = sum(stages)
    print(f"\n{'one Attach, dual stack, over gRPC':60} {'us':>7} {'%':>5}")
    for (name, _), us in zip(_STAGES, stages, strict=True):
        print(f"  {name:58} {us:7.0f} {100 * us / total:5.1f}")
    kernel = sum(us for (_, kernel), us in zip(_STAGES, stages, strict=True) if kernel)
    print(f"{'total':60} {total:7.0f} 100.0")
    print(f"{'  of which the kernel, within sends':60} {kernel:7.0f} {100 * kernel / total:5.1f}")
    print(f"\n{'the messages, one by one':60} {'us':>7}")
    for send, message, us in messages:
        print(f"  {send + ': ' + message:58} {us:7.0f}")
    print(f"{'sum':60} {sum(us for _, _, us in messages):7.0f}")


# ---- Stages ------------------------------------------------------------------


def _attach_all(pods: list[Netns]) -> list[list[int]]:
    """Return the marks of each attach, in ns."""
    command = [sys.executable, "-m", "metropolis.test.bench.attach.breakdown", "--serve"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, close_fds=False
    ) as service:
        assert service.stdin is not None
        assert service.stdout is not None
        if service.stdout.readline() != "ready\n":
            raise SystemExit("breakdown: the service did not start; see above")
        ends: list[tuple[int, int]] = []
        with grpc.insecure_channel(f"unix:{_SOCKET}") as channel:
            stub = rpc.WorkloadNetworkingStub(channel)
            for number, pod in enumerate(pods):
                netns = pb.NetNSAttachment(netns_path=pod.path, if_name="eth0")
                request = pb.AttachRequest(workload_id=_id(number), netns=netns)
                begin = time.monotonic_ns()
                stub.Attach(request, timeout=_DEADLINE_S)
                ends.append((begin, time.monotonic_ns()))
        noted: list[list[int]] = json.loads(service.communicate("\n")[0])
    return [[begin, *marks, end] for (begin, end), marks in zip(ends, noted, strict=True)]


def _id(number: int) -> str:
    return f"{number:064x}"  # as long as containerd's


class _Marks:
    """Marks of the running call, and of earlier calls."""

    def __init__(self) -> None:
        self.calls: list[list[int]] = []

    def before(self, owner: Any, name: str, *, begins: bool = False) -> None:
        """Note the clock whenever owner.name is called."""
        real = getattr(owner, name)

        def noting(*arguments: Any, **named: Any) -> Any:
            if begins:
                self.calls.append([])
            self.calls[-1].append(time.monotonic_ns())
            return real(*arguments, **named)

        setattr(owner, name, noting)

    def around(self, owner: Any, name: str) -> None:
        """Note the clock when owner.name is called and when it returns."""
        self.before(owner, name)
        self.after(owner, name)

    def after(self, owner: Any, name: str) -> None:
        """Note the clock whenever owner.name returns."""
        real = getattr(owner, name)

        def noting(*arguments: Any, **named: Any) -> Any:
            answer = real(*arguments, **named)
            self.calls[-1].append(time.monotonic_ns())
            return answer

        setattr(owner, name, noting)


def _serve() -> int:
    """Run the service with marks; print them when stdin has a line."""
    marks = _Marks()

    class Marked(socket.socket):
        """Notes its netlink sends during a call."""

        def send(self, data: Any, *flags: Any) -> int:
            if not marks.calls or self.family != socket.AF_NETLINK:
                return super().send(data, *flags)
            marks.calls[-1].append(time.monotonic_ns())
            sent = super().send(data, *flags)
            marks.calls[-1].append(time.monotonic_ns())
            return sent

    socket.socket = Marked  # type: ignore[misc]
    engine = Engine(KernelDatapath())
    engine.start()
    engine.set_prefixes([ip_network(prefix) for prefix in _PREFIXES])
    server = WorkloadServer(engine, _SOCKET)
    server.start()
    marks.before(WorkerCall, "read", begins=True)
    marks.after(WorkerCall, "read")
    marks.around(KernelDatapath, "open_netns")
    marks.before(WorkerCall, "answer")
    print("ready", flush=True)
    sys.stdin.readline()
    print(json.dumps(marks.calls))
    server.stop()
    engine.close()
    return 0


# ---- Messages ----------------------------------------------------------------


def _messages(pods: list[Netns]) -> list[tuple[str, str, float]]:
    """Return send, description and us of each message of an attach."""
    took: list[list[float]] = []
    labels: list[tuple[str, str]] = []
    home = open_current()
    with open_raw() as host:
        for number, pod in enumerate(pods):
            record = _record(number)
            with open(pod.path, "rb") as there, open_socket(there.fileno(), home) as inner:
                steps: list[tuple[str, socket.socket, list[Request]]] = [
                    ("pair", host, messages.pair(record, there.fileno())),
                    ("inside", inner, messages.inside(record, 0, loopback=True)),
                    ("commit", host, messages.commit(record, ipv6=True)),
                ]
                took.append([])
                labels = []
                for send, sock, requests in steps:
                    for request in requests:
                        took[-1].append(_time(sock, request))
                        labels.append((send, _words(request, record)))
    os.close(home)
    medians = [statistics.median(column) / 1000 for column in zip(*took, strict=True)]
    return [(*label, us) for label, us in zip(labels, medians, strict=True)]


def _time(sock: socket.socket, request: Request) -> int:
    data = encoded([request]).data
    begin = time.monotonic_ns()
    sock.send(data)
    answer = sock.recv(4096)
    took = time.monotonic_ns() - begin
    _, number = acknowledgement(answer)
    # The kernel may have added the route of multicast.
    if number and not (number == errno.EEXIST and request.kind == RTM_NEWROUTE):
        raise SystemExit(f"breakdown: {request.what}: {os.strerror(number)}")
    return took


def _words(request: Request, record: Record) -> str:
    words = request.what.replace(record.host_interface, "wl...")
    for ip in record.ips:
        words = words.replace(str(ip), f"IPv{ip.version}")
    return words


def _record(number: int) -> Record:
    ips = (ip_address(0x0AFE0000 + number), ip_address((0xFD01 << 112) + number))
    name = names.host_interface(f"message-{number}", "eth0")
    mac = b"\x02\0\0\0" + number.to_bytes(2)
    index = (1 << 20) - 1 - number  # none that the service takes
    identity = (f"message-{number:056}", "eth0", number + (1 << 60), name)
    return Record(*identity, index, 2, mac, 1500, ips, bytes(8))


def _run(program: Callable[[list[str]], int]) -> None:
    try:
        sys.exit(program(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    _run(main)
