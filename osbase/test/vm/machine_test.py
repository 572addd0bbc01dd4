# SPDX-License-Identifier: Apache-2.0
"""The VM driver and the agent with a real machine, seen from the host."""

import asyncio
import os
import signal
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from osbase.test.agent.client import Agent, AgentGoneError, AgentRestartedError
from osbase.test.agent.contract import AgentContract
from osbase.test.qemu.accel import find_accel, probe
from osbase.test.qemu.config import Accel, Drive, Machine
from osbase.test.qemu.vm import State, Vm, VmError

pytestmark = pytest.mark.asyncio(loop_scope="module")

_CHANNEL = "dev.metropolis.agent"
_HERE = Path("osbase/test/vm")
_BOOT = Path("osbase/boot")
KERNEL = (_BOOT / "bzImage").resolve()
MACHINE = Machine(
    KERNEL,
    (_BOOT / "initramfs.cpio.zst").resolve(),
    cmdline="quiet",
    drives=(
        Drive((_HERE / "root.erofs").resolve(), "root"),
        Drive(Path("osbase/test/agent/tools.erofs").resolve(), "tools"),
    ),
    channels=(_CHANNEL,),
    fw_cfg={"opt/test/file": b"contents"},
)


_MADE: list[tempfile.TemporaryDirectory[str]] = []


def short_directory() -> Path:
    """Return a new directory with a short path, removed at exit."""
    _MADE.append(tempfile.TemporaryDirectory(prefix="m-vm-"))
    return Path(_MADE[-1].name)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def vm() -> AsyncIterator[Vm]:
    async with Vm(MACHINE, await find_accel(KERNEL), short_directory()) as machine:
        yield machine


@pytest_asyncio.fixture(loop_scope="module")
async def agent(vm: Vm) -> AsyncIterator[Agent]:
    # Each test has its own connection: the port sees many hosts.
    async with asyncio.timeout(180), Agent(vm.layout.channel(_CHANNEL)) as connected:
        yield connected


@pytest_asyncio.fixture(loop_scope="module")
async def scratch(agent: Agent) -> str:
    return (await agent.run(["mktemp", "-d"])).text


class TestAgent(AgentContract):
    """The contract, over virtio-serial."""


async def test_the_agent_is_killed(agent: Agent) -> None:
    async with agent.exec(["sh", "-c", "echo $PPID; exec sleep 1000"]) as child:
        pid = int(await child.read())
        await agent.run(["sh", "-c", f"(sleep 0.2; kill -9 {pid}) >/dev/null 2>&1 &"])
        with pytest.raises(AgentRestartedError):
            await child.read()
    assert (await agent.run(["echo", "again"])).text == "again"


async def test_qmp_and_console(vm: Vm, agent: Agent) -> None:
    status = await vm.qmp("query-status")
    assert isinstance(status, dict)
    assert status["status"] == "running"
    with pytest.raises(VmError, match="CommandNotFound"):
        await vm.qmp("no-such-command")
    where = (await vm.where_it_is()).splitlines()
    assert len(where) == MACHINE.cpus
    assert all("IP=" in cpu and "HLT=" in cpu for cpu in where), where
    await agent.run(["sh", "-c", "echo mark-1 >/dev/console"])
    await vm.console_match(rb"mark-\d")
    assert b"mark-1" in await asyncio.to_thread(vm.layout.console_log.read_bytes)
    with pytest.raises(VmError, match="mark-1"):
        await vm.console_match(rb"never printed", timeout_s=0.1)


async def test_the_guest_powers_off() -> None:
    async with Vm(MACHINE, await find_accel(KERNEL), short_directory()) as vm:
        agent = Agent(vm.layout.channel(_CHANNEL))
        async with agent:
            with pytest.raises(AgentGoneError):
                await agent.run(["poweroff", "-f"])
        assert await vm.wait() == "guest-shutdown"
        assert vm.state is State.STOPPED
        with pytest.raises(VmError, match="stopped, not running"):
            await vm.qmp("query-status")


async def test_a_panic_ends_the_machine_and_is_reported() -> None:
    machine = Machine(KERNEL, cmdline="quiet", memory_mib=256, cpus=1)
    async with Vm(machine, await find_accel(KERNEL), short_directory()) as vm:
        assert await vm.wait() == "guest-reset"
        assert "Unable to mount root fs" in str(vm.failure("x"))


async def test_a_file_that_is_not_there() -> None:
    machine = Machine(KERNEL, drives=(Drive(Path("/no/such/disk"), "root"),))
    vm = Vm(machine, Accel.TCG, short_directory())
    with pytest.raises(VmError, match="/no/such/disk"):
        await vm.start()
    assert vm.state is State.STOPPED


async def test_the_machine_dies_with_its_owner() -> None:
    script = (
        "import asyncio, sys, pathlib\n"
        f"sys.path[:] = {sys.path!r}\n"
        "from osbase.test.qemu.config import Accel, Machine\n"
        "from osbase.test.qemu.vm import Vm\n"
        "async def main():\n"
        f"    machine = Machine(pathlib.Path({str(KERNEL)!r}), memory_mib=256)\n"
        f"    vm = Vm(machine, Accel.TCG, pathlib.Path({str(short_directory())!r}))\n"
        "    await vm.start()\n"
        "    print(vm.pid, flush=True)\n"
        "    await vm.wait()\n"
        "asyncio.run(main())\n"
    )
    owner = await asyncio.create_subprocess_exec(
        sys.executable, "-c", script, stdout=asyncio.subprocess.PIPE
    )
    assert owner.stdout is not None
    qemu = os.pidfd_open(int(await owner.stdout.readline()))
    owner.kill()
    await owner.wait()
    ended = asyncio.Event()
    asyncio.get_running_loop().add_reader(qemu, ended.set)
    try:
        async with asyncio.timeout(20):
            await ended.wait()
    finally:
        asyncio.get_running_loop().remove_reader(qemu)
        os.close(qemu)


async def test_stop_kills_what_does_not_answer() -> None:
    machine = Machine(KERNEL, cmdline="quiet", memory_mib=256)
    vm = Vm(machine, Accel.TCG, short_directory())
    await vm.start()
    os.kill(vm.pid, signal.SIGSTOP)
    await vm.stop()
    assert vm.state is State.STOPPED


async def test_the_probe_boots_a_kernel() -> None:
    assert await probe(KERNEL, Accel.TCG, timeout_s=60) == ""
    assert "did not end within" in await probe(KERNEL, Accel.TCG, timeout_s=0.5)
