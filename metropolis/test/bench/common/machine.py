# SPDX-License-Identifier: Apache-2.0
"""The measured machine, and the versions of programs."""

import importlib.metadata
import json
import os
import platform
from pathlib import Path
from typing import Any

_PACKAGES = ("containernetworking-plugins", "netavark", "iptables", "nftables")


def describe(lock: Path) -> dict[str, Any]:
    """Describe the machine. lock: third_party/debian's, for peers' versions."""
    pins = json.loads(lock.read_text())["packages"]
    memory = next(
        line.split()[1]
        for line in Path("/proc/meminfo").read_text().splitlines()
        if line.startswith("MemTotal:")
    )
    return {
        "cpu": cpu(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_mib": int(memory) // 1024,
        "kernel": platform.release(),
        "load": [round(load, 2) for load in os.getloadavg()],
        "python": platform.python_version(),
        "grpcio": importlib.metadata.version("grpcio"),
        **{name: pins[name]["version"] for name in _PACKAGES},
    }


def cpu() -> str:
    """The processor's name."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
