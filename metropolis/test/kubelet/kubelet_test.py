# SPDX-License-Identifier: Apache-2.0
"""The driver's calls, with a runtime in memory."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import PurePosixPath

import pytest

from metropolis.test.kubelet import configs
from metropolis.test.kubelet.kubelet import Kubelet, KubeletError
from metropolis.test.kubelet.manifest import Container, DnsConfig, Pod
from metropolis.test.launch.cri import Cri, CriError
from third_party.cri import api_pb2 as api

POD = Pod("web", (Container("a", "box"), Container("b", "box")), given_uid="u1", grace_s=7)


class Runtime(Cri):
    """A runtime in memory. unmet: conditions that are not met, one per Status.
    fails: a call that fails next.
    """

    def __init__(self) -> None:
        self.numbers = itertools.count(1)
        self.sandbox_items: dict[str, api.PodSandbox] = {}
        self.configs: dict[str, api.PodSandboxConfig] = {}
        self.container_items: dict[str, api.Container] = {}
        self.statuses: dict[str, int] = {}
        self.graces: list[int] = []
        self.unmet: list[str] = []
        self.fails = ""

    def _may(self, call: str) -> None:
        if self.fails == call:
            self.fails = ""
            raise CriError(f"{call}: UNAVAILABLE")

    async def version(self) -> str:
        self._may("Version")
        return "memory 1"

    async def not_ready(self) -> str:
        return self.unmet.pop(0) if self.unmet else ""

    async def image(self, name: str) -> str:
        return "sha256:1" if name == "box" else ""

    async def images(self) -> list[str]:
        return ["box"]

    async def list_sandboxes(self, labels: Mapping[str, str] | None = None) -> list[api.PodSandbox]:
        return [
            one for one in self.sandbox_items.values()
            if (labels or {}).items() <= dict(one.labels).items()
        ]  # fmt: skip

    async def list_containers(self, labels: Mapping[str, str] | None = None) -> list[api.Container]:
        return [
            one for one in self.container_items.values()
            if (labels or {}).items() <= dict(one.labels).items()
        ]  # fmt: skip

    async def run_sandbox(self, config: api.PodSandboxConfig) -> str:
        self._may("RunPodSandbox")
        number = next(self.numbers)
        ident = f"s{number}"
        self.configs[ident] = config
        self.sandbox_items[ident] = api.PodSandbox(
            id=ident, metadata=config.metadata, state=api.SANDBOX_READY, created_at=number,
            labels=config.labels, annotations=config.annotations,
        )  # fmt: skip
        return ident

    async def sandbox_status(self, ident: str) -> api.PodSandboxStatus:
        network = self.configs[ident].linux.security_context.namespace_options
        return api.PodSandboxStatus(
            network=api.PodSandboxNetworkStatus(ip="10.0.0.1"),
            linux=api.LinuxPodSandboxStatus(namespaces=api.Namespace(options=network)),
        )

    async def sandbox_ips(self, ident: str) -> tuple[IPv4Address | IPv6Address, ...]:
        return (ip_address("10.0.0.1"),)

    async def stop_pod(self, ident: str) -> None:
        self._may("StopPodSandbox")
        if ident in self.sandbox_items:
            self.die(ident)

    def die(self, ident: str) -> None:
        """End a sandbox, and its containers."""
        self.sandbox_items[ident].state = api.SANDBOX_NOTREADY
        for one in self.container_items.values():
            if one.pod_sandbox_id == ident:
                one.state = api.CONTAINER_EXITED

    async def remove_sandbox(self, ident: str) -> None:
        assert self.sandbox_items[ident].state == api.SANDBOX_NOTREADY
        del self.sandbox_items[ident]

    async def create_container(
        self, sandbox: str, config: api.ContainerConfig, sandbox_config: api.PodSandboxConfig
    ) -> str:
        assert sandbox_config == self.configs[sandbox]
        ident = f"c{next(self.numbers)}"
        self.container_items[ident] = api.Container(
            id=ident, pod_sandbox_id=sandbox, metadata=config.metadata,
            state=api.CONTAINER_CREATED, labels=config.labels,
        )  # fmt: skip
        return ident

    async def start_container(self, ident: str) -> None:
        self._may("StartContainer")
        self.container_items[ident].state = api.CONTAINER_RUNNING

    async def stop_container(self, ident: str, grace_s: int) -> None:
        self.graces.append(grace_s)
        self.container_items[ident].state = api.CONTAINER_EXITED

    async def remove_container(self, ident: str) -> None:
        self.container_items.pop(ident)

    async def exit_status(self, ident: str) -> int:
        return self.statuses.get(ident, 137)


class Memory:
    """Files in memory."""

    def __init__(self) -> None:
        self.texts: dict[PurePosixPath, str] = {}
        self.directories: set[PurePosixPath] = set()

    async def make(self, directory: PurePosixPath) -> None:
        self.directories.add(directory)

    async def write(self, path: PurePosixPath, text: str) -> None:
        assert path.parent in self.directories
        self.texts[path] = text

    async def remove(self, directory: PurePosixPath) -> None:
        self.directories = {one for one in self.directories if not one.is_relative_to(directory)}
        self.texts = {k: v for k, v in self.texts.items() if not k.is_relative_to(directory)}


class World:
    """A kubelet, its runtime and files, and a clock."""

    def __init__(self) -> None:
        self.runtime = Runtime()
        self.files = Memory()
        self.now = 0.0
        self.kubelet = self.another()

    def another(self) -> Kubelet:
        """Return a kubelet that knows nothing yet."""
        return Kubelet(self.runtime, self.files, DnsConfig(("192.0.2.1",)), lambda: self.now)

    def since(self) -> list[str]:
        """Return the calls since the last time, without those that only ask."""
        calls = [one for one in self.kubelet.calls if not one.startswith(("List", "PodSandboxS"))]
        self.kubelet.calls.clear()
        return calls


@pytest.fixture
def world() -> World:
    return World()


async def test_readiness_is_awaited(world: World) -> None:
    world.runtime.unmet = ["NetworkReady: cni plugin not initialized"]
    world.runtime.fails = "Version"
    assert await world.kubelet.wait_ready() == "memory 1"
    assert world.kubelet.calls == ["Version", "Version", "Status", "Version", "Status"]
    world.runtime.unmet = ["NetworkReady: x"] * 99
    with pytest.raises(KubeletError, match=r"not ready after 0\.01 s: NetworkReady: x"):
        await world.kubelet.wait_ready(0.01)


async def test_the_life_of_a_pod(world: World) -> None:
    found = await world.kubelet.sync(POD)
    assert (found.running, found.attempt, [str(ip) for ip in found.ips]) == (True, 0, ["10.0.0.1"])
    assert world.since() == [
        "RunPodSandbox 0",
        "ImageStatus box", "CreateContainer a 0", "StartContainer a",
        "ImageStatus box", "CreateContainer b 0", "StartContainer b",
    ]  # fmt: skip
    assert world.files.texts[configs.hosts_path(POD)].endswith("10.0.0.1\tweb\n")
    # Nothing to do, also for a kubelet that has just started.
    world.kubelet = world.another()
    assert (await world.kubelet.sync(POD)).running
    await world.kubelet.collect([POD])
    assert world.since() == []
    await world.kubelet.kill(POD)
    assert world.since() == ["StopContainer a", "StopContainer b", "StopPodSandbox"]
    assert world.runtime.graces == [7, 7]
    await world.kubelet.collect([])
    # Again, before it is removed.
    assert world.since() == [
        "RemoveContainer a", "RemoveContainer b", "StopPodSandbox", "RemovePodSandbox",
    ]  # fmt: skip
    assert not world.runtime.sandbox_items
    assert not world.runtime.container_items
    assert not world.files.texts
    assert not any("web" in str(one) or "u1" in str(one) for one in world.files.directories)


async def test_a_dead_sandbox_is_stopped_and_another_attempt_made(world: World) -> None:
    first = await world.kubelet.sync(POD)
    world.runtime.die(first.sandbox)
    world.since()
    second = await world.kubelet.sync(POD)
    assert world.since()[:2] == ["StopPodSandbox", "RunPodSandbox 1"]
    assert (second.attempt, second.running) == (1, True)
    assert world.runtime.configs[second.sandbox].metadata.uid == "u1"
    await world.kubelet.collect([POD])
    assert world.since() == [
        "RemoveContainer a", "RemoveContainer b", "StopPodSandbox", "RemovePodSandbox",
    ]  # fmt: skip
    assert set(world.runtime.sandbox_items) == {second.sandbox}


async def test_a_changed_manifest(world: World) -> None:
    await world.kubelet.sync(POD)
    world.since()
    found = await world.kubelet.sync(replace(POD, host_network=True))
    calls = world.since()
    assert calls[:4] == ["StopContainer a", "StopContainer b", "StopPodSandbox", "RunPodSandbox 1"]
    assert (found.attempt, found.ips) == (1, ())


async def test_a_container_that_ends_is_started_again_later_and_later(world: World) -> None:
    first = await world.kubelet.sync(POD)
    for restarts, delay in enumerate((0.0, 10.0, 20.0)):
        ident = dict((await world.kubelet.status(POD)).containers)["a"]
        world.runtime.container_items[ident].state = api.CONTAINER_EXITED
        world.since()
        if delay:
            assert not (await world.kubelet.sync(POD)).running
            world.now += delay - 0.1
            assert not (await world.kubelet.sync(POD)).running
            assert world.since() == []
            world.now += 0.1
        found = await world.kubelet.sync(POD)
        assert found.running
        assert found.sandbox == first.sandbox
        assert f"CreateContainer a {restarts + 1}" in world.since()
    await world.kubelet.collect([POD])
    assert len(world.runtime.container_items) == 2


async def test_a_failed_call_is_made_up_for_by_the_next_sync(world: World) -> None:
    for call in ("RunPodSandbox", "StartContainer"):
        world.runtime.fails = call
        with pytest.raises(CriError, match=call):
            await world.kubelet.sync(POD)
    world.now += 60
    await world.kubelet.sync(POD)
    assert (await world.kubelet.sync(POD)).running
    world.runtime.fails = "StopPodSandbox"
    with pytest.raises(CriError):
        await world.kubelet.kill(POD)
    await world.kubelet.kill(POD)
    await world.kubelet.collect([])
    assert not world.runtime.sandbox_items


async def test_images_that_are_not_there(world: World) -> None:
    await world.kubelet.check_images([POD])
    other = replace(POD, containers=(Container("a", "nginx:1"), Container("b", "box")))
    with pytest.raises(KubeletError) as caught:
        await world.kubelet.check_images([POD, other])
    assert str(caught.value) == (
        "image nginx:1 (of default/web a) is not on the node\nthe node has box, and pulls none"
    )


async def test_pods_of_others_stay(world: World) -> None:
    await world.runtime.run_sandbox(api.PodSandboxConfig(metadata=api.PodSandboxMetadata(name="x")))
    world.runtime.die("s1")
    await world.kubelet.collect([])
    assert set(world.runtime.sandbox_items) == {"s1"}
