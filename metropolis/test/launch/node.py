# SPDX-License-Identifier: Apache-2.0
"""A running node: the image in a machine, with clients of its services.

    async with Lab(here) as lab, Node(find_images(), lab, here) as node:
        await node.wait_ready()
        pod = await node.cri.run_pod("a", ["sleep", "inf"])

Entering boots it; leaving ends it, whatever state it is in.
"""

import asyncio
import contextlib
import json
import os
import re
import time
from collections.abc import Callable, Mapping
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

import grpc
import grpc.aio

from metropolis.node import allocs
from metropolis.node.core.network.workloads.spec import workload_pb2, workload_pb2_grpc
from metropolis.test.launch.configuration import Configuration
from metropolis.test.launch.cri import Cri, unix_channel, why_not
from metropolis.test.launch.images import Images
from metropolis.test.launch.lab import OUTSIDE_IPV4, OUTSIDE_IPV6, ROUTER_IPV6, Lab, Port
from metropolis.test.launch.servicelogs import START, WATCHED, Watch, excerpt
from metropolis.test.launch.started import Started
from osbase.test.agent.client import Agent, AgentError, AgentRestartedError
from osbase.test.qemu.accel import find_accel
from osbase.test.qemu.config import Accel, Drive, Machine, Tap
from osbase.test.qemu.vm import Vm

AGENT_CHANNEL = "dev.metropolis.agent"
CONTAINERD_SOCKET = "/run/containerd/containerd.sock"
_CONFIG = "opt/metropolis/node.textproto"
# Seconds between checks of a node that is not ready.
_POLL_S = 0.2
# Seconds between looks at the logs of such a node.
_LOOK_S = 1.0
# Seconds from the end of the agent's channel to that of its machine.
_ENDING_S = 2.0
_DATA_BYTES = 1 << 29  # of a data disk
_LOGS = "/run/log"
# Lines of a service's log in reports: of one that is suspected, of the others.
_SUSPECT_LINES, _LINES = 60, 8
_LOGS_S = 20.0

type Progress = Callable[[str], None]


class NodeError(Exception):
    """The node failed to become ready; the text has its logs."""


async def make_data_disk(path: Path) -> None:
    """Make a file with an empty ext4 file system. Raises NodeError, OSError."""
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o666))
    os.truncate(path, _DATA_BYTES)
    process = await asyncio.create_subprocess_exec("mkfs.ext4", "-q", "-F", str(path))
    if await process.wait() != 0:
        raise NodeError(f"mkfs.ext4 {path}: status {process.returncode}")


def quiet(message: str) -> None:
    """Discard progress."""


class Node(Started):
    """One node. directory: a short path, see osbase.test.qemu.config."""

    def __init__(
        self,
        images: Images,
        lab: Lab,
        directory: Path,
        config: Configuration | str | None = None,
        progress: Progress = quiet,
        data: Path | None = None,
        *,
        name: str = "node",
        port: Port | None = None,
        pki: Mapping[str, bytes] | None = None,
        memory_mib: int = 1024,
        cpus: int = 2,
        clock: str = "utc",
        log_level: str = "info",
    ) -> None:
        """config: NodeConfig as text; None: the one in the image. data: a file
        with ext4, the node's /var; None: /var ends with the node. port: of the
        lab; None: the first. pki: contents of ca, cert and key, PEM. clock: see
        Machine. log_level: node core's.
        """
        super().__init__()
        self.name = name
        self.port = lab.ports[0] if port is None else port
        self.accel: Accel | None = None
        self.boot_s = 0.0
        own = config if isinstance(config, Configuration) else Configuration(config)
        self.ipv4: IPv4Address = own.ipv4 or self.port.ipv4
        self.ipv6: IPv6Address | None = None
        self._images = images
        self._directory = directory
        self._progress = progress
        self._data = data
        self._families = own.uplink
        self._fw_cfg = {} if own.text is None else {_CONFIG: own.text.encode()}
        self._fw_cfg |= {f"opt/metropolis/{item}.pem": pem for item, pem in (pki or {}).items()}
        self._memory_mib = memory_mib
        self._cpus = cpus
        self._clock = clock
        self._flags = f"metropolis.hostname={name} metropolis.log-level={log_level}"
        self._begin = 0.0

    vm: Vm
    agent: Agent
    cri: Cri
    workloads: workload_pb2_grpc.WorkloadNetworkingAsyncStub

    @property
    def containerd_socket(self) -> Path:
        """Return the host's socket of the node's containerd."""
        return self._directory / "containerd.sock"

    @property
    def workload_socket(self) -> Path:
        """Return the host's socket of the node's workload network service."""
        return self._directory / "workload.sock"

    async def _start(self) -> None:
        self.accel = await find_accel(self._images.kernel)
        self._progress(f"boot: starting the machine ({self.accel.value})")
        self._begin = time.monotonic()
        machine = Machine(
            kernel=self._images.kernel,
            initrd=self._images.initramfs,
            cmdline=f"quiet metropolis.console {self._flags}",
            drives=(
                Drive(self._images.root, "root"),
                Drive(self._images.tools, "tools"),
                *(() if self._data is None else (Drive(self._data, "data", readonly=False),)),
            ),
            channels=(AGENT_CHANNEL,),
            fw_cfg=self._fw_cfg,
            nets=(Tap(self.port.fd, self.port.mac),),
            memory_mib=self._memory_mib,
            cpus=self._cpus,
            clock=self._clock,
        )
        enter = self._stack.enter_async_context
        self.vm = await enter(Vm(machine, self.accel, self._directory))
        self.agent = await enter(Agent(self.vm.layout.channel(AGENT_CHANNEL)))
        for path, local in (
            (CONTAINERD_SOCKET, self.containerd_socket),
            (allocs.WORKLOAD_SOCKET, self.workload_socket),
        ):
            await enter(self.agent.forward(path, local))
        self.cri = Cri(await enter(unix_channel(self.containerd_socket)))
        channel = await enter(unix_channel(self.workload_socket))
        self.workloads = workload_pb2_grpc.WorkloadNetworkingStub(channel)

    async def wait_ready(self, timeout_s: float = 600.0) -> None:
        """Wait until pods can be started and the uplink has both addresses.

        Raises NodeError with the missing parts and the node's logs: after that
        time, or as soon as a service ends or a task dies again and again.
        """
        missing = "the agent"
        watch = Watch(booting=self.boot_s == 0)
        up = asyncio.create_task(self.agent.ready())
        died = asyncio.create_task(self.vm.wait())
        try:
            async with asyncio.timeout(timeout_s):
                await asyncio.wait({up, died}, return_when=asyncio.FIRST_COMPLETED)
                if died.done():
                    raise NodeError(str(self.vm.failure(f"ended by {died.result() or 'itself'}")))
                try:
                    await up
                except AgentError as error:
                    raise await self._failure(died, error) from error
                self._progress(f"boot: the node runs after {self._elapsed():.1f} s")
                said, look_at = "", 0.0
                while missing := await self._missing_now(died):
                    # "at most 22 s more", "at most 21 s more"
                    if (words := re.sub(r"\d+", "", missing)) != said:
                        self._progress(f"boot: waiting for {missing} ({self._elapsed():.1f} s)")
                        said = words
                    if died.done():
                        raise NodeError(str(self.vm.failure("ended by itself")))
                    if time.monotonic() >= look_at:
                        await self._look(watch, missing)
                        look_at = time.monotonic() + _LOOK_S
                    await asyncio.sleep(_POLL_S)
        except TimeoutError:
            raise NodeError(
                f"node not ready after {timeout_s:g} s: waiting for {missing}\n{await self.logs()}"
            ) from None
        finally:
            up.cancel()
            died.cancel()
            await asyncio.gather(up, died, return_exceptions=True)
        self.boot_s = self._elapsed()
        self._progress(f"boot: ready after {self.boot_s:.1f} s")

    async def _look(self, watch: Watch, missing: str) -> None:
        """Raise NodeError if a service crashes again and again."""
        for service in WATCHED:
            try:
                log = await self.agent.read_file(f"{_LOGS}/{service}/current")
            except AgentError:
                # Not there yet, or the agent restarts; _missing reports others.
                continue
            why = watch.look(service, log.decode(errors="replace"))
            for news in watch.news:
                self._progress(f"boot: {news}")
            if why:
                raise NodeError(f"{why} (waited for {missing})\n{await self.logs(service)}")

    def _elapsed(self) -> float:
        return time.monotonic() - self._begin

    async def _missing_now(self, died: asyncio.Task[str]) -> str:
        """Like _missing, but the machine may end, or its agent restart."""
        try:
            return await self._missing()
        except AgentRestartedError:
            return "the agent, which started anew"
        except AgentError as error:
            raise await self._failure(died, error) from error

    async def _failure(self, died: asyncio.Task[str], error: AgentError) -> NodeError:
        """Return the error to raise when the agent fails: if the machine is
        about to end, its console has the reason.
        """
        await asyncio.wait({died}, timeout=_ENDING_S)
        where = "" if died.done() else await self.vm.where_it_is()
        return NodeError(f"{self.vm.failure(str(error))}\n{where}".rstrip())

    async def _missing(self) -> str:
        """Return what is missing; "" when the node is ready."""
        try:
            await self.workloads.Status(workload_pb2.StatusRequest(), timeout=10)
        except grpc.aio.AioRpcError as error:
            return "the network service" + why_not(error)
        if missing := await self.cri.unready():
            return missing
        found = await self.uplink_addresses()
        if 4 in self._families and self.ipv4 not in found:
            how = " by DHCP" if self.ipv4 == self.port.ipv4 else ""
            return f"the uplink's {self.ipv4}{how}"
        if 6 in self._families:
            ipv6 = [ip for ip in found if ip in ROUTER_IPV6.network]
            if not ipv6:
                return "the uplink's IPv6 address by router advertisement"
            self.ipv6 = next(ip for ip in ipv6 if isinstance(ip, IPv6Address))
        for outside in (OUTSIDE_IPV4, OUTSIDE_IPV6):
            if outside.version not in self._families:
                continue
            routed = await self.agent.run(["ip", "route", "get", str(outside)], check=False)
            if routed.status != 0:
                return f"a route to the outside, IPv{outside.version}"
        return ""

    async def uplink_addresses(self) -> list[IPv4Address | IPv6Address]:
        """Return the usable addresses of the node's uplink."""
        done = await self.agent.run(["ip", "-json", "addr", "show", "scope", "global"])
        return [
            ip_address(address["local"])
            for link in json.loads(done.stdout)
            if link.get("address") == self.port.mac
            for address in link["addr_info"]
            if "local" in address and not address.get("tentative")
        ]

    async def logs(self, suspect: str = WATCHED[0]) -> str:
        """Return the ends of all service logs, or of the console: node core's
        first, with its last traceback; then the suspect's; little of others.
        """
        with contextlib.suppress(AgentError, TimeoutError):
            async with asyncio.timeout(_LOGS_S):
                names = (await self.agent.run(["ls", _LOGS])).text.split()
                first = [name for name in dict.fromkeys((WATCHED[0], suspect)) if name in names]
                parts = []
                for name in dict.fromkeys((*first, *names)):
                    path = f"{_LOGS}/{name}/current"
                    log = (await self.agent.read_file(path)).decode(errors="replace")
                    end = excerpt(log, _SUSPECT_LINES if name in first else _LINES)
                    if end == START and name not in first:
                        continue
                    parts.append(f"--- {name}: the end of {path}\n{end}")
                return "\n".join(parts)
        return f"--- the end of {self.vm.layout.console_log}\n{self.vm.console_tail()}"

    async def save_logs(self, directory: Path) -> None:
        """Copy all service logs to SERVICE.log in a directory, if the node
        still answers.
        """
        with contextlib.suppress(AgentError, TimeoutError):
            async with asyncio.timeout(_ENDING_S):
                await self.agent.ready()
            async with asyncio.timeout(_LOGS_S):
                names = (await self.agent.run(["ls", _LOGS])).text.split()
                for name in names:
                    data = await self.agent.read_file(f"{_LOGS}/{name}/current")
                    await asyncio.to_thread((directory / f"{name}.log").write_bytes, data)

    async def attach_log(self) -> str:
        """Return the lines of the logs with attach times."""
        # containerd's log, for cniproxy; the service's, for the exec shim.
        logs = [f"{_LOGS}/{name}/current" for name in ("containerd", "node-core")]
        return (await self.agent.run(["grep", "-hF", "attached in", *logs], check=False)).text

    async def shell(self, script: str) -> str:
        """Run a script on the node; return its output. Raises AgentError."""
        return (await self.agent.run(["sh", "-c", script])).text
