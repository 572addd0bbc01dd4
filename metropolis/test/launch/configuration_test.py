# SPDX-License-Identifier: Apache-2.0
"""A NodeConfig of the user's own, before anything boots."""

from __future__ import annotations

import contextlib
import io
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from metropolis.node.core import main as node_core
from metropolis.test.launch import command, configuration
from metropolis.test.launch.configuration import Configuration, ConfigurationError

DHCP = "uplink { dhcp4 {} }"
PODS4, PODS6 = 'pod_prefix: "10.192.0.0/24"', 'pod_prefix: "fd00:10:192::/112"'
STATIC = 'uplink { static { address: "198.51.100.77/24" gateway: "198.51.100.1" } }'


def write(tmp_path: Path, *parts: str) -> Path:
    path = tmp_path / "node.textproto"
    path.write_text(f"network {{ {' '.join(parts)} }}\n")
    return path


@pytest.mark.parametrize(
    ("parts", "pods", "uplink", "ipv4"),
    [
        ((DHCP, PODS4, PODS6), {4, 6}, {4, 6}, None),
        ((DHCP, PODS4), {4}, {4}, None),
        ((STATIC, PODS4, PODS6), {4, 6}, {4, 6}, IPv4Address("198.51.100.77")),
        (('uplink { static { address: "2001:db8:51::7/64" } }', PODS4, PODS6), {4, 6}, {6}, None),
    ],
)
def test_what_the_launcher_waits_for(
    tmp_path: Path,
    parts: tuple[str, ...],
    pods: set[int],
    uplink: set[int],
    ipv4: IPv4Address | None,
) -> None:
    path = write(tmp_path, *parts)
    assert configuration.of_node(path) == Configuration(
        path.read_text(), frozenset(pods), frozenset(uplink), ipv4
    )


@pytest.mark.parametrize(
    "text", ["network { uplnk {} }", 'network { pod_prefix: "10.0.0.1/8" }', "network {", "\xff"]
)
def test_the_words_are_those_of_node_core(tmp_path: Path, text: str) -> None:
    path = tmp_path / "node.textproto"
    path.write_text(text, "latin-1")
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        assert node_core.main(["--check", "--config", str(path)]) == 2
    for read in (configuration.of_node, configuration.of_cluster):
        with pytest.raises(ConfigurationError) as caught:
            read(path)
        assert str(caught.value) in said.getvalue()


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="No such file"):
        configuration.of_node(tmp_path / "none")


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ((DHCP,), "pod_prefix: missing"),
        ((PODS4,), "uplink: missing"),
        ((DHCP, '} cluster { node_id: "a" etcd_endpoint: "192.0.2.1"'), "cluster: "),
    ],
)
def test_what_no_launch_could_wait_for(tmp_path: Path, parts: tuple[str, ...], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        configuration.of_node(write(tmp_path, *parts))


def test_of_a_cluster(tmp_path: Path) -> None:
    path = write(tmp_path, DHCP, 'ntp_server: "192.0.2.1"')
    assert configuration.of_cluster(path) == path.read_text()


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ((DHCP, PODS4), "comes from the cluster"),
        ((STATIC,), "its own address"),
        ((DHCP, '} cluster { node_id: "a" etcd_endpoint: "192.0.2.1"'), "leave it out"),
    ],
)
def test_what_no_cluster_can_have(tmp_path: Path, parts: tuple[str, ...], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        configuration.of_cluster(write(tmp_path, *parts))


def test_paths_are_relative_to_where_the_user_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BUILD_WORKING_DIRECTORY", str(tmp_path))
    assert command.typed(Path("a/b")) == tmp_path / "a" / "b"
    assert command.typed(Path("/c")) == Path("/c")
    assert command.typed(None) is None
