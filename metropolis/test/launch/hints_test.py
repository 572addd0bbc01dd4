# SPDX-License-Identifier: Apache-2.0
"""Both launchers for real: every command that they print is run.

The launcher and the commands are processes of their own, as a user's are. They
find one another by the user's directory of launches only.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from ipaddress import ip_address, ip_network
from pathlib import Path

from metropolis.test.launch import on_terminal
from osbase.test.qemu import outputs

HERE = Path(__file__).parent
MODULES = {"launch": "main", "launch-cluster": "cluster_main"}
READY_S, COMMAND_S = 900.0, 300.0
# What a user does in a shell, and what it prints then.
TYPED, PRINTED = b"echo on the $((6*7))\n", b"on the 42"


def program(target: str) -> list[str]:
    """Return how to run a target of this package without Bazel."""
    return [sys.executable, str(HERE / f"{MODULES.get(target, target)}.py")]


def in_pty(command: list[str]) -> str:
    """Run a command on a terminal, use its shell; return what was printed."""
    pid, master = on_terminal.start(command)
    said = b""
    end = time.monotonic() + COMMAND_S
    with contextlib.suppress(OSError):
        os.write(master, TYPED + b"exit\n")
        while time.monotonic() < end:
            if select.select([master], [], [], 1.0)[0]:
                data = os.read(master, 4096)
                said += data
                if not data:
                    break
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGHUP)
    os.waitpid(pid, 0)
    os.close(master)
    return said.decode(errors="replace")


class Running:
    """A launcher, from its table until it is interrupted."""

    def __init__(self, target: str, *arguments: str, keep: Path) -> None:
        self.log = keep.with_suffix(".launcher.log")
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [*program(target), "--json", "--keep", str(keep), *arguments],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,
            )
        assert self.process.stdout is not None
        self.report = json.loads(self.process.stdout.readline())
        end = time.monotonic() + READY_S
        while "until Ctrl-C" not in self.log.read_text():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < end, self.log.read_text()
            time.sleep(0.2)

    def hints(self) -> list[str]:
        """Return the printed commands."""
        return re.findall(r"\./bazelw .*", self.log.read_text().partition("until Ctrl-C")[2])

    def run(self, target: str, *arguments: str) -> str:
        """Run another command; return its output."""
        done = subprocess.run(
            [*program(target), *arguments], capture_output=True, text=True, timeout=COMMAND_S,
            input=TYPED.decode(), check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{target} {arguments}: {done.stdout}{done.stderr}"
        return done.stdout

    def end(self) -> int:
        """Do what Ctrl-C on a terminal does: signal the whole group."""
        os.killpg(self.process.pid, signal.SIGINT)
        return self.process.wait(120)


@contextlib.contextmanager
def running(target: str, *arguments: str, tmp_path: Path) -> Iterator[Running]:
    keep = (outputs.directory() or tmp_path) / target
    found = Running(target, *arguments, keep=keep)
    try:
        yield found
    finally:
        assert found.end() == 0, found.log.read_text()
    assert list(keep.rglob("node-core.log"))
    assert list(keep.rglob("console.log"))


def run_hint(launch: Running, hint: str) -> None:
    """Run one printed command; fail if it fails."""
    words = shlex.split(hint)
    if words[1] == "shell":
        subprocess.run(words[2:], check=True, capture_output=True, timeout=COMMAND_S)
        return
    target, arguments = words[1], words[2:]  # bazelw's short commands
    if target == "console":
        assert PRINTED.decode() in launch.run(target, *arguments)
    elif "-it" in arguments:
        assert PRINTED.decode() in in_pty([*program(target), *arguments])
    else:
        launch.run(target, *arguments)


def test_of_one_node(tmp_path: Path) -> None:
    config = tmp_path / "node.textproto"
    pods = 'pod_prefix: "10.193.0.0/24" pod_prefix: "fd00:10:193::/112"'
    config.write_text(f"network {{ uplink {{ dhcp4 {{}} }} {pods} }}")
    with running("launch", "--pods", "3", "--config", str(config), tmp_path=tmp_path) as launch:
        assert launch.report["ok"]
        assert [pod["name"] for pod in launch.report["pods"]] == ["pod-a", "pod-b", "pod-c"]
        for hint in launch.hints():
            run_hint(launch, hint)
        listed = json.loads(launch.run("pod", "list", "--json"))
        assert [pod["name"] for pod in listed] == ["pod-a", "pod-b", "pod-c", "web"]
        for pod in listed:
            assert ip_address(pod["ipv4"]) in ip_network("10.193.0.0/24")
            assert ip_address(pod["ipv6"]) in ip_network("fd00:10:193::/112")
        launch.run("pod", "rm", "web")
        assert "web" not in launch.run("pod", "list")
        nodes = json.loads(launch.run("nodes", "list", "--json"))
        assert [node["name"] for node in nodes] == ["node"]
        assert nodes[0]["mac"] == "52:54:00:4e:00:01"


def test_of_a_cluster(tmp_path: Path) -> None:
    """The nodes that hints add and power off."""
    with running("launch-cluster", "--nodes", "1", tmp_path=tmp_path) as launch:
        assert launch.report["ok"]
        for hint in sorted(launch.hints(), key=lambda hint: "poweroff" in hint):
            run_hint(launch, hint)
        nodes = json.loads(launch.run("nodes", "list", "--json"))
        assert [(node["name"], node["state"]) for node in nodes] == [
            ("node-1", "off"), ("node-2", "running"),
        ]  # fmt: skip
        listed = json.loads(launch.run("metroctl", "--json", "node", "list"))
        assert "node-2" in json.dumps(listed)
        assert json.loads(launch.run("pod", "list", "--json"))[0]["name"] == "pod-2"
