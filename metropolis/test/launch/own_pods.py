# SPDX-License-Identifier: Apache-2.0
"""Pods of a user's own files, on a node that is launched.

They are checked before the boot, started and kept as a kubelet does, and asked
from outside at their host ports.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

from metropolis.test.kubelet import manifest
from metropolis.test.kubelet.kubelet import Kubelet, KubeletError, Status
from metropolis.test.kubelet.manifest import WILDCARDS, ContainerPort, ManifestError, Pod
from metropolis.test.launch import cri, outside, rows
from metropolis.test.launch.checks import Check
from metropolis.test.launch.configuration import Configuration, ConfigurationError
from metropolis.test.launch.cri import CriError
from metropolis.test.launch.node import Node
from metropolis.test.launch.report import PodRow, Report, grid, to_dict
from osbase.test.agent.client import AgentError

_AT_ONCE = 4
# Seconds until a server that has just started is given up.
_TRIES_S = 30.0
# Seconds between looks at the pods.
_LOOK_S = 2.0


def read(paths: Sequence[Path], most: int) -> tuple[Pod, ...]:
    """Return the pods of files. most: how many there may be.

    Raises ConfigurationError with all that is wrong with them.
    """
    pods: list[Pod] = []
    faults = []
    for path in paths:
        try:
            pods += manifest.parse(path.read_text(), str(path))
        except (OSError, UnicodeDecodeError, ManifestError) as error:
            what = error.strerror if isinstance(error, OSError) else error
            faults.append(str(error) if isinstance(error, ManifestError) else f"{path}: {what}")
    if not faults:
        faults = _together(pods, most)
    if faults:
        raise ConfigurationError("\n".join(faults))
    return tuple(pods)


def _together(pods: Sequence[Pod], most: int) -> list[str]:
    faults = []
    try:
        manifest.check_together(pods)
    except ManifestError as error:
        faults += str(error).splitlines()
    if len(pods) > most:
        faults.append(f"there are {len(pods)} pods; a node of the launcher has room for {most}")
    first: dict[str, str] = {}
    for pod in pods:
        other = first.setdefault(pod.name, pod.full_name)
        if other != pod.full_name:
            # The commands for a launch know pods by name.
            faults.append(f"pod {pod.full_name} has the name of {other}; want another name")
    for pod in pods:
        for one in pod.containers:
            if normal(one.image) not in cri.PRELOADED:
                faults.append(
                    f"pod {pod.full_name}: container {one.name}: image {one.image} is not on the "
                    f"node, which pulls none; it has {', '.join(cri.PRELOADED)}"
                )
    return faults


def normal(image: str) -> str:
    """Return an image's name with a tag."""
    return image if ":" in image.rpartition("/")[2] or "@" in image else f"{image}:latest"


@dataclass(frozen=True)
class OwnPod:
    """A pod that was started, its row, and whether its host ports answer."""

    status: Status
    row: PodRow
    ports: tuple[tuple[ContainerPort, tuple[Check, ...]], ...] = ()

    def to_dict(self) -> dict[str, object]:
        """Return what JSON has of it, beside the row."""
        pod = self.status.pod
        return {
            "namespace": pod.namespace,
            "uid": pod.uid,
            "attempt": self.status.attempt,
            "host_network": pod.host_network,
            "containers": [
                {
                    "name": one.name,
                    "id": dict(self.status.containers).get(one.name, ""),
                    "exit_status": dict(self.status.ended).get(one.name),
                }
                for one in pod.containers
            ],
            "host_ports": [
                {
                    "host_port": port.host_port, "host_ip": port.host_ip,
                    "container_port": port.container_port, "protocol": port.protocol,
                    "answers": all(check.ok for check in found) if found else None,
                }
                for port, found in self.ports
            ],
        }  # fmt: skip


def to_json(report: Report, pods: Sequence[OwnPod]) -> str:
    """Return the report as one line of JSON."""
    plain = to_dict(report)
    for own, shown in zip(pods, plain["pods"], strict=True):
        shown.update(own.to_dict())
    return json.dumps(plain)


def to_table(report: Report, pods: Sequence[OwnPod]) -> str:
    """Return the report for people."""
    table = [
        ["POD", "CONTAINERS", "IPV4", "IPV6", "HOST LINK", "ATTACH MS", "(SANDBOX MS)",
         "HOST PORTS (asked from outside)"]
    ]  # fmt: skip
    for own in pods:
        row, pod = own.row, own.status.pod
        cells = [
            row.name, f"{len(own.status.containers)} of {len(pod.containers)}", row.ipv4, row.ipv6,
            "the node's" if pod.host_network else row.host_link,
            "" if row.attach_ms is None else f"{row.attach_ms:.1f}", f"({row.sandbox_ms:.0f})",
            ", ".join(_cell(port, found) for port, found in own.ports),
        ]  # fmt: skip
        table.append([cell or "-" for cell in cells])
    lines = [*grid(table), ""]
    for check in report.checks:
        if not check.ok or check.target == "outside":
            lines.append(f"{'ok    ' if check.ok else 'FAILED'}  {check.name}: {check.detail}")
    good = sum(check.ok for check in report.checks)
    lines += [
        "",
        f"accelerator {report.accel}, boot {report.boot_s:.1f} s, "
        f"{good} of {len(report.checks)} checks ok",
    ]
    return "\n".join(lines)


def _cell(port: ContainerPort, found: Sequence[Check]) -> str:
    host = f"{port.host_ip} " if port.host_ip else ""
    verdicts = [f"v{check.family} {'ok' if check.ok else 'FAILED'}" for check in found]
    return f"{host}{port.host_port}→{port.container_port}/{port.protocol} " + (
        " ".join(verdicts) or "(not asked)"
    )


async def examine(
    node: Node, kubelet: Kubelet, pods: Sequence[Pod], own: Configuration
) -> tuple[Report, list[OwnPod]]:
    """Start the pods, ask them, return the report. The pods stay.

    Raises AgentError, CriError and KubeletError.
    """
    await kubelet.wait_ready()
    await kubelet.check_images(pods)
    turns = asyncio.Semaphore(_AT_ONCE)

    async def start(pod: Pod) -> Status:
        async with turns:
            return await kubelet.sync(pod)

    started = await asyncio.gather(*map(start, pods))
    found = await rows.pod_rows(
        node,
        [cri.Pod(one.pod.name, one.sandbox, "", one.ips, one.sandbox_ms or 0.0) for one in started],
    )
    made = []
    addresses = [ip for ip in (node.ipv4, node.ipv6) if ip is not None and ip.version in own.uplink]
    for status, row in zip(started, found, strict=True):
        mine = set(addresses) if status.pod.host_network else None
        ports = [port for port in status.pod.ports if port.host_port]
        asked = await asyncio.gather(
            *(_ask(status.pod, port, targets(port, addresses, own.pods, mine)) for port in ports)
        )
        if mine:
            row = _of_node(row, addresses)  # noqa: PLW2901 - the row that is shown
        made.append(OwnPod(status, row, tuple(zip(ports, asked, strict=True))))
    attached = [one.row for one in made if not one.status.pod.host_network]
    return (
        Report(
            accel=node.accel.value if node.accel else "",
            boot_s=node.boot_s,
            pods=tuple(one.row for one in made),
            checks=(
                *(runs(one.status) for one in made),
                *rows.consistency(attached, own.pods),
                *(check for one in made for _, asked in one.ports for check in asked),
            ),
        ),
        made,
    )


def _of_node(row: PodRow, addresses: Sequence[IPv4Address | IPv6Address]) -> PodRow:
    texts = {ip.version: str(ip) for ip in addresses}
    return PodRow(
        row.name, row.id, "", texts.get(4, ""), texts.get(6, ""), "", None, row.sandbox_ms
    )  # fmt: skip


def runs(status: Status) -> Check:
    """Return whether the pod's containers run, or have done their work."""
    pod = status.pod
    ids, ended = dict(status.containers), dict(status.ended)
    bad = [
        f"{one.name} has ended with {ended[one.name]}" if one.name in ended
        else f"{one.name} does not run"
        for one in pod.containers
        if one.name not in ids
        and not (ended.get(one.name) == 0 and pod.restart_policy != "Always")
    ]  # fmt: skip
    detail = ", ".join(bad) or f"{len(ids)} of {len(pod.containers)} containers run"
    return Check(f"{pod.name} runs", not bad, detail, pod.name, "runs")


def targets(
    port: ContainerPort,
    node: Sequence[IPv4Address | IPv6Address],
    families: frozenset[int],
    host_network: set[IPv4Address | IPv6Address] | None = None,
) -> list[IPv4Address | IPv6Address]:
    """Return where the outside reaches a host port: TCP, at the node's
    addresses.

    families: those of pods. host_network: the pod's, None: it has its own.
    """
    if port.protocol != "TCP":
        return []
    reached = [ip for ip in node if host_network is not None or ip.version in families]
    if not port.host_ip:
        return reached
    host = ip_address(port.host_ip)
    wildcard = str(host) in WILDCARDS
    return [ip for ip in reached if ip == host or (wildcard and ip.version == host.version)]


def urls(node: Node, pods: Sequence[OwnPod]) -> list[str]:
    """Return URLs of the host ports that answer from outside, IPv4 first."""
    return [
        f"http://{outside.place(address, port.host_port)}/"
        for own in pods
        for port, found in own.ports
        for check in found
        for address in (node.ipv4, node.ipv6)
        if check.ok and address is not None and address.version == check.family
    ]


async def _ask(
    pod: Pod, port: ContainerPort, addresses: Sequence[IPv4Address | IPv6Address]
) -> tuple[Check, ...]:
    """Connect to a host port from outside."""

    async def one(address: IPv4Address | IPv6Address) -> Check:
        name = f"outside→{pod.name} {port.host_port}/{port.protocol} IPv{address.version}"
        loop = asyncio.get_running_loop()
        end = loop.time() + _TRIES_S
        while True:
            try:
                _, writer = await outside.connect(address, port.host_port)
            except outside.OutsideError as error:
                if loop.time() > end:
                    return Check(name, False, str(error), pod.name, "outside", address.version)
                await asyncio.sleep(0.5)
            else:
                writer.close()
                detail = f"http://{outside.place(address, port.host_port)} accepts connections"
                return Check(name, True, detail, pod.name, "outside", address.version)

    return tuple(await asyncio.gather(*map(one, addresses)))


async def keep(kubelet: Kubelet, pods: Sequence[Pod], say: Callable[[str], None]) -> None:
    """Keep the pods as their manifests want them, without end; say changes."""
    said: dict[str, str] = {}
    while True:
        await asyncio.sleep(_LOOK_S)
        for pod in pods:
            try:
                status = await kubelet.sync(pod)
                check = runs(status)
                text = f"attempt {status.attempt}: {check.detail}"
                if check.ok and status.attempt == 0:
                    text = ""
            except (AgentError, CriError, KubeletError) as error:
                text = str(error)
            if text != said.get(pod.name, ""):
                said[pod.name] = text
                say(f"{pod.full_name}: {text or 'runs'}")
        try:
            await kubelet.collect(pods)
        except (AgentError, CriError) as error:
            say(f"collect: {error}")
