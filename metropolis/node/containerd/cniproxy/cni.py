# SPDX-License-Identifier: Apache-2.0
"""The client: go-cni's CNI, over gRPC to the workload network service.

Every call has a deadline. A call that fails leaves nothing behind, except when
its deadline has passed: then call remove(). remove() works whatever is loaded,
and needs only the id, since the namespace may be gone by then.

The id is the sandbox's, not the pod's: if a pod has two sandboxes, removing the
old one must not cut off the new one.
"""

import copy
import json
import threading
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from types import TracebackType
from typing import Any, Self

import grpc

from metropolis.node import allocs
from metropolis.node.containerd.cniproxy import errors, result
from metropolis.node.containerd.cniproxy.errors import (
    CheckError,
    CNINotInitializedError,
    InvalidResultError,
)
from metropolis.node.containerd.cniproxy.namespace import Namespace, NamespaceOpt
from metropolis.node.containerd.cniproxy.options import (
    LO_NETWORK_NAME,
    NETWORK_NAME,
    Opt,
    Settings,
)
from metropolis.node.containerd.cniproxy.result import Result
from metropolis.node.core.network.workloads.spec import workload_pb2 as pb
from metropolis.node.core.network.workloads.spec import workload_pb2_grpc

_SCOPE_LINK = 253  # RT_SCOPE_LINK, linux/rtnetlink.h
_LO = result.Config(
    ip_configs=(
        result.IPConfig(IPv4Address("127.0.0.1")),
        result.IPConfig(IPv6Address("::1")),
    ),
    mac="00:00:00:00:00:00",
)
_STATUS_S = 5.0  # for the status that explains why a call was refused
# A restarted service is found again within seconds, not minutes. This is not
# min_reconnect_backoff_ms: that is the least time a connection may take.
_CHANNEL_OPTIONS = [
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 500),
    ("grpc.enable_http_proxy", 0),
]


@dataclass(frozen=True)
class NetworkConf:
    """A plugin's configuration; `source` is the same as JSON."""

    type: str
    source: str


@dataclass(frozen=True)
class NetworkConfList:
    """A network's configuration; `source` is the same as JSON."""

    name: str
    cni_version: str
    plugins: tuple[NetworkConf, ...]
    source: str


@dataclass(frozen=True)
class ConfNetwork:
    """A network and the name of its interface."""

    config: NetworkConfList
    if_name: str


@dataclass(frozen=True)
class ConfigResult:
    """What get_config() returns."""

    plugin_dirs: tuple[str, ...]
    plugin_conf_dir: str
    plugin_max_conf_num: int
    prefix: str
    networks: tuple[ConfNetwork, ...]


class _Line:
    """A channel; it is closed once it is replaced and no call uses it."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.channel = grpc.insecure_channel(f"unix:{path}", options=_CHANNEL_OPTIONS)
        self.calls = 0


class CNI:
    """The client, made by new(); thread-safe. close() it, or use `with`."""

    def __init__(self, settings: Settings) -> None:
        """Make a client; it connects with the first call."""
        self._lock = threading.Lock()  # of what follows
        self._settings = settings
        self._line: _Line | None = None

    def __enter__(self) -> Self:
        """Return the client."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the client."""
        self.close()

    def close(self) -> None:
        """Close the channel after the calls under way; the next reconnects."""
        with self._lock:
            self._hang_up()

    def load(self, *opts: Opt) -> None:
        """Replace the networks by those the options add; keep them on error."""
        with self._lock:
            settings = copy.deepcopy(self._settings)
            settings.networks.clear()
            try:
                for opt in opts:
                    opt(settings)
            except errors.CNIError as error:
                raise errors.LoadError(f"load: {error}") from error
            self._settings = settings

    def status(self, timeout_s: float | None = None) -> None:
        """Raise CNINotInitializedError unless setup() would have an address."""
        self._ready()
        request = pb.StatusRequest()
        self._call("status", lambda stub: stub.Status, request, timeout_s, is_status=True)

    def setup(
        self, id: str, path: str, *opts: NamespaceOpt, timeout_s: float | None = None
    ) -> Result:
        """Give the sandbox `id` its network, in the namespace at `path`.

        Repeating it returns the same.
        """
        settings = self._ready()
        namespace = _namespace(opts)
        request = pb.AttachRequest(
            workload_id=_text("id", id),
            netns=_netns(path, settings.default_interface),
            requested_ip=[ip.packed for ip in namespace.ips or namespace.asked_ips],
            requested_mac=namespace.mac or namespace.asked_mac,
            port_mapping=namespace.port_mappings,
            mtu=namespace.mtu,
            routes=namespace.routes,
            bandwidth=namespace.bandwidth,
        )
        operation = f"setup {id!r:.80} at {path!r:.80}"
        made = self._call(operation, lambda stub: stub.Attach, request, timeout_s)
        try:
            return _result(settings, path, namespace, made)
        except (ValueError, IndexError) as error:
            raise InvalidResultError(f"{operation}: {error}") from error

    def setup_serially(
        self, id: str, path: str, *opts: NamespaceOpt, timeout_s: float | None = None
    ) -> Result:
        """Do as setup(): there is one network."""
        return self.setup(id, path, *opts, timeout_s=timeout_s)

    def remove(
        self, id: str, path: str, *opts: NamespaceOpt, timeout_s: float | None = None
    ) -> None:
        """Remove the sandbox's network; an absent one is no error.

        `path` may be empty or gone; if it is another namespace than the
        sandbox's, nothing changes. Options are ignored. Raises
        CNINotInitializedError when the service is away: repeat it later. The
        Go package repeats it itself, since its process lives as long as pods
        do.
        """
        request = pb.DetachRequest(workload_id=_text("id", id), netns=_netns(path))
        self._call(f"remove {id!r:.80}", lambda stub: stub.Detach, request, timeout_s)

    def check(
        self, id: str, path: str, *opts: NamespaceOpt, timeout_s: float | None = None
    ) -> None:
        """Compare the sandbox's interface with the kernel.

        Raises NotFoundError when it has none, or `path` is no namespace, and
        CheckError when anything differs: on the host, in the namespace at
        `path` (empty: as far as the host can see), or in the node's network
        as a whole.
        """
        settings = self._ready()
        _namespace(opts)
        request = pb.CheckRequest(
            workload_id=_text("id", id),
            netns=_netns(path, settings.default_interface),
        )
        operation = f"check {id!r:.80}"
        checked = self._call(operation, lambda stub: stub.Check, request, timeout_s)
        wrong = [
            f"{finding.what}: expected {finding.expected}, found {finding.found}"
            for one in checked.attachments
            for finding in one.findings
        ]
        if wrong:
            raise CheckError(f"{operation}: {'; '.join(wrong)}")

    def get_config(self) -> ConfigResult:
        """Return the settings and the networks."""
        settings = self._current()
        return ConfigResult(
            plugin_dirs=tuple(settings.plugin_dirs),
            plugin_conf_dir=settings.plugin_conf_dir,
            plugin_max_conf_num=settings.plugin_max_conf_num,
            prefix=settings.prefix,
            networks=tuple(_network(settings, name) for name in settings.networks),
        )

    def _current(self) -> Settings:
        with self._lock:
            return self._settings

    def _ready(self) -> Settings:
        settings = self._current()
        if len(settings.networks) < settings.min_network_count:
            raise CNINotInitializedError(
                f"{len(settings.networks)} of {settings.min_network_count} networks are loaded"
            )
        return settings

    def _call[Q, A](
        self,
        operation: str,
        method: Callable[[workload_pb2_grpc.WorkloadNetworkingStub], Callable[..., A]],
        request: Q,
        timeout_s: float | None,
        *,
        is_status: bool = False,
    ) -> A:
        with self._lock:
            settings = self._settings
            if self._line is not None and self._line.path != settings.socket_path:
                self._hang_up()
            line = self._line = self._line or _Line(settings.socket_path)
            line.calls += 1
        stub = workload_pb2_grpc.WorkloadNetworkingStub(line.channel)
        timeout = settings.timeout_s if timeout_s is None else timeout_s
        try:
            return method(stub)(request, timeout=timeout)
        except grpc.RpcError as error:
            ready = not is_status and errors.is_unavailable(error) and _is_ready(stub, timeout)
            raise errors.from_rpc(operation, error, ready=ready) from error
        finally:
            with self._lock:
                line.calls -= 1
                if line is not self._line and not line.calls:
                    line.channel.close()

    def _hang_up(self) -> None:
        """Drop the channel; call with the lock held. Calls of other threads may
        be under way: the last of them closes the channel.
        """
        line, self._line = self._line, None
        if line is not None and not line.calls:
            line.channel.close()


def new(*opts: Opt) -> CNI:
    """Make a client; raise InvalidConfigError for an option that is wrong."""
    settings = Settings()
    for opt in opts:
        opt(settings)
    return CNI(settings)


def _is_ready(stub: workload_pb2_grpc.WorkloadNetworkingStub, timeout_s: float) -> bool:
    """Return whether the service answers and has a network to give."""
    try:
        stub.Status(pb.StatusRequest(), timeout=min(timeout_s, _STATUS_S))
    except grpc.RpcError:
        return False
    return True


def _text(what: str, value: str) -> str:
    """Refuse what protobuf would refuse: strings that are not Unicode."""
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise errors.InvalidConfigError(f"{what} {value!r:.80}: {error}") from error
    return value


def _netns(path: str, if_name: str = "") -> pb.NetNSAttachment:
    return pb.NetNSAttachment(netns_path=_text("path", path), if_name=if_name)


def _namespace(opts: tuple[NamespaceOpt, ...]) -> Namespace:
    namespace = Namespace()
    for opt in opts:
        opt(namespace)
    return namespace


def _result(settings: Settings, path: str, namespace: Namespace, made: pb.AttachResponse) -> Result:
    """Make the result; raise ValueError if an address is none."""
    ips = [ip_address(packed) for packed in made.ip]
    gateways = {gateway.version: gateway for gateway in map(ip_address, made.gateway)}
    interfaces: dict[str, result.Config] = {}
    dns: list[result.DNS] = []
    for network in settings.networks:
        if network == LO_NETWORK_NAME:
            interfaces["lo"] = result.Config(_LO.ip_configs, _LO.mac, path)
            dns.append(result.DNS())
            continue
        if made.host_interface:
            mac = allocs.FIRST_HOP_MAC.hex(":")
            interfaces[made.host_interface] = result.Config(mac=mac)
        interfaces[settings.default_interface] = result.Config(
            tuple(result.IPConfig(ip, gateways.get(ip.version)) for ip in ips),
            made.mac.hex(":"),
            path,
        )
        asked = namespace.dns
        dns.append(
            result.DNS(tuple(asked.servers), "", tuple(asked.searches), tuple(asked.options))
            if asked
            else result.DNS()
        )
    routes = []
    for route in made.routes:
        dst = ip_network((route.destination, route.prefix_length))
        gateway = ip_address(route.gateway) if route.gateway else None
        routes.append(result.Route(dst, gateway, None if gateway else _SCOPE_LINK))
    return Result(interfaces, tuple(dns), tuple(routes))


def _network(settings: Settings, name: str) -> ConfNetwork:
    """Describe the service's network as a CNI configuration."""
    kind, if_name, version = {
        NETWORK_NAME: ("cniproxy", settings.default_interface, "1.1.0"),
        LO_NETWORK_NAME: ("loopback", "lo", "0.3.1"),
    }[name]
    plugin: dict[str, Any] = {"type": kind}
    source = json.dumps({"cniVersion": version, "name": name, "plugins": [plugin]})
    conf = NetworkConf(kind, json.dumps(plugin))
    return ConfNetwork(NetworkConfList(name, version, (conf,), source), if_name)
