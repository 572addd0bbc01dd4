# SPDX-License-Identifier: Apache-2.0
"""//metropolis:try, as people run it: all modes, and all ends."""

import json
import os
import re
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

LIMIT_S = 120.0
COMMAND = [sys.executable, "-P", "-m", "metropolis.test.tryout.main"]
ENVIRONMENT = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}


def run(*arguments: str, stdin: str = "", **more: Any) -> subprocess.CompletedProcess[str]:
    """Run it to its end."""
    settings = {"env": ENVIRONMENT} | more
    return subprocess.run(
        [*COMMAND, *arguments],
        input=stdin,
        text=True,
        capture_output=True,
        timeout=LIMIT_S,
        check=False,
        **settings,
    )


@pytest.mark.parametrize("mode", [(), ("--cni",)])
def test_it_attaches_pings_and_detaches(mode: tuple[str, ...]) -> None:
    """Two workloads reach each other in both families, and nothing is left."""
    done = run("--json", *mode)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["ok"]
    assert not said["wrong"]
    assert said["by"] == ("cni" if mode else "grpc")
    for one in said["workloads"]:
        assert sorted(ip_address(text).version for text in one["addresses"]) == [4, 6]
        assert one["link"].startswith("wl")
        assert one["attach_ms"] > 0
    targets = {address for one in said["workloads"] for address in one["addresses"]}
    assert {one["target"] for one in said["pings"]} == targets
    assert len(targets) == 4
    assert all(one["rtt_ms"] > 0 for one in said["pings"])
    assert "no attachment, link, address or route of them is left" in done.stderr


def test_the_shim_by_hand() -> None:
    """A printed execution of the shim can be repeated as it is printed."""
    typed = 'eval "$ADD"; metroctl workload list'
    done = run("--cni", "--stay", stdin=typed, env=ENVIRONMENT | {"ADD": (
        "CNI_COMMAND=ADD CNI_CONTAINERID=web-1 CNI_NETNS=/run/netns/web-1 CNI_IFNAME=eth1 "
        "CNI_PATH=/run/bin cniproxy </run/web-1.json"
    )})  # fmt: skip
    printed = re.findall(r"CNI_COMMAND=(\w+) .* cniproxy </run/(\S+)\.json", done.stdout)
    assert printed == [
        (command, name) for command in ("ADD", "CHECK", "DEL") for name in ("web-1", "web-2")
    ]
    assert re.search(r"^web-1 +eth1 +10\.192\.0\.3", done.stdout, re.MULTILINE), done.stdout
    # DEL was of eth0.
    assert done.returncode == 1
    assert "WRONG: left after Detach" in done.stdout


def test_what_it_shows() -> None:
    """The text for people has the commands it shows, and a last line."""
    done = run()
    assert done.returncode == 0, done.stderr
    for text in (
        "$ metroctl workload list\n   WORKLOAD ",
        "$ metroctl workload status\n   ok\n",
        "proto 77",
        "$ ip -n web-1 route\n   default via 169.254.77.1 dev eth0",
        "masquerade",
    ):
        assert text in done.stdout
    assert re.search(r"^ok, in [\d.]+ s\n\Z", done.stdout, re.MULTILINE)


def test_the_shell() -> None:
    """The shell of --stay has the commands that are printed before it."""
    done = run("--stay", stdin="metroctl workload check\nip netns exec web-1 ip address; exit 7\n")
    assert done.returncode == 0, done.stderr
    assert "web-1 eth0: ok\nweb-2 eth0: ok\n" in done.stdout
    assert "inet 10.192.0.1/32" in done.stdout


def test_something_wrong_is_1(tmp_path: Path) -> None:
    """Pings without an answer: they are named, and all else goes on."""
    ping = tmp_path / "ping"
    ping.write_text("#!/bin/sh\necho no answer; exit 1\n")
    ping.chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    done = run("--json", env=ENVIRONMENT | {"PATH": path})
    said = json.loads(done.stdout)
    assert (done.returncode, said["ok"], len(said["wrong"])) == (1, False, 4)
    assert all("no answer" in text for text in said["wrong"])
    assert [one["rtt_ms"] for one in said["pings"]] == [None] * 4


def test_no_namespaces_is_2() -> None:
    """The reason is one line."""
    limit = 'echo 0 >/proc/sys/user/max_user_namespaces; exec "$@"'
    done = subprocess.run(
        ["unshare", "-Ur", "sh", "-c", limit, "sh", *COMMAND],
        env=ENVIRONMENT, text=True, capture_output=True, timeout=LIMIT_S, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith("try: user, mount and network namespaces are needed")
    assert done.stderr.count("\n") == 1
    assert not done.stdout


@pytest.fixture
def staying() -> Iterator[subprocess.Popen[str]]:
    """It runs, with a shell that waits for its stdin."""
    process = subprocess.Popen(
        [*COMMAND, "--stay"],
        env=ENVIRONMENT,
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    yield process
    process.kill()
    process.communicate(timeout=LIMIT_S)


def until(process: subprocess.Popen[str], text: str) -> str:
    """Read its output to the line that has the text; return the line."""
    assert process.stdout is not None
    seen = []
    for line in process.stdout:
        seen.append(line)
        if text in line:
            return line
    pytest.fail(f"it ended without {text!r}:\n{''.join(seen)}")


def node_cores(parent: int) -> list[int]:
    """Return the children of a process that are node core."""
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    return [
        int(child)
        for child in children
        if b"metropolis.node.core.main" in Path(f"/proc/{child}/cmdline").read_bytes()
    ]


def await_end(handle: int) -> None:
    """Wait for the end of the process of a pidfd; close it."""
    assert select.select([handle], [], [], LIMIT_S)[0]
    os.close(handle)


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGKILL, -9)]
)
def test_no_process_is_left(
    staying: subprocess.Popen[str], number: signal.Signals, status: int
) -> None:
    """Whatever ends it: node core ends, too."""
    until(staying, "nsenter --target")
    (core,) = node_cores(staying.pid)
    handle = os.pidfd_open(core)
    staying.send_signal(number)
    assert staying.wait(LIMIT_S) == status
    await_end(handle)


def test_ctrl_c(staying: subprocess.Popen[str]) -> None:
    """Before the shell it ends everything; the status is 130."""
    until(staying, "two workloads, attached")
    (core,) = node_cores(staying.pid)
    handle = os.pidfd_open(core)
    staying.send_signal(signal.SIGINT)
    assert staying.wait(LIMIT_S) == 130
    await_end(handle)
    assert staying.stdout is not None
    assert staying.stdout.read().endswith("try: stopped\n")


def test_ctrl_c_in_the_shell(staying: subprocess.Popen[str]) -> None:
    """Ctrl-C is for the shell's command: it goes on, to a good end."""
    until(staying, "nsenter --target")
    staying.send_signal(signal.SIGINT)
    assert staying.stdin is not None
    staying.stdin.write("echo still here\n")
    staying.stdin.flush()
    until(staying, "still here")
    staying.stdin.close()
    assert until(staying, "ok, in")
    assert staying.wait(LIMIT_S) == 0


def test_another_shell(staying: subprocess.Popen[str]) -> None:
    """The command for another terminal gives the same shell."""
    command = until(staying, "nsenter --target").split()
    done = subprocess.run(
        [*command, "-c", "metroctl workload list"],
        text=True, capture_output=True, timeout=LIMIT_S, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "web-2" in done.stdout
