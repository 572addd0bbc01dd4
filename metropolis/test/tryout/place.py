# SPDX-License-Identifier: Apache-2.0
"""A network of its own on this machine, with node core in it.

    /run/metropolis/network      the sockets of node core, where they always are
    /run/netns/NAME              a namespace of each workload
    /run/node-core.log           what node core reports
    /run/NAME.json               what the shim got last on its stdin
    /run/bin                     metroctl and cniproxy, as on a node; a shell

/run is a new one. All ends with this process, at the latest.
"""

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from metropolis.node import allocs

WORKSPACE = Path(__file__).absolute().parents[3]
LOG = Path("/run/node-core.log")
PREFIXES = ("10.192.0.0/24", "fd00:10:192::/112")
_BIN = Path("/run/bin")
SHELL = _BIN / "shell"
_CONFIG = Path("/run/node.textproto")
# Lines of its log. When all have come, workload.sock serves Attach.
_READY = (
    "root.network.workloads.prefixes: pod prefixes:",
    "root.network.workloads.grpc: serving on",
)
_LIMIT_S = 60.0  # for what takes a second, on a busy machine
_LOG_TAIL = 30  # lines of the log in an error


class TryError(Exception):
    """Something failed; the text says what, and has the program's own words."""


def find(path: str) -> Path:
    """Return a built file, in runfiles or in bazel-bin of a checkout."""
    for base in (WORKSPACE, WORKSPACE / "bazel-bin"):
        if (base / path).is_file():
            return (base / path).resolve()
    raise TryError(f"{path} is neither in {WORKSPACE} nor its bazel-bin; build it first")


def run(
    command: str, *, stdin: str = "", env: Mapping[str, str] | None = None, ok: bool = True
) -> subprocess.CompletedProcess[str]:
    """Run a command with the arguments of a shell's line. ok: a status other
    than 0 raises TryError. env: in addition.
    """
    done = subprocess.run(
        shlex.split(command),
        input=stdin,
        env=environment() | dict(env or {}),
        text=True,
        capture_output=True,
        timeout=_LIMIT_S,
        check=False,
    )
    if ok and done.returncode:
        said = (done.stderr or done.stdout).strip()
        raise TryError(f"{command}: status {done.returncode}: {said}")
    return done


def environment() -> dict[str, str]:
    """Return the environment of commands there."""
    path = f"{_BIN}:{os.environ.get('PATH', '/usr/bin:/bin')}:/usr/sbin:/sbin"
    return os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "PATH": path}


def furnish() -> None:
    """Make /run/bin. Once, in new namespaces."""
    _BIN.mkdir()
    (_BIN / "cniproxy").symlink_to(find("metropolis/node/containerd/cniproxy/shim/cniproxy"))
    metroctl = _BIN / "metroctl"
    python = shlex.quote(sys.executable)
    metroctl.write_text(f'#!/bin/sh\nexec {python} -P -m metropolis.cli.metroctl.main "$@"\n')
    settings = environment() | {"PS1": "try# "}
    exports = "".join(
        f"export {name}={shlex.quote(settings[name])}\n" for name in ("PATH", "PYTHONPATH", "PS1")
    )
    SHELL.write_text(f'#!/bin/sh\n{exports}exec bash --norc "$@"\n')
    for program in (metroctl, SHELL):
        program.chmod(0o755)


def add_namespace(name: str) -> Path:
    """Make a network namespace for a workload; return its path."""
    run(f"ip netns add {name}")
    return Path(f"/run/netns/{name}")


@contextlib.contextmanager
def node_core() -> Iterator[None]:
    """Run node core; the block begins when it serves workloads."""
    _CONFIG.write_text(
        "network {\n" + "".join(f'  pod_prefix: "{prefix}"\n' for prefix in PREFIXES) + "}\n"
    )
    process = subprocess.Popen(
        [
            *("setpriv", "--pdeathsig", "KILL"),
            *(sys.executable, "-P", "-m", "metropolis.node.core.main"),
            *("--config", str(_CONFIG), "--state-dir", "/run/state"),
        ],
        env=environment(),
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # Ctrl-C is for us
    )
    assert process.stderr is not None
    stderr = process.stderr
    awaited, decided = set(_READY), threading.Event()

    def follow() -> None:
        with LOG.open("w", buffering=1) as log:
            for line in stderr:
                log.write(line)
                awaited.difference_update([text for text in awaited if text in line])
                if not awaited:
                    decided.set()
        decided.set()

    follower = threading.Thread(target=follow, daemon=True)
    follower.start()
    try:
        if not decided.wait(_LIMIT_S):
            raise TryError(f"node core does not serve after {_LIMIT_S:g} s:\n{log_tail()}")
        if awaited:
            raise TryError(f"node core has ended:\n{log_tail()}")
        _await_cni()
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        status = process.wait(_LIMIT_S)
        follower.join(_LIMIT_S)
        stderr.close()
    if status:
        raise TryError(f"node core ended with status {status}:\n{log_tail()}")


def _await_cni() -> None:
    """Wait until cni.sock serves: node core does not report that."""
    deadline = time.monotonic() + _LIMIT_S
    config = '{"cniVersion": "1.1.0", "name": "metropolis", "type": "cniproxy"}'
    while (
        done := run("cniproxy", stdin=config, env={"CNI_COMMAND": "STATUS"}, ok=False)
    ).returncode:
        if time.monotonic() > deadline:
            raise TryError(f"{allocs.CNI_SOCKET}: {done.stdout}")
        time.sleep(0.01)


def log_tail() -> str:
    """Return the end of node core's log."""
    return "\n".join(LOG.read_text().splitlines()[-_LOG_TAIL:]) if LOG.exists() else ""
