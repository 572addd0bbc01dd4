# SPDX-License-Identifier: Apache-2.0
"""Subjects with a process per operation: CNI plugins, our shim, netavark.

A chain of CNI plugins is executed like in libcni: stdin has the configuration
with the result of the plugin before it; ADD in order, DEL in reverse order with
the last result. The same code executes all of them, so its cost cancels.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

from metropolis.test.bench.attach import timing
from metropolis.test.bench.attach.model import Batch, Op, Pod, host_ports
from metropolis.test.bench.attach.processes import Executed, Program, execute, processor_ns
from metropolis.test.bench.attach.subjects import Subject, new_directory, start_node
from metropolis.test.bench.common.errors import BenchError
from metropolis.test.world.namespaces import Netns

type Json = dict[str, Any]

_ANCHOR = 0xFFF0  # a number that no pod has


class Executes(Subject):
    """At least one process per operation. wrapper: prefix of commands.
    executed: the number of executed programs.
    """

    def __init__(
        self, name: str, versions: tuple[int, ...], environment: Mapping[str, str]
    ) -> None:
        super().__init__(name, versions)
        self.environment = dict(environment)
        self.wrapper: tuple[str, ...] = ()
        self.executed = 0
        self._ran: dict[int, list[Executed]] = {}

    def run(self, op: Op, pods: Sequence[Pod], at_once: int) -> Batch:
        """See Subject."""
        calls = [partial(self._one, op, pod) for pod in pods]
        self._ran = {pod.number: [] for pod in pods}
        before = processor_ns(self.pid) if self.pid else 0
        if at_once == 1:
            each, wall = self.host.inside(partial(timing.timed, calls, 1))
        else:
            each, wall = timing.timed(calls, at_once, self.host.enter)
        cpu = processor_ns(self.pid) - before if self.pid else 0
        cpu += sum(one.cpu_ns for ran in self._ran.values() for one in ran)
        self.executed += sum(len(ran) for ran in self._ran.values())
        return Batch(tuple(each), wall, cpu)

    def _one(self, op: Op, pod: Pod) -> None:
        raise NotImplementedError

    def _execute(
        self, pod: Pod, command: Sequence[str], stdin: Json, more: Mapping[str, str]
    ) -> Executed:
        environment = self.environment | dict(more)
        done = execute([*self.wrapper, *command], environment, json.dumps(stdin).encode())
        self._ran[pod.number].append(done)
        done.check()
        return done


@dataclass(frozen=True)
class Settings:
    """Written in a namespace before use: path below /proc/sys/net, value."""

    host: tuple[tuple[str, str], ...] = ()
    pod: tuple[tuple[str, str], ...] = ()


class Cni(Executes):
    """A chain of plugins; each a configuration. port: one is mapped."""

    def __init__(
        self,
        name: str,
        versions: tuple[int, ...],
        environment: Mapping[str, str],
        plugin_dir: Path,
        chain: Sequence[Json],
        *,
        port: bool = False,
        settings: Settings | None = None,
    ) -> None:
        super().__init__(name, versions, environment)
        self._dir = plugin_dir
        self._chain = list(chain)
        self.ports, self.rated = int(port), not port
        self._settings = settings or Settings()
        self._results: dict[int, Json] = {}
        self.host.inside(partial(_write_settings, self._settings.host))

    def prepare_pod(self, netns: Netns) -> None:
        """See Subject."""
        if self._settings.pod:
            netns.inside(partial(_write_settings, self._settings.pod))

    def _one(self, op: Op, pod: Pod) -> None:
        environment = {
            "CNI_COMMAND": op.upper(),
            "CNI_CONTAINERID": pod.workload,
            "CNI_NETNS": pod.path,
            "CNI_IFNAME": "eth0",
            "CNI_PATH": str(self._dir),
        }
        adding = op is Op.ADD
        result = None if adding else self._results.pop(pod.number)
        for plugin in self._chain if adding else reversed(self._chain):
            conf = dict(plugin)
            if result is not None:
                conf["prevResult"] = result
            if self.ports and "capabilities" in plugin:
                conf["runtimeConfig"] = {
                    "portMappings": [
                        {"hostPort": port, "containerPort": own, "protocol": "tcp"}
                        for port, own in host_ports(pod, self.ports)
                    ]
                }
            done = self._execute(pod, [str(self._dir / plugin["type"])], conf, environment)
            if adding:
                result = json.loads(done.stdout)
        if adding:
            if result is None or len(result.get("ips", ())) != len(self.versions):
                raise BenchError(f"{self.name}: not the addresses expected in {result}")
            self._results[pod.number] = result


class Shim(Cni):
    """Our service, called like a stock runtime does."""

    def __init__(self, name: str, versions: tuple[int, ...], shim: Path, run_dir: Path) -> None:
        directory = new_directory(run_dir, name)
        conf = {"cniVersion": "1.0.0", "name": "metropolis", "type": shim.name}
        environment = {"PATH": "/usr/bin", "CNIPROXY_SOCKET": f"{directory}/cni.sock"}
        super().__init__(name, versions, environment, shim.parent, [conf])
        self.node: Program = start_node(self.host, directory, versions)
        self.pid = self.node.pid

    def ready(self) -> None:
        """See Subject."""
        self.node.ready()

    def close(self) -> None:
        """See Subject."""
        self.node.close()
        super().close()


class Netavark(Executes):
    """A bridge with NAT, executed like Podman does. The caller chooses the
    addresses: Podman has its own database for them, which is not measured.
    """

    def __init__(
        self,
        name: str,
        environment: Mapping[str, str],
        program: Path,
        state: Path,
        ports: int = 0,
    ) -> None:
        super().__init__(name, (4,), environment)
        self.ports, self.rated = ports, not ports
        self._program = program
        self._state = state
        self._anchor = Netns()

    def ready(self) -> None:
        """See Subject. netavark removes the bridge with the last container, and
        concurrent creation fails; so there is one container more.
        """
        self.run(Op.ADD, [Pod(_ANCHOR, "anchor", self._anchor.path)], 1)

    def close(self) -> None:
        """See Subject."""
        self._anchor.close()
        super().close()

    def _one(self, op: Op, pod: Pod) -> None:
        base = IPv4Address("10.91.0.0")
        subnet = {"subnet": f"{base}/16", "gateway": str(base + 1)}
        network = {
            "name": "podman",
            "id": "2f259bab93aaaaa2542ba43ef33eb990d0999ee1b9924b557b7be53c0b7a1bb9",
            "driver": "bridge",
            "network_interface": "podman0",
            "subnets": [subnet],
            "ipv6_enabled": False,
            "internal": False,
            "dns_enabled": False,
            "ipam_options": {"driver": "host-local"},
        }
        options = {"interface_name": "eth0", "static_ips": [str(base + pod.number)]}
        request = {
            "container_id": pod.workload,
            "container_name": pod.workload,
            "networks": {"podman": options},
            "port_mappings": [
                {
                    "host_ip": "",
                    "host_port": port,
                    "container_port": own,
                    "range": 1,
                    "protocol": "tcp",
                }
                for port, own in host_ports(pod, self.ports)
            ],
            "network_info": {"podman": network},
        }
        what = "setup" if op is Op.ADD else "teardown"
        command = [str(self._program), "--config", str(self._state), what, pod.path]
        done = self._execute(pod, command, request, {})
        if op is Op.ADD and not json.loads(done.stdout)["podman"]["interfaces"]:
            raise BenchError(f"{self.name}: no interface in {done.stdout!r}")


def _write_settings(settings: Sequence[tuple[str, str]]) -> None:
    for path, value in settings:
        (Path("/proc/sys/net") / path).write_text(value)
