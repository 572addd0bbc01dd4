# SPDX-License-Identifier: Apache-2.0
"""A NodeConfig of the user's own, checked before a machine boots.

The check is node core's own (`main --check`), so it has the same words. On top
come a few facts of the launcher's network: what it could not wait for.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path

from metropolis.node.core import config as node_config

BOTH = frozenset({4, 6})


class ConfigurationError(Exception):
    """The file cannot be used; the text says where and why."""


@dataclass(frozen=True)
class Configuration:
    """text: None: the image's configuration. pods: the versions of IP that pods
    have; uplink: those that the node has towards the outside. ipv4: the node's
    static address, None: that of DHCP.
    """

    text: str | None = None
    pods: frozenset[int] = BOTH
    uplink: frozenset[int] = BOTH
    ipv4: IPv4Address | None = None


def _parse(text: str, path: Path) -> node_config.NodeConfig:
    try:
        return node_config.parse(text.encode(), str(path))
    except node_config.ConfigError as error:
        raise ConfigurationError(str(error)) from error


def _read(path: Path) -> tuple[str, node_config.NodeConfig]:
    try:
        found = node_config.load(str(path))
        return path.read_text(), found
    except (node_config.ConfigError, OSError, ValueError) as error:
        raise ConfigurationError(str(error)) from error


def of_node(path: Path) -> Configuration:
    """Return the configuration in a file, for a node on its own."""
    text, found = _read(path)
    if found.cluster is not None:
        raise ConfigurationError(
            f"{path}: cluster: this node has no etcd; use launch-cluster, or leave it out"
        )
    if not found.network.pods.prefixes:
        raise ConfigurationError(
            f"{path}: network.pod_prefix: missing, and pods would get no address; "
            'e.g. pod_prefix: "10.192.0.0/24"'
        )
    uplink = found.network.uplink
    if uplink is None:
        raise ConfigurationError(
            f"{path}: network.uplink: missing, and the launcher would wait for its address; "
            "e.g. uplink { dhcp4 {} }"
        )
    pods = frozenset(prefix.version for prefix in found.network.pods.prefixes)
    static = [one.ip for one in uplink.addresses if isinstance(one.ip, IPv4Address)]
    ipv4 = static[0] if static and uplink.dhcp4 is None else None
    has_ipv4 = uplink.dhcp4 is not None or ipv4 is not None
    return Configuration(text, pods, pods if has_ipv4 else pods - {4}, ipv4)


def of_cluster(path: Path) -> str:
    """Return the text of a file, for all nodes of a cluster; the launcher adds
    the part `cluster` of each.
    """
    text, found = _read(path)
    if found.cluster is not None:
        raise ConfigurationError(f"{path}: cluster: leave it out, the launcher adds each node's")
    if found.network.uplink is None or found.network.uplink.dhcp4 is None:
        raise ConfigurationError(
            f"{path}: network.uplink: each node needs its own address: uplink {{ dhcp4 {{}} }}"
        )
    _parse(text + member("node-1", "198.51.100.1:2379"), path)
    return text


def member(name: str, etcd_endpoint: str) -> str:
    """Return the part of a NodeConfig that makes a node a cluster's."""
    return f'\ncluster {{ node_id: "{name}" etcd_endpoint: "{etcd_endpoint}" }}\n'
