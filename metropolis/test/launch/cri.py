# SPDX-License-Identifier: Apache-2.0
"""Pods on a node, by the Kubernetes Container Runtime Interface.

run_pod() and remove_pod() are what most tests need: a sandbox with one
container of the preloaded busybox image. Below them are the single calls, from
which metropolis.test.kubelet makes pods as a kubelet does.
"""

import asyncio
import contextlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

import grpc
import grpc.aio

from third_party.cri import api_pb2 as api
from third_party.cri import api_pb2_grpc as api_grpc

IMAGE = "localhost/busybox:latest"
# Preloaded with it: the runtime's image for sandboxes.
_PAUSE = "localhost/pause:latest"
# All that a node has: it reaches no registry.
PRELOADED = (IMAGE, _PAUSE)
# ping: raw sockets, as container engines allow.
DEFAULT_CAPABILITIES = ("NET_RAW",)
# Users in a pod's user namespace, as kubelet has it.
_USERNS_IDS = 65536
# Seconds; an emulated node takes about two for a sandbox, busy ones more.
_TIMEOUT_S = 120.0
_CHANNEL_OPTIONS = [
    # Not min_reconnect_backoff_ms: that is also the least timeout of a
    # connection, and a busy emulated node takes a second.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 500),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
]
# gRPC's errors for a socket without a server. The last two are those of the
# agent's relay, which has to accept and then closes.
_ABSENT = (
    "error: No such file or directory",
    "error: Connection refused",
    "recvmsg:Connection reset by peer (104)",
    "Socket closed",
)


class CriError(Exception):
    """The runtime refused, or behaved wrongly."""


def unix_channel(path: Path) -> grpc.aio.Channel:
    """Return a channel to a unix socket, which may appear later or again."""
    return grpc.aio.insecure_channel(f"unix:{path}", options=_CHANNEL_OPTIONS)


def why_not(error: grpc.aio.AioRpcError) -> str:
    """Return ": " and the reason why a service does not answer; "" when it has
    just not started yet.
    """
    said = str(error.details())
    absent = said.startswith("failed to connect") and said.endswith(_ABSENT)
    return "" if absent else f": {said}"


@dataclass(frozen=True)
class Pod:
    """A running pod.

    id, container: ids of sandbox and container. ips: from the runtime.
    sandbox_ms: time of RunPodSandbox, measured on the host.
    """

    name: str
    id: str
    container: str
    ips: tuple[IPv4Address | IPv6Address, ...]
    sandbox_ms: float

    @property
    def ipv4(self) -> IPv4Address | None:
        """The pod's IPv4 address."""
        return next((ip for ip in self.ips if isinstance(ip, IPv4Address)), None)

    @property
    def ipv6(self) -> IPv6Address | None:
        """The pod's IPv6 address."""
        return next((ip for ip in self.ips if isinstance(ip, IPv6Address)), None)


@dataclass(frozen=True)
class Found:
    """A pod as the runtime lists it. id: of the sandbox. container: the one
    that runs, or ran last; "" without one. running: whether it runs.
    """

    name: str
    id: str
    container: str
    ips: tuple[IPv4Address | IPv6Address, ...]
    running: bool


@dataclass(frozen=True)
class Output:
    """The result of a command in a pod."""

    status: int
    stdout: str
    stderr: str


def sandbox_config(
    name: str,
    root_uid: int = 0,
    host_network: bool = False,
    ports: Sequence[api.PortMapping] = (),
) -> api.PodSandboxConfig:
    """Return the config for RunPodSandbox. root_uid, ports: see Cri.run_pod."""
    namespaces = api.NamespaceOption()
    if host_network:
        namespaces.network = api.NODE
    if root_uid != 0:
        mapped = api.IDMapping(host_id=root_uid, container_id=0, length=_USERNS_IDS)
        namespaces.userns_options.CopyFrom(
            api.UserNamespace(mode=api.POD, uids=[mapped], gids=[mapped])
        )
    return api.PodSandboxConfig(
        metadata=api.PodSandboxMetadata(
            name=name, uid=f"uid-{name}", namespace="default", attempt=0
        ),
        hostname="" if host_network else name,
        labels={"app": name},
        port_mappings=ports,
        linux=api.LinuxPodSandboxConfig(
            security_context=api.LinuxSandboxSecurityContext(namespace_options=namespaces)
        ),
    )


class Cri:
    """A client of one node's containerd."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._runtime = api_grpc.RuntimeServiceStub(channel)
        self._images = api_grpc.ImageServiceStub(channel)

    async def unready(self) -> str:
        """Return what is missing before pods can be started; "": nothing."""
        try:
            status = await self._runtime.Status(api.StatusRequest(), timeout=10)
            if missing := _unmet(status.status):
                return missing
            for image in (IMAGE, _PAUSE):
                request = api.ImageStatusRequest(image=api.ImageSpec(image=image))
                found = await self._images.ImageStatus(request, timeout=10)
                if not found.HasField("image"):
                    return f"image {image} to be loaded"
        except grpc.aio.AioRpcError as error:
            return "containerd" + why_not(error)
        return ""

    async def run_pod(
        self,
        name: str,
        command: Sequence[str],
        capabilities: Sequence[str] = DEFAULT_CAPABILITIES,
        root_uid: int = 0,
        ports: Sequence[api.PortMapping] = (),
    ) -> Pod:
        """Start a pod whose one container runs `command`.

        capabilities: in addition to the runtime's. root_uid: the node's user id
        of the pod's root; not 0: the pod has a user namespace, which owns its
        netns. ports: of the node, which lead to the pod's. After a failure
        nothing of the pod is left.
        """
        config = sandbox_config(name, root_uid, ports=ports)
        begin = time.monotonic()
        ident = await self.run_sandbox(config)
        sandbox_ms = (time.monotonic() - begin) * 1000
        try:
            ips, container = await asyncio.gather(
                self.sandbox_ips(ident),
                self._start_container(ident, config, command, capabilities),
            )
        except BaseException as error:
            with contextlib.suppress(CriError):
                await self.remove_pod(ident)
            if isinstance(error, CriError):
                raise CriError(f"start pod {name}: {error}") from error
            raise
        return Pod(name, ident, container, ips, sandbox_ms)

    async def run_sandbox(self, config: api.PodSandboxConfig) -> str:
        """Start a sandbox without a container; return its id."""
        sandbox = await _call(
            self._runtime.RunPodSandbox,
            api.RunPodSandboxRequest(config=config),
            f"RunPodSandbox {config.metadata.name}",
        )
        return sandbox.pod_sandbox_id

    async def sandbox_status(self, ident: str) -> api.PodSandboxStatus:
        """Return the status of a sandbox."""
        return (await self._sandbox_status(ident, verbose=False)).status

    async def sandbox_ips(self, ident: str) -> tuple[IPv4Address | IPv6Address, ...]:
        """Return the pod's IP and additional IPs, from its status."""
        network = (await self.sandbox_status(ident)).network
        texts = [network.ip, *(more.ip for more in network.additional_ips)]
        return tuple(ip_address(text) for text in texts if text)

    async def _sandbox_status(
        self, ident: str, *, verbose: bool = True
    ) -> api.PodSandboxStatusResponse:
        request = api.PodSandboxStatusRequest(pod_sandbox_id=ident, verbose=verbose)
        what = f"PodSandboxStatus {ident[:12]}"
        return await _call(self._runtime.PodSandboxStatus, request, what)

    async def sandboxes(self) -> dict[str, bool]:
        """Return all sandboxes: id to whether it is ready."""
        return {item.id: item.state == api.SANDBOX_READY for item in await self.list_sandboxes()}

    async def list_sandboxes(self, labels: Mapping[str, str] | None = None) -> list[api.PodSandbox]:
        """Return the sandboxes that have these labels; None: all."""
        request = api.ListPodSandboxRequest(filter=api.PodSandboxFilter(label_selector=labels))
        found = await _call(self._runtime.ListPodSandbox, request, "ListPodSandbox")
        return list(found.items)

    async def list_containers(self, labels: Mapping[str, str] | None = None) -> list[api.Container]:
        """Return the containers that have these labels; None: all."""
        request = api.ListContainersRequest(filter=api.ContainerFilter(label_selector=labels))
        found = await _call(self._runtime.ListContainers, request, "ListContainers")
        return list(found.containers)

    async def cni_result(self, ident: str) -> object:
        """Return the network's result as containerd stored it."""
        status = await self._sandbox_status(ident)
        return json.loads(status.info["info"])["cniResult"]

    async def _start_container(
        self,
        sandbox: str,
        config: api.PodSandboxConfig,
        command: Sequence[str],
        capabilities: Sequence[str],
    ) -> str:
        created = await self.create_container(
            sandbox,
            api.ContainerConfig(
                metadata=api.ContainerMetadata(name="main", attempt=0),
                image=api.ImageSpec(image=IMAGE),
                command=list(command),
                linux=api.LinuxContainerConfig(
                    security_context=api.LinuxContainerSecurityContext(
                        capabilities=api.Capability(add_capabilities=list(capabilities)),
                        namespace_options=config.linux.security_context.namespace_options,
                    )
                ),
            ),
            config,
        )
        await self.start_container(created)
        return created

    async def exec(
        self, container: str, command: Sequence[str], timeout_s: float = 180.0
    ) -> Output:
        """Run a command in a container to its end."""
        request = api.ExecSyncRequest(
            container_id=container, cmd=list(command), timeout=int(timeout_s)
        )
        what = f"ExecSync {' '.join(command)[:80]}"
        done = await _call(self._runtime.ExecSync, request, what, timeout_s + 30)
        return Output(
            done.exit_code,
            done.stdout.decode(errors="replace"),
            done.stderr.decode(errors="replace"),
        )

    async def stop_pod(self, ident: str) -> None:
        """Stop a pod and free its network; a pod that is gone is fine."""
        request = api.StopPodSandboxRequest(pod_sandbox_id=ident)
        await _call(self._runtime.StopPodSandbox, request, f"StopPodSandbox {ident[:12]}")

    async def remove_pod(self, ident: str) -> None:
        """Stop and remove a pod."""
        await self.stop_pod(ident)
        await self.remove_sandbox(ident)

    async def remove_sandbox(self, ident: str) -> None:
        """Remove a sandbox that was stopped; one that is gone is fine."""
        request = api.RemovePodSandboxRequest(pod_sandbox_id=ident)
        await _call(self._runtime.RemovePodSandbox, request, f"RemovePodSandbox {ident[:12]}")

    async def version(self) -> str:
        """Return the runtime's name and version."""
        found = await _call(self._runtime.Version, api.VersionRequest(version="v1"), "Version")
        return f"{found.runtime_name} {found.runtime_version}"

    async def not_ready(self) -> str:
        """Return the first condition of a pod's start that is not met; "": all
        are.
        """
        found = await _call(self._runtime.Status, api.StatusRequest(), "Status", 10)
        return _unmet(found.status)

    async def image(self, name: str) -> str:
        """Return the id of an image of the node; "": it is not there."""
        request = api.ImageStatusRequest(image=api.ImageSpec(image=name))
        found = await _call(self._images.ImageStatus, request, f"ImageStatus {name}")
        return found.image.id if found.HasField("image") else ""

    async def images(self) -> list[str]:
        """Return the names of the node's images, sorted."""
        found = await _call(self._images.ListImages, api.ListImagesRequest(), "ListImages")
        return sorted(tag for image in found.images for tag in image.repo_tags)

    async def create_container(
        self, sandbox: str, config: api.ContainerConfig, sandbox_config: api.PodSandboxConfig
    ) -> str:
        """Create a container of a sandbox; return its id."""
        request = api.CreateContainerRequest(
            pod_sandbox_id=sandbox, config=config, sandbox_config=sandbox_config
        )
        what = f"CreateContainer {config.metadata.name}"
        return (await _call(self._runtime.CreateContainer, request, what)).container_id

    async def start_container(self, ident: str) -> None:
        """Start a container that was created."""
        request = api.StartContainerRequest(container_id=ident)
        await _call(self._runtime.StartContainer, request, f"StartContainer {ident[:12]}")

    async def stop_container(self, ident: str, grace_s: int) -> None:
        """Stop a container: SIGTERM, and SIGKILL after some seconds."""
        request = api.StopContainerRequest(container_id=ident, timeout=grace_s)
        what = f"StopContainer {ident[:12]}"
        await _call(self._runtime.StopContainer, request, what, grace_s + _TIMEOUT_S)

    async def remove_container(self, ident: str) -> None:
        """Remove a container; one that is gone is fine."""
        request = api.RemoveContainerRequest(container_id=ident)
        await _call(self._runtime.RemoveContainer, request, f"RemoveContainer {ident[:12]}")

    async def exit_status(self, ident: str) -> int:
        """Return the exit status of a container that has ended."""
        request = api.ContainerStatusRequest(container_id=ident)
        what = f"ContainerStatus {ident[:12]}"
        return (await _call(self._runtime.ContainerStatus, request, what)).status.exit_code

    async def port_forward(self, sandbox: str, ports: Sequence[int]) -> str:
        """Return the URL, on the node, where a pod's ports are forwarded to."""
        request = api.PortForwardRequest(pod_sandbox_id=sandbox, port=ports)
        what = f"PortForward {sandbox[:12]}"
        return (await _call(self._runtime.PortForward, request, what)).url

    async def sandbox_process(self, ident: str) -> tuple[int, str]:
        """Return the pid of a pod's sandbox and the path of its netns."""
        status = await self._sandbox_status(ident)
        info = json.loads(status.info["info"])
        spaces = info["runtimeSpec"]["linux"]["namespaces"]
        path = next(space["path"] for space in spaces if space["type"] == "network")
        return int(info["pid"]), str(path)

    async def pods(self) -> list[Found]:
        """Return all pods, also those that ended."""
        sandboxes, containers = await asyncio.gather(self.list_sandboxes(), self.list_containers())
        last = {
            item.pod_sandbox_id: item
            for item in sorted(
                containers,
                key=lambda item: (item.state == api.CONTAINER_RUNNING, item.created_at),
            )
        }
        found = []
        for item in sandboxes:
            own = last.get(item.id)
            ready = item.state == api.SANDBOX_READY
            found.append(
                Found(
                    item.metadata.name,
                    item.id,
                    own.id if own else "",
                    await self.sandbox_ips(item.id) if ready else (),
                    own is not None and own.state == api.CONTAINER_RUNNING,
                )
            )
        return found


async def _call[Asked, Answered](
    method: grpc.aio.UnaryUnaryMultiCallable[Asked, Answered],
    request: Asked,
    what: str,
    timeout_s: float = _TIMEOUT_S,
) -> Answered:
    """Return the answer. Raises CriError, which begins with `what`."""
    try:
        return await method(request, timeout=timeout_s)
    except grpc.aio.AioRpcError as error:
        raise CriError(f"{what}: {_text(error)}") from error


def _unmet(status: api.RuntimeStatus) -> str:
    for condition in status.conditions:
        if condition.type in ("RuntimeReady", "NetworkReady") and not condition.status:
            return f"{condition.type}: {condition.message or condition.reason}"
    return ""


def _text(error: grpc.aio.AioRpcError) -> str:
    return f"{error.code().name}: {why(str(error.details()))}"


def why(details: str) -> str:
    """Return what runc says about a command that cannot be started, without the
    chain of those that passed it on; other errors as they are.
    """
    _, found, reason = details.rpartition("unable to start container process: ")
    return reason.removeprefix("error during container init: ") if found else details
