# SPDX-License-Identifier: Apache-2.0
"""Runs pods on a node by the calls of a kubelet, in its order.

    wait_ready      Version, Status until RuntimeReady and NetworkReady
    sync            ListPodSandbox and ListContainers by UID; as `decide` says:
      stop          StopContainer with the grace period, StopPodSandbox
      run           RunPodSandbox, PodSandboxStatus
      start         ImageStatus, CreateContainer, StartContainer, of each
    kill            as stop, for a pod that is not wanted any more
    collect         RemoveContainer; StopPodSandbox again, RemovePodSandbox

As with a kubelet, the runtime has all state: another Kubelet goes on where one
has ended. No call is repeated here: the next sync does, for the reason that the
runtime then lists.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv6Address
from pathlib import PurePosixPath
from typing import Protocol

from metropolis.test.kubelet import configs
from metropolis.test.kubelet.decide import (
    Decision,
    Ran,
    Sandbox,
    Start,
    decide,
    garbage,
    restart_delay_s,
)
from metropolis.test.kubelet.manifest import DnsConfig, Pod
from metropolis.test.launch.cri import Cri, CriError
from third_party.cri import api_pb2 as api

_POLL_S = 0.2

type Clock = Callable[[], float]


class KubeletError(Exception):
    """A pod cannot be run; the text says why."""


class Files(Protocol):
    """The node's files, as far as a kubelet makes them."""

    async def make(self, directory: PurePosixPath) -> None:
        """Make a directory and those above it."""

    async def write(self, path: PurePosixPath, text: str) -> None:
        """Write a file."""

    async def remove(self, directory: PurePosixPath) -> None:
        """Remove a directory and all in it; one that is gone is fine."""


@dataclass(frozen=True)
class Status:
    """A pod as the runtime has it. sandbox: "": none. ips: of the sandbox; none
    with the node's network. containers: name to id of those that run. ended:
    name to exit status. sandbox_ms: of RunPodSandbox, if this sync called it.
    """

    pod: Pod
    sandbox: str = ""
    attempt: int = 0
    ips: tuple[IPv4Address | IPv6Address, ...] = ()
    containers: tuple[tuple[str, str], ...] = ()
    ended: tuple[tuple[str, int], ...] = ()
    sandbox_ms: float | None = None

    @property
    def running(self) -> bool:
        """Whether all containers run."""
        return len(self.containers) == len(self.pod.containers)


class Kubelet:
    """Runs pods on one node. dns: the node's own configuration, which pods of
    policy Default have. calls: the runtime's calls so far, in order.
    """

    def __init__(
        self, cri: Cri, files: Files, dns: DnsConfig, clock: Clock = time.monotonic
    ) -> None:
        self.calls: list[str] = []
        self._cri = cri
        self._files = files
        self._dns = dns
        self._clock = clock
        # By UID and container: when it was first seen ended.
        self._ended: dict[tuple[str, str, int], float] = {}

    def _note(self, call: str) -> None:
        self.calls.append(call)

    async def wait_ready(self, timeout_s: float = 120.0) -> str:
        """Wait until pods can be started; return the runtime's version.

        Raises KubeletError with the unmet condition.
        """
        missing = "the runtime"
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    try:
                        self._note("Version")
                        version = await self._cri.version()
                        self._note("Status")
                        missing = await self._cri.not_ready()
                        if not missing:
                            return version
                    except CriError as error:
                        missing = str(error)
                    await asyncio.sleep(_POLL_S)
        except TimeoutError:
            raise KubeletError(f"not ready after {timeout_s:g} s: {missing}") from None

    async def check_images(self, pods: Iterable[Pod]) -> None:
        """Raise KubeletError, with the images of the node, for one that is not
        there: no registry is reached.
        """
        wanted = {
            one.image: f"{pod.full_name} {one.name}" for pod in pods for one in pod.containers
        }
        missing = []
        for image, user in wanted.items():
            self._note("ImageStatus")
            if not await self._cri.image(image):
                missing.append(f"image {image} (of {user}) is not on the node")
        if missing:
            there = ", ".join(await self._cri.images())
            raise KubeletError("\n".join([*missing, f"the node has {there}, and pulls none"]))

    async def sync(self, pod: Pod) -> Status:
        """Make the calls that the pod needs now; return how it is then.

        Raises KubeletError and CriError; what was made so far stays, as the
        next sync, or kill and collect, need it.
        """
        sandboxes, containers = await self._listed(pod)
        decision = decide(pod, sandboxes, containers)
        await self._stop(pod, decision.stop, containers)
        sandbox, sandbox_ms = decision.keep, None
        if decision.attempt is not None:
            begin = self._clock()
            sandbox = await self._run_sandbox(pod, decision.attempt)
            sandbox_ms = (self._clock() - begin) * 1000
        if sandbox and decision.start:
            await self._start_all(pod, sandbox, decision, containers)
        found = await self.status(pod)
        return replace(found, sandbox_ms=sandbox_ms)

    async def status(self, pod: Pod) -> Status:
        """Return the pod as the runtime has it; nothing is changed."""
        sandboxes, containers = await self._listed(pod)
        ready = [one for one in sandboxes if one.ready]
        last = {one.name: one for one in sorted(containers, key=lambda one: one.attempt)}
        ended = tuple((n, one.status) for n, one in last.items() if one.status is not None)
        if not ready:
            return Status(pod, ended=ended)
        newest = max(ready, key=lambda one: one.attempt)
        return Status(
            pod, newest.id, newest.attempt,
            () if pod.host_network else await self._cri.sandbox_ips(newest.id),
            tuple((n, one.id) for n, one in last.items() if one.running),
            ended,
        )  # fmt: skip

    async def kill(self, pod: Pod) -> None:
        """Stop the pod's containers and sandboxes. collect() removes them."""
        sandboxes, containers = await self._listed(pod)
        await self._stop(pod, [one.id for one in sandboxes], containers)

    async def collect(self, wanted: Iterable[Pod]) -> None:
        """Remove what is left of pods: containers that ended, but the last of
        each name in a pod that is wanted; sandboxes that are not ready, but the
        newest of such a pod; the files of pods that are not wanted and gone.

        It is about pods with a kubelet's labels only.
        """
        uids = frozenset(pod.uid for pod in wanted)
        self._note("ListContainers")
        containers = [one for one in await self._cri.list_containers() if _uid(one)]
        last = {
            (_uid(one), one.metadata.name): one.id
            for one in sorted(containers, key=lambda one: one.metadata.attempt)
            if _uid(one) in uids
        }
        kept = set(last.values())
        for one in containers:
            if one.state == api.CONTAINER_RUNNING or one.id in kept:
                continue
            self._note(f"RemoveContainer {one.metadata.name}")
            await self._cri.remove_container(one.id)
        self._note("ListPodSandbox")
        items = [one for one in await self._cri.list_sandboxes() if _uid(one)]
        known: dict[str, list[Sandbox]] = {}
        for item in items:
            known.setdefault(_uid(item), []).append(await self._sandbox(item, of_status=False))
        used = frozenset(one.pod_sandbox_id for one in containers if one.id in kept)
        removed = garbage(known, uids, used)
        for ident in removed:
            self._note("StopPodSandbox")
            await self._cri.stop_pod(ident)
            self._note("RemovePodSandbox")
            await self._cri.remove_sandbox(ident)
        for item in items:
            rest = {one.id for one in known[_uid(item)]} - set(removed)
            if item.id in removed and not rest and _uid(item) not in uids:
                meta = item.metadata
                name = f"{meta.namespace}_{meta.name}_{meta.uid}"
                await self._files.remove(configs.LOGS / name)
                await self._files.remove(configs.PODS / meta.uid)

    async def _listed(self, pod: Pod) -> tuple[list[Sandbox], list[Ran]]:
        labels = {configs.UID: pod.uid}
        self._note("ListPodSandbox")
        items = await self._cri.list_sandboxes(labels)
        sandboxes = [await self._sandbox(item, of_status=True) for item in items]
        self._note("ListContainers")
        return sandboxes, [await self._ran(one) for one in await self._cri.list_containers(labels)]

    async def _sandbox(self, item: api.PodSandbox, *, of_status: bool) -> Sandbox:
        """of_status: ask for network and address, too, of one that is ready."""
        ready = item.state == api.SANDBOX_READY
        host_network, address = False, False
        if of_status and ready:
            self._note("PodSandboxStatus")
            status = await self._cri.sandbox_status(item.id)
            options = status.linux.namespaces.options
            host_network, address = options.network == api.NODE, bool(status.network.ip)
        return Sandbox(
            item.id, item.metadata.attempt, item.created_at, ready,
            item.annotations.get(configs.HASH, ""), host_network, address,
        )  # fmt: skip

    async def _ran(self, item: api.Container) -> Ran:
        status = None
        if item.state == api.CONTAINER_EXITED:
            status = await self._cri.exit_status(item.id)
        return Ran(
            item.id, item.metadata.name, item.pod_sandbox_id, item.metadata.attempt,
            # One that was created and does not run has failed to start.
            item.state == api.CONTAINER_RUNNING,
            1 if item.state == api.CONTAINER_CREATED else status,
        )  # fmt: skip

    async def _stop(self, pod: Pod, sandboxes: Sequence[str], containers: Sequence[Ran]) -> None:
        async def stop(one: Ran) -> None:
            self._note(f"StopContainer {one.name}")
            await self._cri.stop_container(one.id, pod.grace_s)

        await asyncio.gather(
            *(stop(one) for one in containers if one.running and one.sandbox in sandboxes)
        )
        for ident in sandboxes:
            self._note("StopPodSandbox")
            await self._cri.stop_pod(ident)

    async def _run_sandbox(self, pod: Pod, attempt: int) -> str:
        await self._files.make(configs.log_directory(pod))
        self._note(f"RunPodSandbox {attempt}")
        ident = await self._cri.run_sandbox(configs.sandbox(pod, attempt, self._dns))
        self._note("PodSandboxStatus")
        if not pod.host_network:
            await self._files.make(configs.pod_directory(pod))
            text = configs.hosts(pod, await self._cri.sandbox_ips(ident))
            await self._files.write(configs.hosts_path(pod), text)
        return ident

    async def _start_all(
        self, pod: Pod, sandbox: str, decision: Decision, containers: Sequence[Ran]
    ) -> None:
        attempt = decision.attempt
        if attempt is None:
            listed = await self._cri.list_sandboxes({configs.UID: pod.uid})
            attempt = next(one.metadata.attempt for one in listed if one.id == sandbox)
        config = configs.sandbox(pod, attempt, self._dns)
        for start in decision.start:
            # A container that ended with its sandbox is not a crash.
            if decision.attempt is None and not self._due(pod, start):
                continue
            self._note(f"ImageStatus {start.container.image}")
            image = await self._cri.image(start.container.image)
            if not image:
                await self.check_images([pod])
            await self._files.make(configs.log_directory(pod) / start.container.name)
            self._note(f"CreateContainer {start.container.name} {start.attempt}")
            made = configs.container(pod, start.container, start.attempt, image)
            ident = await self._cri.create_container(sandbox, made, config)
            self._note(f"StartContainer {start.container.name}")
            await self._cri.start_container(ident)

    def _due(self, pod: Pod, start: Start) -> bool:
        """Return whether a container that ended may start again by now."""
        if start.attempt == 0:
            return True
        now = self._clock()
        key = pod.uid, start.container.name, start.attempt
        since = self._ended.setdefault(key, now)
        return now - since >= restart_delay_s(start.attempt - 1)


def _uid(item: api.PodSandbox | api.Container) -> str:
    return item.labels.get(configs.UID, "")
