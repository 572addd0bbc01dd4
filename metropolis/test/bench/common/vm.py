# SPDX-License-Identifier: Apache-2.0
"""Run the part of a benchmark that needs a virtual machine.

The guest's program is a module. Its argument is a file with its plan; it prints
its results on standard output, and progress on standard error.
"""

import asyncio
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

from metropolis.test.bench.common.errors import BenchError
from metropolis.test.bench.common.machine import cpu
from metropolis.test.bench.common.terminal import say
from osbase.test.agent.client import Agent, AgentError
from osbase.test.qemu.config import Accel, Machine
from osbase.test.qemu.vm import QEMU, Vm

CHANNEL = "dev.metropolis.agent"
WORKSPACE = Path(__file__).parents[4]

_PLAN = "/tmp/plan.json"


async def run(
    machine: Machine,
    accel: Accel,
    directory: Path,
    module: str,
    plan: str,
    environment: dict[str, str],
    boot_timeout_s: float,
) -> str:
    """Boot the machine, run the module in it; return its output.

    environment: in addition to HOME and LANG. Raises BenchError, VmError,
    AgentError.
    """
    say(f"booting the machine ({accel.value})")
    vm = Vm(machine, accel, directory)
    async with vm, Agent(vm.layout.channel(CHANNEL)) as agent:
        try:
            async with asyncio.timeout(boot_timeout_s):
                await agent.write_file(_PLAN, plan.encode())
        except TimeoutError:
            raise vm.failure(f"no agent after {boot_timeout_s:g} s") from None
        try:
            return await _run(agent, module, environment)
        except AgentError as error:
            # Usually a panic: the kernel's messages explain it.
            raise vm.failure(str(error)) from error


async def _run(agent: Agent, module: str, environment: dict[str, str]) -> str:
    """Run the guest's program, its progress on our standard error."""
    command = ["python3", "-s", "-m", module, _PLAN]
    every = {"HOME": "/tmp", "LANG": "C.UTF-8"} | environment
    async with agent.exec(command, every) as process:

        async def relay() -> None:
            while data := await process.read(1):
                sys.stderr.write(data.decode(errors="replace"))
                sys.stderr.flush()

        output, _ = await asyncio.gather(process.read_all(0), relay())
        status = await process.wait()
    if status:
        raise BenchError(f"the guest's program ended with status {status}")
    return output.decode()


def describe(accel: Accel) -> dict[str, Any]:
    """Describe the machine."""
    qemu = subprocess.run([QEMU, "--version"], check=True, capture_output=True, text=True).stdout
    return {
        "cpu": cpu(),
        "cores": len(os.sched_getaffinity(0)),
        "kernel": platform.release(),
        "load": " ".join(f"{load:.2f}" for load in os.getloadavg()),
        "qemu": qemu.split()[3],
        "accel": accel.value,
    }
