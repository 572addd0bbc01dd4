# SPDX-License-Identifier: Apache-2.0
"""One containerd in the guest, and pods on it."""

import contextlib
import json
import os
import signal
import subprocess
import time
import tomllib
import urllib.error
import urllib.request
from pathlib import Path

import grpc

from metropolis.test.bench.common.errors import BenchError
from metropolis.test.bench.runtimes import metrics
from metropolis.test.bench.runtimes.config import BRIDGE, CNI_CONF_DIR, Place, config, to_toml
from third_party.cri import api_pb2 as api
from third_party.cri import api_pb2_grpc as api_grpc

_NODE_CONFIG = Path("/etc/containerd/config.toml")
_PAUSE = Path("/usr/share/metropolis/images/pause.tar")
_LOGS = Path("/run/log")
_START_S = 120.0
_CALL_S = 180.0
_POLL_S = 0.1
_TAIL = 2000
# Each client has its own connection.
_OPTIONS = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0)]


class Containerd:
    """One containerd; end it by stop()."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self._number = 0
        self._log = _LOGS / f"containerd-{place.runtime}"
        for folder in (place.root, place.state, CNI_CONF_DIR):
            Path(folder).mkdir(parents=True, exist_ok=True)
        Path(CNI_CONF_DIR, "10-containerd-net.conflist").write_text(json.dumps(BRIDGE))
        file = Path(place.state, "config.toml")
        file.write_text(to_toml(config(tomllib.loads(_NODE_CONFIG.read_text()), place)))
        self._environment = dict(os.environ) | {"PATH": place.path}
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [place.program, "--config", str(file)],
                env=self._environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        channel = grpc.insecure_channel(f"unix:{place.socket}", options=_OPTIONS)
        self._runtime = api_grpc.RuntimeServiceStub(channel)

    def wait(self) -> None:
        """Wait until pods can be started; load the image that they need."""
        end = time.monotonic() + _START_S
        while missing := self._missing():
            if self._process.poll() is not None:
                raise self._failure("ended by itself")
            if time.monotonic() > end:
                raise self._failure(f"waiting for {missing}")
            time.sleep(_POLL_S)
        ctr = ["ctr", "--address", self.place.socket, "--namespace", "k8s.io"]
        loaded = subprocess.run(
            [*ctr, "images", "import", "--local", str(_PAUSE)],
            env=self._environment,
            check=False,
            capture_output=True,
            text=True,
        )
        if loaded.returncode:
            raise self._failure(f"load {_PAUSE}: {loaded.stderr.strip()}")

    def _missing(self) -> str:
        try:
            status = self._runtime.Status(api.StatusRequest(), timeout=10).status
        except grpc.RpcError as error:
            return f"its socket: {_text(error)}"
        for condition in status.conditions:
            if condition.type in ("RuntimeReady", "NetworkReady") and not condition.status:
                return f"{condition.type}: {condition.message or condition.reason}"
        return ""

    def version(self) -> str:
        """Return the version that it reports."""
        return str(self._runtime.Version(api.VersionRequest(), timeout=10).runtime_version)

    def network(self, operation: str) -> metrics.Network:
        """Return the operations of its network plugin so far."""
        url = f"http://{self.place.metrics}/v1/metrics"
        try:
            with urllib.request.urlopen(url, timeout=60) as answer:
                return metrics.network(answer.read().decode(), operation)
        except (urllib.error.URLError, metrics.MetricsError) as error:
            raise self._failure(f"metrics: {error}") from error

    def sandbox_config(self, *, host_network: bool) -> api.PodSandboxConfig:
        """Return the configuration of a new pod."""
        self._number += 1
        name = f"pod-{self._number}"
        namespaces = api.NamespaceOption(network=api.NODE if host_network else api.POD)
        return api.PodSandboxConfig(
            metadata=api.PodSandboxMetadata(name=name, uid=f"uid-{name}", namespace="bench"),
            hostname="" if host_network else name,
            linux=api.LinuxPodSandboxConfig(
                security_context=api.LinuxSandboxSecurityContext(namespace_options=namespaces)
            ),
        )

    def run(self, sandbox: api.PodSandboxConfig) -> str:
        """RunPodSandbox: the pod's id."""
        request = api.RunPodSandboxRequest(config=sandbox)
        try:
            return str(self._runtime.RunPodSandbox(request, timeout=_CALL_S).pod_sandbox_id)
        except grpc.RpcError as error:
            raise self._failure(f"RunPodSandbox: {_text(error)}") from error

    def addresses(self, ident: str) -> list[str]:
        """Return a pod's addresses, as the runtime reports them."""
        request = api.PodSandboxStatusRequest(pod_sandbox_id=ident)
        try:
            network = self._runtime.PodSandboxStatus(request, timeout=_CALL_S).status.network
        except grpc.RpcError as error:
            raise self._failure(f"PodSandboxStatus: {_text(error)}") from error
        return [ip for ip in (network.ip, *(more.ip for more in network.additional_ips)) if ip]

    def remove(self, ident: str) -> None:
        """StopPodSandbox, RemovePodSandbox."""
        stop = api.StopPodSandboxRequest(pod_sandbox_id=ident)
        remove = api.RemovePodSandboxRequest(pod_sandbox_id=ident)
        try:
            self._runtime.StopPodSandbox(stop, timeout=_CALL_S)
            self._runtime.RemovePodSandbox(remove, timeout=_CALL_S)
        except grpc.RpcError as error:
            raise self._failure(f"remove a pod: {_text(error)}") from error

    def stop(self) -> None:
        """End it; its pods stay."""
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGTERM)
        self._process.wait()

    def _failure(self, what: str) -> BenchError:
        tail = self._log.read_text(errors="replace")[-_TAIL:]
        return BenchError(f"containerd ({self.place.runtime}): {what}\n{tail}")


def _text(error: grpc.RpcError) -> str:
    return f"{error.code().name}: {error.details()}"
