# SPDX-License-Identifier: Apache-2.0
"""Workloads, attached and detached over gRPC or by the CNI exec shim."""

import json
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import ip_address, ip_interface
from pathlib import Path
from typing import Any

import grpc

from metropolis.node import allocs
from metropolis.node.core.network.workloads.spec import workload_pb2 as pb
from metropolis.node.core.network.workloads.spec import workload_pb2_grpc as rpc
from metropolis.test.tryout import place
from metropolis.test.tryout.place import TryError

INTERFACE = "eth0"
_CONFLIST = "metropolis/node/containerd/cniproxy/10-metropolis.conflist"
_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class Attached:
    """An attachment as its caller sees it. ms: the duration of the call."""

    workload: str
    addresses: tuple[str, ...]
    link: str
    ms: float


class Caller(ABC):
    """Attaches, checks and detaches workloads. say: prints what it does."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say

    @abstractmethod
    def attach(self, workload: str, netns: Path) -> Attached:
        """Attach. Raises TryError, as the others do."""

    @abstractmethod
    def check(self, workload: str, netns: Path) -> list[str]:
        """Return what is not as it should be."""

    @abstractmethod
    def detach(self, workload: str, netns: Path) -> None:
        """Detach."""


class OverGrpc(Caller):
    """Calls of workload.proto on workload.sock."""

    def __init__(self, say: Callable[[str], None]) -> None:
        super().__init__(say)
        self._channel = grpc.insecure_channel(f"unix:{allocs.WORKLOAD_SOCKET}")
        self._stub: Any = rpc.WorkloadNetworkingStub(self._channel)

    def _call(self, method: str, request: Any) -> Any:
        try:
            return getattr(self._stub, method)(request, timeout=_TIMEOUT_S)
        except grpc.RpcError as error:
            raise TryError(f"{method}: {error.code().name}: {error.details()}") from error

    def attach(self, workload: str, netns: Path) -> Attached:
        """See Caller."""
        where = pb.NetNSAttachment(netns_path=str(netns), if_name=INTERFACE)
        request = pb.AttachRequest(workload_id=workload, netns=where)
        begun = time.perf_counter()
        answer = self._call("Attach", request)
        took = (time.perf_counter() - begun) * 1000
        addresses = tuple(str(ip_address(packed)) for packed in answer.ip)
        self._say(f"Attach(workload_id={workload!r}, netns={str(netns)!r}, if_name={INTERFACE!r})")
        return Attached(workload, addresses, answer.host_interface, took)

    def check(self, workload: str, netns: Path) -> list[str]:
        """See Caller."""
        request = pb.CheckRequest(
            workload_id=workload, netns=pb.NetNSAttachment(netns_path=str(netns))
        )
        return [
            f"{workload} {one.attachment.if_name}: {each.what}: expected {each.expected!r}, "
            f"found {each.found!r}"
            for one in self._call("Check", request).attachments
            for each in one.findings
        ]

    def detach(self, workload: str, netns: Path) -> None:
        """See Caller."""
        self._say(f"Detach(workload_id={workload!r})")
        self._call("Detach", pb.DetachRequest(workload_id=workload))


class ByShim(Caller):
    """Executions of cniproxy, as a container runtime does them."""

    def __init__(self, say: Callable[[str], None]) -> None:
        super().__init__(say)
        self._conflist = json.loads((place.WORKSPACE / _CONFLIST).read_text())
        self._results: dict[str, Any] = {}

    def _execute(self, command: str, workload: str, netns: Path) -> Any:
        """Execute the shim with the conflist's plugin on stdin, as libcni does;
        return its result.
        """
        config = {name: self._conflist[name] for name in ("cniVersion", "name")}
        config |= {k: v for k, v in self._conflist["plugins"][0].items() if k != "capabilities"}
        if workload in self._results:  # of ADD
            config["prevResult"] = self._results[workload]
        file = Path(f"/run/{workload}.json")
        file.write_text(json.dumps(config))
        env = {
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": workload,
            "CNI_NETNS": str(netns),
            "CNI_IFNAME": INTERFACE,
            "CNI_PATH": "/run/bin",
        }
        given = " ".join(f"{name}={value}" for name, value in env.items())
        self._say(f"{given} cniproxy <{file}")
        done = place.run("cniproxy", stdin=file.read_text(), env=env, ok=False)
        if done.returncode:
            raise TryError(f"cniproxy {command} {workload}: {done.stdout.strip() or done.stderr}")
        return json.loads(done.stdout) if done.stdout else None

    def attach(self, workload: str, netns: Path) -> Attached:
        """See Caller. ms has the start of the process, too."""
        begun = time.perf_counter()
        result = self._execute("ADD", workload, netns)
        took = (time.perf_counter() - begun) * 1000
        stdin = json.loads(Path(f"/run/{workload}.json").read_text())
        self._results[workload] = result
        self._say(f"stdin:  {json.dumps(stdin)}\nstdout: {json.dumps(result)}")
        addresses = tuple(str(ip_interface(one["address"]).ip) for one in result["ips"])
        link = next(one["name"] for one in result["interfaces"] if not one.get("sandbox"))
        return Attached(workload, addresses, link, took)

    def check(self, workload: str, netns: Path) -> list[str]:
        """See Caller. The shim reports differences as an error."""
        try:
            self._execute("CHECK", workload, netns)
        except TryError as error:
            return [str(error)]
        return []

    def detach(self, workload: str, netns: Path) -> None:
        """See Caller."""
        self._execute("DEL", workload, netns)
