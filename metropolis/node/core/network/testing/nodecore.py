# SPDX-License-Identifier: Apache-2.0
"""The surroundings of node core in a test: a server's namespace, the process.

pod-a -+
       +- this namespace: node core ---- up0 = srv0 ---- "srv": dnsmasq
pod-b -+                                                 (DHCP, RA), peers
"""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path

import grpc
import pytest

from metropolis.node.core.network.workloads.spec import workload_pb2, workload_pb2_grpc
from osbase.ip import IPAddress
from osbase.test.namespaces import LIMIT_S, inside, sh

CONFIG = """
network {
  uplink { name: "up0" dhcp4 { host_name: "node-1" } static { dns: "2001:db8:2::53" } }
  pod_prefix: "10.192.0.0/24"
  pod_prefix: "fd00:10:192::/112"
}
"""


def add_uplink(mtu: int = 1500) -> None:
    """Add a veth to the server's namespace; this end is down, as hardware is.

    The server forwards, as a router has to. If it did not, it would accept its
    own advertisements, and soon answer from an address they made, which no
    masqueraded flow expects; and nodes that probe it would learn that it is no
    router, and give up their default route (RFC 4861 section 7.2.5).
    """
    peer = f"peer name srv0 mtu {mtu} netns srv"
    sh(f"ip link add up0 address 02:00:00:00:00:07 mtu {mtu} type veth {peer}")
    with inside("srv"):
        Path("/proc/sys/net/ipv6/conf/srv0/forwarding").write_text("1")
    sh("nsenter --net=/run/netns/srv ip address add 192.0.2.1/24 dev srv0")
    sh("nsenter --net=/run/netns/srv ip address add 2001:db8:2::1/64 dev srv0 nodad")
    sh("nsenter --net=/run/netns/srv ip link set lo up")
    sh("nsenter --net=/run/netns/srv ip link set srv0 up")


@contextlib.contextmanager
def dnsmasq(tmp_path: Path, *more: str) -> Iterator[None]:
    """Serve DHCPv4 and router advertisements. more: arguments."""
    command = [
        *(
            "nsenter",
            "--net=/run/netns/srv",
            "dnsmasq",
            "--keep-in-foreground",
            "--conf-file=/dev/null",
        ),
        *("--port=0", "--user=root", "--group=", "--no-ping", "--pid-file=", "--log-facility=-"),
        *("--interface=srv0", f"--dhcp-leasefile={tmp_path}/leases"),
        *("--dhcp-range=192.0.2.50,192.0.2.50,255.255.255.0,120", "--dhcp-authoritative"),
        *("--dhcp-option=option:dns-server,192.0.2.53", "--domain=example.org"),
        *("--enable-ra", "--dhcp-range=2001:db8:2::,ra-only", "--ra-param=srv0,1,600"),
        *more,
    ]
    with (tmp_path / "dnsmasq.log").open("ab") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            yield
            assert server.poll() is None, (tmp_path / "dnsmasq.log").read_text()
        finally:
            server.terminate()
            server.wait(LIMIT_S)


@dataclass
class NodeCore:
    """Node core as a process, its log read line by line."""

    directory: Path
    config: str = CONFIG
    prefix: tuple[str, ...] = ()  # before the command
    process: subprocess.Popen[str] | None = None
    lines: queue.Queue[str] = field(default_factory=queue.Queue)
    seen: list[str] = field(default_factory=list)

    @property
    def runtime(self) -> Path:
        return self.directory / "run" / "network"

    def start(self, *, ready: bool = True) -> None:
        """Start it, wait until it serves; ready: and until it has addresses."""
        config = self.directory / "node.textproto"
        config.write_text(self.config)
        self.lines, self.seen = queue.Queue(), []
        process = subprocess.Popen(
            [
                *self.prefix,
                *(sys.executable, "-m", "metropolis.node.core.main"),
                *("--config", str(config), "--runtime-dir", str(self.runtime)),
                *("--state-dir", str(self.directory / "state")),
            ],
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        )
        self.process = process
        assert process.stderr is not None
        stderr, lines = process.stderr, self.lines

        def read() -> None:
            for line in stderr:
                lines.put(line)
            lines.put("")
            stderr.close()

        threading.Thread(target=read, daemon=True).start()
        self.wait_for("root.network.workloads.grpc: serving on")
        if ready:
            self.wait_for("root.network.workloads.prefixes: pod prefixes:")

    def wait_for(self, text: str) -> str:
        """Wait for a line of its log with the text; return it."""
        for line in self.seen:
            if text in line:
                return line
        deadline = time.monotonic() + LIMIT_S
        while True:
            try:
                line = self.lines.get(timeout=max(0.01, deadline - time.monotonic()))
            except queue.Empty:
                pytest.fail(f"node core never said {text!r}:\n{''.join(self.seen)}")
            assert line, f"node core ended without {text!r}:\n{''.join(self.seen)}"
            self.seen.append(line)
            if text in line:
                return line

    def drain(self) -> None:
        """Drop its output so far."""
        self.seen.clear()
        with contextlib.suppress(queue.Empty):
            while self.lines.get_nowait():
                pass

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Stop it and return its exit status."""
        assert self.process is not None
        self.process.send_signal(number)
        status = self.process.wait(LIMIT_S)
        self.process = None
        if status:  # a test may have expected it, or not
            while line := self.lines.get(timeout=LIMIT_S):
                self.seen.append(line)
            print("".join(self.seen))
        return status

    def stub(self) -> workload_pb2_grpc.WorkloadNetworkingStub:
        channel = grpc.insecure_channel(
            f"unix:{self.runtime / 'workload.sock'}",
            # A channel of its own does not wait because a former one failed.
            options=[("grpc.use_local_subchannel_pool", 1)],
        )
        return workload_pb2_grpc.WorkloadNetworkingStub(channel)

    def problem(self) -> str:
        """Return why Status is unavailable; "": it is OK."""
        try:
            self.stub().Status(workload_pb2.StatusRequest(), timeout=LIMIT_S)
        except grpc.RpcError as error:
            assert error.code() is grpc.StatusCode.UNAVAILABLE, error
            return str(error.details())
        return ""

    def said(self) -> str:
        """Return all problems and notes of Status."""
        request = workload_pb2.StatusRequest(report=True)
        status = self.stub().Status(request, timeout=LIMIT_S)
        return "\n".join(one.text for one in (*status.problems, *status.notes))

    def wait_until_said(self, text: str) -> None:
        """Wait until Status contains the text."""
        deadline = time.monotonic() + LIMIT_S
        while text not in (found := self.said()):
            assert time.monotonic() < deadline, f"Status never says {text!r}: {found}"
            time.sleep(0.02)

    def listed(self) -> set[str]:
        """Return the workloads that have attachments."""
        answer = self.stub().List(workload_pb2.ListRequest(), timeout=LIMIT_S)
        return {one.workload_id for one in answer.attachments}

    def attach(self, pod: str) -> dict[int, IPAddress]:
        """Attach a namespace; returns its addresses by family."""
        response = self.stub().Attach(
            workload_pb2.AttachRequest(
                workload_id=pod,
                netns=workload_pb2.NetNSAttachment(netns_path=f"/run/netns/{pod}", if_name="eth0"),
            ),
            timeout=LIMIT_S,
        )
        addresses = [ip_address(packed) for packed in response.ip]
        return {address.version: address for address in addresses}
