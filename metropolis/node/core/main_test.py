# SPDX-License-Identifier: Apache-2.0
"""Node core's command line, as a process."""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from metropolis.node.core.main import ConsoleFormatter

LIMIT_S = 120


def core(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run node core to its end."""
    return subprocess.run(
        [sys.executable, "-m", "metropolis.node.core.main", *arguments],
        check=False,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )


def test_help_says_everything() -> None:
    """--help shows every option, the default file, and the exit status."""
    done = core("--help")
    assert done.returncode == 0
    for text in (
        "--config",
        "--runtime-dir",
        "--log-level",
        "--check",
        "--rpc-server",
        "exit status",
        "/run/",
    ):
        assert text in done.stdout


@pytest.mark.parametrize(
    "arguments", [["--no-such"], ["--log-level", "loud"], ["surplus"], ["--config"]]
)
def test_wrong_usage_is_2(arguments: list[str]) -> None:
    """The error comes with a usage line."""
    done = core(*arguments)
    assert done.returncode == 2
    assert "usage: node-core" in done.stderr


def test_wrong_configuration_is_2_and_no_traceback(tmp_path: Path) -> None:
    """The error names file, field, value; the node is not changed."""
    file = tmp_path / "node.textproto"
    done = core("--config", str(file))
    assert (done.returncode, "No such file" in done.stderr) == (2, True)
    file.write_text('network { pod_prefix: "10.0.0.1/24" }')
    done = core("--config", str(file))
    assert done.returncode == 2
    assert f"{file}:1:11: network.pod_prefix[0]" in done.stderr
    assert "Traceback" not in done.stderr
    assert subprocess.run(["nft", "list", "ruleset"], capture_output=True, check=True).stdout == b""


def test_check_only_checks(tmp_path: Path) -> None:
    """The check changes nothing."""
    file = tmp_path / "node.textproto"
    file.write_text('network { pod_prefix: "10.0.0.0/24" }')
    done = core("--config", str(file), "--check")
    assert (done.returncode, done.stdout, done.stderr) == (
        0, f"ok: {file}: no uplink; pod prefixes 10.0.0.0/24\n", "",
    )  # fmt: skip
    assert subprocess.run(["nft", "list", "ruleset"], capture_output=True, check=True).stdout == b""


def test_help_imports_little() -> None:
    """--help imports nothing that takes seconds on a slow machine."""
    script = (
        "import sys; import metropolis.node.core.main; "
        "print([m for m in ('grpc', 'google.protobuf', 'pyroute2') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        check=True,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("before", "after"), [("100:200", 200), ("100:100", 100), ("1024:5000", 4096)]
)
def test_it_may_have_as_many_files_as_is_allowed(before: str, after: int) -> None:
    script = (
        "import resource; from metropolis.node.core import main; main._allow_files(); "
        "print(resource.getrlimit(resource.RLIMIT_NOFILE)[0])"
    )
    done = subprocess.run(
        ["prlimit", f"--nofile={before}", sys.executable, "-c", script],
        check=True,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert int(done.stdout) == after


def test_console_lines() -> None:
    """Lines have time since boot, level, name; control characters are safe."""
    record = logging.LogRecord("root.x", logging.WARNING, "", 0, "a\x1b[2J\nb %s", ("c",), None)
    line = ConsoleFormatter().format(record)
    assert re.fullmatch(r"\[ *\d+\.\d{6}\] W root\.x: a\\x1b\[2J\\nb c", line)


def test_console_tracebacks_are_indented() -> None:
    """Each line of a traceback belongs to the line above."""
    try:
        raise ValueError("bad\x07")
    except ValueError:
        info = sys.exc_info()
    record = logging.LogRecord("root.x", logging.ERROR, "", 0, "died", (), info)
    first, *rest = ConsoleFormatter().format(record).splitlines()
    assert first.endswith("E root.x: died")
    assert rest[-1] == "    ValueError: bad\\x07"
    assert all(line.startswith("    ") for line in rest)
