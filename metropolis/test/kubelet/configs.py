# SPDX-License-Identifier: Apache-2.0
"""What a kubelet hands to the runtime for a pod. Pure.

Labels and annotations are those by which a kubelet finds its pods again after a
restart (`pkg/kubelet/kuberuntime/labels.go`). Annotations of the manifest are
passed through as they are, for the network that reads them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from ipaddress import IPv4Address, IPv6Address
from pathlib import PurePosixPath

from metropolis.test.kubelet.manifest import (
    MOST_NAMESERVERS,
    MOST_SEARCHES,
    Container,
    DnsConfig,
    Pod,
)
from third_party.cri import api_pb2 as api

NAME, NAMESPACE, UID = (f"io.kubernetes.pod.{part}" for part in ("name", "namespace", "uid"))
CONTAINER = "io.kubernetes.container.name"
# The hash of a static pod; a sandbox with another one is of an older manifest.
HASH = "kubernetes.io/config.hash"
_SOURCE = "kubernetes.io/config.source"
_CONTAINER_HASH = "io.kubernetes.container.hash"
_RESTARTS = "io.kubernetes.container.restartCount"
_PORTS = "io.kubernetes.container.ports"
_GRACE = "io.kubernetes.pod.terminationGracePeriod"
LOGS = PurePosixPath("/var/log/pods")
PODS = PurePosixPath("/var/lib/kubelet/pods")
CLUSTER_DOMAIN = "cluster.local"
_PROTOCOLS = {"TCP": api.TCP, "UDP": api.UDP, "SCTP": api.SCTP}


def labels(pod: Pod) -> dict[str, str]:
    """Return those by which the runtime finds the pod's sandboxes."""
    return {NAME: pod.name, NAMESPACE: pod.namespace, UID: pod.uid}


def log_directory(pod: Pod) -> PurePosixPath:
    """Return the directory of the pod's logs on the node."""
    return LOGS / f"{pod.namespace}_{pod.name}_{pod.uid}"


def pod_directory(pod: Pod) -> PurePosixPath:
    """Return the directory of the pod's own files on the node."""
    return PODS / pod.uid


def parse_resolv_conf(text: str) -> DnsConfig:
    """Return a node's resolv.conf; the last `search` and `options` count."""
    servers: list[str] = []
    searches: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    for line in text.splitlines():
        match line.split():
            case ["nameserver", server, *_]:
                servers.append(server)
            case ["search" | "domain", *found]:
                searches = tuple(found)
            case ["options", *found]:
                options = tuple(found)
    return DnsConfig(tuple(servers), searches, options)


def dns(pod: Pod, node: DnsConfig) -> DnsConfig:
    """Return the pod's DNS configuration. node: the node's.

    The driver has no cluster DNS, and a kubelet without one treats ClusterFirst
    as Default (`pkg/kubelet/network/dns`).
    """
    base = DnsConfig() if pod.dns_policy == "None" else node
    options = {option.partition(":")[0]: option for option in (*base.options, *pod.dns.options)}
    return DnsConfig(
        _unique((*base.nameservers, *pod.dns.nameservers))[:MOST_NAMESERVERS],
        _unique((*base.searches, *pod.dns.searches))[:MOST_SEARCHES],
        tuple(options.values()),
    )


def _unique(items: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(items))


def resolv_conf(config: DnsConfig) -> str:
    """Return the file that containers see, as containerd writes it."""
    parts = [
        f"search {' '.join(config.searches)}\n" if config.searches else "",
        *(f"nameserver {server}\n" for server in config.nameservers),
        f"options {' '.join(config.options)}\n" if config.options else "",
    ]
    return "".join(parts)


def sandbox(pod: Pod, attempt: int, node: DnsConfig) -> api.PodSandboxConfig:
    """Return the config of the pod's sandbox number `attempt`, from 0."""
    config = dns(pod, node)
    network = api.NODE if pod.host_network else api.POD
    return api.PodSandboxConfig(
        metadata=api.PodSandboxMetadata(
            name=pod.name, uid=pod.uid, namespace=pod.namespace, attempt=attempt
        ),
        # A pod on the node's network has the node's.
        hostname="" if pod.host_network else pod.hostname,
        log_directory=str(log_directory(pod)),
        dns_config=api.DNSConfig(
            servers=config.nameservers, searches=config.searches, options=config.options
        ),
        port_mappings=[
            api.PortMapping(
                protocol=_PROTOCOLS[port.protocol],
                container_port=port.container_port,
                host_port=port.host_port,
                host_ip=port.host_ip,
            )
            for port in pod.ports
        ],
        labels=pod.labels | labels(pod),
        annotations=pod.annotations | {HASH: pod.hash, _SOURCE: "file"},
        linux=api.LinuxPodSandboxConfig(
            security_context=api.LinuxSandboxSecurityContext(
                namespace_options=api.NamespaceOption(network=network, pid=api.CONTAINER)
            ),
        ),
    )


def hosts(pod: Pod, ips: Sequence[IPv4Address | IPv6Address]) -> str:
    """Return the /etc/hosts of a pod with a network of its own."""
    names = pod.hostname
    if pod.subdomain:
        domain = f"{pod.subdomain}.{pod.namespace}.svc.{CLUSTER_DOMAIN}"
        names = f"{pod.hostname}.{domain}\t{pod.hostname}"
    return "".join(
        [
            "127.0.0.1\tlocalhost\n",
            "::1\tlocalhost ip6-localhost ip6-loopback\n",
            *(f"{ip}\t{names}\n" for ip in ips),
        ]
    )


def hosts_path(pod: Pod) -> PurePosixPath:
    """Return where on the node the pod's /etc/hosts is."""
    return pod_directory(pod) / "etc-hosts"


def container(pod: Pod, wanted: Container, attempt: int, image_id: str) -> api.ContainerConfig:
    """Return the config of a container's start number `attempt`, from 0.

    image_id: from ImageStatus.
    """
    values: dict[str, str] = {}
    for name, value in wanted.env:
        values[name] = expand(value, values)
    network = api.NODE if pod.host_network else api.POD
    mounts = []
    if not pod.host_network:
        mounts.append(api.Mount(container_path="/etc/hosts", host_path=str(hosts_path(pod))))
    return api.ContainerConfig(
        metadata=api.ContainerMetadata(name=wanted.name, attempt=attempt),
        image=api.ImageSpec(image=image_id, user_specified_image=wanted.image),
        command=[expand(word, values) for word in wanted.command],
        args=[expand(word, values) for word in wanted.args],
        envs=[api.KeyValue(key=name, value=value.encode()) for name, value in values.items()],
        mounts=mounts,
        labels=labels(pod) | {CONTAINER: wanted.name},
        annotations={
            _CONTAINER_HASH: pod.hash[:8],
            _RESTARTS: str(attempt),
            _GRACE: str(pod.grace_s),
            _PORTS: json.dumps(
                [
                    {"name": p.name, "hostPort": p.host_port, "containerPort": p.container_port,
                     "protocol": p.protocol, "hostIP": p.host_ip}
                    for p in wanted.ports
                ]
            ),
        },
        log_path=f"{wanted.name}/{attempt}.log",
        linux=api.LinuxContainerConfig(
            security_context=api.LinuxContainerSecurityContext(
                namespace_options=api.NamespaceOption(network=network, pid=api.CONTAINER)
            )
        ),
    )  # fmt: skip


def expand(text: str, values: dict[str, str]) -> str:
    """Return a word with $(NAME) replaced where the name is known, and $$ by $.

    As `k8s.io/kubernetes/third_party/forked/golang/expansion` does.
    """

    def replaced(found: re.Match[str]) -> str:
        if found[0] == "$$":
            return "$"
        return values.get(found[1], found[0])

    return re.sub(r"\$\$|\$\(([^)]*)\)", replaced, text)
