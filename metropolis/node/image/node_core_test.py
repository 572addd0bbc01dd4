# SPDX-License-Identifier: Apache-2.0
"""The script of the service node-core, on kernel command lines of the test."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "sv" / "node-core"


def started(tmp_path: Path, cmdline: str) -> list[str]:
    """Run the script with a program for python3 that prints its arguments."""
    python = tmp_path / "python3"
    python.write_text('#!/bin/sh\nprintf "%s\\n" "$*"\n')
    python.chmod(0o755)
    given = tmp_path / "cmdline"
    given.write_text(cmdline + "\n")
    subprocess.run(["mount", "--bind", given, "/proc/cmdline"], check=True)
    try:
        done = subprocess.run(
            ["busybox", "sh", SCRIPT], check=True, capture_output=True, text=True, timeout=60,
            env={"PATH": f"{tmp_path}:/usr/bin:/bin"},
        )  # fmt: skip
    finally:
        subprocess.run(["umount", "/proc/cmdline"], check=True)
    return done.stdout.splitlines()


@pytest.mark.parametrize(
    ("cmdline", "level"),
    [
        ("console=ttyS0 quiet", "info"),
        ("quiet metropolis.log-level=debug metropolis.hostname=a", "debug"),
        ("metropolis.log-level=debug metropolis.log-level=error", "error"),
        ("other.metropolis.log-level=debug * $(touch x)", "info"),
    ],
)
def test_the_command_line_sets_the_level(tmp_path: Path, cmdline: str, level: str) -> None:
    called = started(tmp_path, cmdline)[-1]
    assert called.startswith("-m metropolis.node.core.main --config /run/metropolis/")
    assert called.endswith(f" --log-level {level}")


@pytest.mark.parametrize("value", ["loud", "", "debug;reboot", "DEBUG"])
def test_a_level_that_is_none_is_reported_and_changes_nothing(tmp_path: Path, value: str) -> None:
    *_, said, called = started(tmp_path, f"quiet metropolis.log-level={value}")
    assert said == (
        f"metropolis.log-level={value}: not debug, info, warning or error; node core logs at info"
    )
    assert called.endswith(" --log-level info")
