# SPDX-License-Identifier: Apache-2.0
"""The commands for a launch that runs, as far as they need none."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from ipaddress import ip_address
from pathlib import Path
from types import ModuleType

import pytest

from metropolis.test.launch import cluster_main, console, etcd_socket, main, metroctl, nodes, pod
from metropolis.test.launch.cri import CriError, Found
from metropolis.test.launch.pod import Place
from metropolis.test.launch.state import StateError

HERE = Path(__file__).parent
USAGES: dict[ModuleType, list[list[str]]] = {
    main: [
        ["--pods", "0"],
        ["--pods", "21"],
        ["--pods", "x"],
        ["--log-level", "loud"],
        ["--pod"],
        ["--pod", "x.yaml", "--pods", "2"],
    ],
    cluster_main: [["--nodes", "0"], ["--mtu", "1"]],
    pod: [
        [],
        ["exec", "pod-a"],
        ["exec", "-t", "pod-a", "sh"],
        ["rm"],
        ["fetch"],
        ["run"],
        ["run", "A b"],
    ],
    nodes: [[], ["poweroff"], ["dance"]],
}
WORKS = {
    "pod.py": ["list"],
    "nodes.py": ["list"],
    "console.py": [],
    "metroctl.py": ["workload", "list"],
}


def run(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command as a user for whom nothing runs."""
    return subprocess.run(
        [sys.executable, str(HERE / program), *arguments], capture_output=True, text=True,
        env=os.environ | {"LOGNAME": "nobody-runs-here"}, check=False, timeout=120,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip


@pytest.mark.parametrize("program", WORKS)
def test_nothing_runs(program: str) -> None:
    done = run(program, *WORKS[program])
    assert done.returncode in (1, 2)
    assert "nothing runs; start a node: ./bazelw run //metropolis:launch" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("module", "arguments"), [(module, usage) for module in USAGES for usage in USAGES[module]]
)
def test_a_wrong_usage(
    module: ModuleType, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        module.main(arguments)
    assert "error: " in capsys.readouterr().err


@pytest.mark.parametrize("module", [*USAGES, metroctl, console])
def test_help(
    module: ModuleType, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["x", "--help"])
    with pytest.raises(SystemExit, match="0"):
        module.main() if module is console else module.main(["--help"])
    assert "    ./bazelw " in capsys.readouterr().out


def test_a_bad_configuration_boots_nothing(tmp_path: Path) -> None:
    path = tmp_path / "node.textproto"
    path.write_text("network { uplnk {} }")
    for program in ("main.py", "cluster_main.py"):
        done = run(program, "--config", str(path))
        assert done.returncode == 2
        assert f"{path}:1:" in done.stderr
        assert "uplnk" in done.stderr
        assert "boot:" not in done.stderr


def test_a_bad_file_of_pods_boots_nothing(tmp_path: Path) -> None:
    path = tmp_path / "pods.yaml"
    path.write_text("apiVersion: v1\nkind: Pod\nmetadata: {name: web}\nspec: {prots: []}\n")
    done = run("main.py", "--json", "--pod", str(path), "--pod", str(tmp_path / "none.yaml"))
    assert done.returncode == 2
    assert f"launch: {path}:4: spec.prots: unknown field" in done.stderr
    assert f"{path}:4: spec: containers is missing" in done.stderr
    assert f"{tmp_path}/none.yaml: No such file or directory" in done.stderr
    assert "boot:" not in done.stderr
    assert not json.loads(done.stdout)["ok"]


def test_a_bad_accelerator_leaves_the_last_failures_logs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METROPOLIS_ACCEL", "bogus")
    for program in ("main.py", "cluster_main.py"):
        done = run(program)
        assert done.returncode == 2
        assert done.stderr.endswith("METROPOLIS_ACCEL='bogus': want kvm, tcg or icount\n")


def found(name: str, number: int, *, running: bool = True) -> Found:
    ips = (ip_address(f"10.192.0.{number}"), ip_address(f"fd00::{number}"))
    return Found(name, f"sandbox-{number}", f"container-{number}", ips if running else (), running)


PODS = pod.named(
    [
        Place("node-1", Path("/1"), found("web", 1)),
        Place("node-2", Path("/2"), found("web", 2)),
        Place("node-2", Path("/2"), found("pod-2", 3, running=False)),
    ]
)


def test_pods_by_name() -> None:
    assert list(PODS) == ["pod-2", "node-1/web", "node-2/web"]
    assert pod.pick(PODS, "node-1/web").pod.id == "sandbox-1"
    assert pod.pick(PODS, "pod-2").pod.id == pod.pick(PODS, "node-2/pod-2").pod.id
    with pytest.raises(CriError, match="which pod\\? There are: node-1/web, node-2/web"):
        pod.pick(PODS, "web")
    with pytest.raises(CriError, match="no pod nginx; there are: pod-2, node-1/web, node-2/web"):
        pod.pick(PODS, "nginx")


def test_the_lists_of_pods() -> None:
    listed = json.loads(pod.to_json(PODS))
    assert listed[1] == {
        "name": "node-1/web", "node": "node-1", "state": "running", "ipv4": "10.192.0.1",
        "ipv6": "fd00::1", "container": "container-1", "id": "sandbox-1",
    }  # fmt: skip
    assert (listed[0]["state"], listed[0]["ipv4"]) == ("ended", "")
    assert pod.to_table(PODS).splitlines()[3].split()[5] == "sandbox-1"
    assert [line.split()[:4] for line in pod.to_table(PODS).splitlines()[2:]] == [
        ["pod-2", "node-2", "ended", "-"],
        ["node-1/web", "node-1", "running", "10.192.0.1"],
        ["node-2/web", "node-2", "running", "10.192.0.2"],
    ]
    assert pod.to_table({}) == "no pods"


def test_the_list_of_nodes() -> None:
    row = dict.fromkeys(nodes.KEYS, "x") | {"ipv6": ""}
    assert nodes.to_table([row]).splitlines()[0].split() == [key.upper() for key in nodes.KEYS]
    assert nodes.to_table([row]).splitlines()[2].split() == ["x", "x", "x", "-", "x", "x", "x"]


def test_what_is_metroctls() -> None:
    assert metroctl.split(["--on", "node-2", "workload", "list"]) == (
        "node-2", "workload", ["workload", "list"],
    )  # fmt: skip
    assert metroctl.split(["--json", "node", "list"]) == (None, "node", ["--json", "node", "list"])
    assert metroctl.split([]) == (None, "", [])
    with pytest.raises(StateError, match="--on: want"):
        metroctl.split(["--on"])


def test_names_of_pods() -> None:
    assert main.pod_names(3) == ["pod-a", "pod-b", "pod-c"]
    assert main.parse(["--pods", "20"]).pods == main.MOST_PODS
    assert cluster_main.parse([]).log_level == "info"


def test_credentials_are_found(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        etcd_socket.credentials(tmp_path)
    etcd_socket.publish(tmp_path, Path("/a"), Path("/b"), Path("/c"))
    assert etcd_socket.credentials(tmp_path) == {"ca": "/a", "cert": "/b", "key": "/c"}
