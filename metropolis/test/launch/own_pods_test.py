# SPDX-License-Identifier: Apache-2.0
"""A user's own pods, before a boot, and their report."""

from __future__ import annotations

import json
from ipaddress import ip_address
from pathlib import Path

import pytest

from metropolis.test.kubelet.kubelet import Status
from metropolis.test.kubelet.manifest import Container, ContainerPort, Pod
from metropolis.test.launch import cri, own_pods
from metropolis.test.launch.checks import Check
from metropolis.test.launch.configuration import ConfigurationError
from metropolis.test.launch.own_pods import OwnPod
from metropolis.test.launch.report import PodRow, Report

EXAMPLE = Path(__file__).parents[1] / "kubelet" / "example.yaml"
V4, V6 = ip_address("198.51.100.10"), ip_address("2001:db8:51::10")
BOTH = frozenset({4, 6})


def faults(*paths: Path, most: int = 20) -> list[str]:
    with pytest.raises(ConfigurationError) as caught:
        own_pods.read(paths, most)
    return str(caught.value).splitlines()


def test_the_example_can_be_launched() -> None:
    assert [pod.name for pod in own_pods.read([EXAMPLE], 20)] == ["web", "inspector"]
    assert own_pods.read([], 20) == ()


def test_faults_of_all_files(tmp_path: Path) -> None:
    bad, binary = tmp_path / "bad.yaml", tmp_path / "binary.yaml"
    bad.write_text(EXAMPLE.read_text().replace("hostPort: 18080", "hostPrt: 18080"))
    binary.write_bytes(b"\xff")
    found = faults(bad, tmp_path / "none.yaml", binary)
    assert found[0].startswith(f"{bad}:")
    assert "spec.containers[0].ports[0].hostPrt: unknown field; did you mean hostPort?" in found[0]
    assert found[1] == f"{tmp_path}/none.yaml: No such file or directory"
    assert found[2].startswith(f"{binary}: ")


def test_what_is_wrong_with_pods_together(tmp_path: Path) -> None:
    again = tmp_path / "again.yaml"
    again.write_text(EXAMPLE.read_text().replace("metadata:\n", "metadata:\n  namespace: b\n"))
    found = faults(EXAMPLE, again, most=3)
    assert found == [
        *(f"pod b/web: host port 18080/TCP at {host} is pod default/web's"
          for host in ("0.0.0.0", "::")),
        "there are 4 pods; a node of the launcher has room for 3",
        "pod b/web has the name of default/web; want another name",
        "pod b/inspector has the name of default/inspector; want another name",
    ]  # fmt: skip


def test_images_that_the_node_does_not_have(tmp_path: Path) -> None:
    path = tmp_path / "pods.yaml"
    text = EXAMPLE.read_text()
    path.write_text(text.replace("image: localhost/busybox:latest", "image: nginx", 1))
    assert faults(path) == [
        "pod default/web: container server: image nginx is not on the node, which pulls none; "
        f"it has {', '.join(cri.PRELOADED)}"
    ]
    path.write_text(text.replace("busybox:latest", "busybox"))
    assert len(own_pods.read([path], 20)) == 2


@pytest.mark.parametrize(
    ("name", "want"),
    [
        ("a", "a:latest"),
        ("h:5/a", "h:5/a:latest"),
        ("h:5/a:1", "h:5/a:1"),
        ("a@sha256:0", "a@sha256:0"),
    ],
)
def test_names_of_images(name: str, want: str) -> None:
    assert own_pods.normal(name) == want


@pytest.mark.parametrize(
    ("port", "want"),
    [
        (ContainerPort(80, 80), [V4, V6]),
        (ContainerPort(80, 80, "0.0.0.0"), [V4]),
        (ContainerPort(80, 80, "::"), [V6]),
        (ContainerPort(80, 80, "198.51.100.10"), [V4]),
        (ContainerPort(80, 80, "127.0.0.1"), []),
        (ContainerPort(80, 80, "", "UDP"), []),
    ],
)
def test_where_a_host_port_is_asked(port: ContainerPort, want: list[object]) -> None:
    assert own_pods.targets(port, [V4, V6], BOTH) == want
    only_v4 = [ip for ip in want if ip == V4]
    assert own_pods.targets(port, [V4, V6], frozenset({4})) == only_v4
    assert own_pods.targets(port, [V4, V6], frozenset({4}), {V4, V6}) == want


def test_pods_that_have_ended() -> None:
    pod = Pod("web", (Container("a", "x"),))
    assert own_pods.runs(Status(pod, containers=(("a", "1"),))).ok
    assert own_pods.runs(Status(pod, ended=(("a", 0),))).detail == "a has ended with 0"
    assert own_pods.runs(Status(pod)).detail == "a does not run"
    once = Pod("web", (Container("a", "x"),), restart_policy="Never")
    assert own_pods.runs(Status(once, ended=(("a", 0),))).ok
    assert not own_pods.runs(Status(once, ended=(("a", 1),))).ok


def test_the_report() -> None:
    port = ContainerPort(8080, 18080)
    pod = Pod("web", (Container("a", "x", ports=(port,)),), given_uid="u1")
    row = PodRow("web", "s1", "eth0", "10.0.0.1", "fd00::1", "wl1", 1.25, 900)
    asked = tuple(
        Check(f"outside→web IPv{family}", family == 4, "x", "web", "outside", family)
        for family in (4, 6)
    )
    own = OwnPod(Status(pod, "s1", containers=(("a", "c1"),)), row, ((port, asked),))
    report = Report("tcg", 30.0, (row,), asked)
    table = own_pods.to_table(report, [own])
    assert table.splitlines()[2].split() == [
        "web", "1", "of", "1", "10.0.0.1", "fd00::1", "wl1", "1.2", "(900)",
        "18080→8080/TCP", "v4", "ok", "v6", "FAILED",
    ]  # fmt: skip
    assert "FAILED  outside→web IPv6: x" in table
    shown = json.loads(own_pods.to_json(report, [own]))
    assert not shown["ok"]
    assert shown["pods"][0]["host_ports"] == [
        {"host_port": 18080, "host_ip": "", "container_port": 8080, "protocol": "TCP",
         "answers": False}
    ]  # fmt: skip
    assert shown["pods"][0]["containers"] == [{"name": "a", "id": "c1", "exit_status": None}]
    assert (shown["pods"][0]["uid"], shown["pods"][0]["host_link"]) == ("u1", "wl1")
