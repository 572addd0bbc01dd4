# SPDX-License-Identifier: Apache-2.0
"""The real shim, the real server, the real engine and the kernel, for tests.

They run in a network namespace of their own; CNIPROXY names the shim. The
fixtures are conftest's.
"""

import asyncio
import json
import os
import socket
import subprocess
import threading
from collections.abc import Callable
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest

from metropolis.node.core.network.cni.protocol import Code
from metropolis.node.core.network.cni.wire import Request
from metropolis.node.core.network.workloads.conditions import Conditions
from metropolis.node.core.network.workloads.datapath.registry import PARTS
from metropolis.node.core.network.workloads.datapath.veth import KernelDatapath
from metropolis.node.core.network.workloads.engine.engine import Engine
from metropolis.node.core.network.workloads.model import (
    AttachIntent,
    Attachment,
    Collected,
)

PROGRAM = str(Path(os.environ["CNIPROXY"]).absolute())
PREFIXES = [ip_network("10.192.0.0/24"), ip_network("fd00:10:192::/112")]
GENEROUS_S = 60.0


class GatedEngine(Engine):
    """The engine, with gates that block calls while they are closed.

    gate: before an attach. made: after one. seen: for each attachment that a
    collection considers.
    """

    def __init__(self) -> None:
        self.conditions = Conditions()
        super().__init__(KernelDatapath(parts=PARTS), self.conditions)
        self.gate, self.made, self.seen = (threading.Event() for _ in range(3))
        for gate in (self.gate, self.made, self.seen):
            gate.set()
        self.arrived = threading.Semaphore(0)
        self.collecting = threading.Semaphore(0)

    def attach(
        self, intent: AttachIntent, *, time_remaining: Callable[[], float] = lambda: GENEROUS_S
    ) -> Attachment:
        self.arrived.release()
        assert self.gate.wait(GENEROUS_S)
        attachment = super().attach(intent, time_remaining=time_remaining)
        assert self.made.wait(GENEROUS_S)
        return attachment

    def collect(
        self,
        is_live: Callable[[str, str], bool],
        *,
        of_owner: Callable[[str], bool] = lambda _: True,
        until_gone: bool = False,
        time_remaining: Callable[[], float] = lambda: GENEROUS_S,
    ) -> Collected:
        def gated(container_id: str, if_name: str) -> bool:
            live = is_live(container_id, if_name)
            self.collecting.release()
            assert self.seen.wait(GENEROUS_S)
            return live

        return super().collect(
            gated, of_owner=of_owner, until_gone=until_gone, time_remaining=time_remaining
        )


def run(*command: str) -> str:
    """Run a program here, and return what it prints."""
    return subprocess.check_output(command, text=True)


class Netns:
    """A network namespace that lives as long as its file is open."""

    def __init__(self) -> None:
        def make() -> None:
            os.unshare(os.CLONE_NEWNET)
            self.fd = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)

        _in_a_thread(make)
        self.path = f"/proc/{os.getpid()}/fd/{self.fd}"

    def run(self, *command: str) -> str:
        """Run a program in it."""
        return run("nsenter", f"--net={self.path}", *command)

    def links(self) -> set[str]:
        return {link["ifname"] for link in json.loads(self.run("ip", "-j", "link"))}

    def listen(self, port: int, family: int = socket.AF_INET) -> socket.socket:
        """Return a socket that listens in it, at all addresses of a family."""
        return self._make(lambda: socket.create_server(("", port), family=family))

    def client(self, family: int) -> socket.socket:
        """Return a socket of TCP in it."""
        return self._make(lambda: socket.socket(family))

    def _make(self, make: Callable[[], socket.socket]) -> socket.socket:
        made: list[socket.socket] = []

        def inside() -> None:
            os.setns(self.fd, os.CLONE_NEWNET)
            made.append(make())

        _in_a_thread(inside)
        return made[0]

    def close(self) -> None:
        os.close(self.fd)


def _in_a_thread(call: Callable[[], None]) -> None:
    """Call in a thread that ends, and with it the namespace that it entered."""
    thread = threading.Thread(target=call)
    thread.start()
    thread.join()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(GENEROUS_S):
        while not condition():  # noqa: ASYNC110 - the kernel sets no events
            await asyncio.sleep(0.002)


class Failure(Exception):
    """The error object that the shim printed."""

    def __init__(self, error: dict[str, Any]) -> None:
        super().__init__(json.dumps(error))
        self.code = error["code"]


def execution(
    command: str, container: str = "", netns: str = "", version: str = "1.1.0", /, **config: Any
) -> Request:
    env = {"CNI_COMMAND": command, "CNI_PATH": "/opt/cni/bin"}
    if container:
        env |= {"CNI_CONTAINERID": container, "CNI_NETNS": netns, "CNI_IFNAME": "eth0"}
    env |= {f"CNI_{k}": v for k, v in config.items() if k.isupper()}
    body = {"cniVersion": version, "name": "metropolis", "type": "cniproxy"}
    body |= {k: v for k, v in config.items() if not k.isupper()}
    return Request(("cniproxy",), env, json.dumps(body).encode())


async def start(service: Path, request: Request) -> asyncio.subprocess.Process:
    process = await asyncio.create_subprocess_exec(
        PROGRAM,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=request.env | {"CNIPROXY_SOCKET": str(service)},
    )
    assert process.stdin is not None
    process.stdin.write(request.stdin)
    process.stdin.close()
    return process


async def cni(service: Path, *args: Any, **kwargs: Any) -> Any:
    """Execute the shim as a runtime does; return the result, if any."""
    process = await start(service, execution(*args, **kwargs))
    assert process.stdout is not None
    stdout = await asyncio.wait_for(process.stdout.read(), GENEROUS_S)
    code = await process.wait()
    if code:
        raise Failure(json.loads(stdout))
    return json.loads(stdout) if stdout else None


async def refused(code: Code, service: Path, *args: Any, **kwargs: Any) -> str:
    with pytest.raises(Failure) as info:
        await cni(service, *args, **kwargs)
    assert info.value.code == code, info.value
    return str(info.value)
