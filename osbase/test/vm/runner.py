# SPDX-License-Identifier: Apache-2.0
"""The host's side of vm_pytest: boot, run pytest in the guest, fetch results.

Bazel's test protocol (TESTBRIDGE_TEST_ONLY, sharding, XML_OUTPUT_FILE,
TEST_UNDECLARED_OUTPUTS_DIR) is passed through to the guest.
"""

import argparse
import asyncio
import io
import os
import shutil
import signal
import sys
import tarfile
import tempfile
import time
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from pathlib import Path

from osbase.test.agent.client import Agent, AgentError
from osbase.test.qemu import outputs
from osbase.test.qemu.accel import find_accel
from osbase.test.qemu.config import Drive, Machine
from osbase.test.qemu.vm import Vm, VmError

_CHANNEL = "dev.metropolis.agent"
_BOOT_TIMEOUT_S = 120.0
_OUT = "/tmp/test"
# The part of Bazel's test environment that has a meaning in the guest.
_PASSED = (
    "HYPOTHESIS_PROFILE",
    "TESTBRIDGE_TEST_ONLY",
    "TEST_FILTER_OF_MANY",
    "TEST_RANDOM_SEED",
    "TEST_SHARD_INDEX",
    "TEST_TARGET",
    "TEST_TOTAL_SHARDS",
)


def guest_environment() -> dict[str, str]:
    """Return the environment of pytest in the guest."""
    passed = {name: os.environ[name] for name in _PASSED if name in os.environ}
    return {
        "PATH": "/usr/sbin:/usr/bin",
        "HOME": "/tmp",
        "LANG": "C.UTF-8",
        "TEST_TMPDIR": "/tmp",
        "TEST_UNDECLARED_OUTPUTS_DIR": f"{_OUT}/outputs",
        "TEST_SHARD_STATUS_FILE": f"{_OUT}/shard",
        "XML_OUTPUT_FILE": f"{_OUT}/test.xml",
        **passed,
    }


async def _copy(agent: Agent, arguments: Sequence[str]) -> int:
    """Run the test in the guest; copy its output to ours meanwhile."""
    async with agent.exec(["/tools/test", *arguments], guest_environment()) as process:
        process.finish()

        async def out(channel: int) -> None:
            while data := await process.read(channel):
                sys.stdout.buffer.write(data)
                sys.stdout.buffer.flush()

        await asyncio.gather(out(0), out(1))
        return await process.wait()


async def _bring_back(agent: Agent) -> None:
    """Fetch JUnit XML and undeclared outputs."""
    if target := os.environ.get("XML_OUTPUT_FILE"):
        try:
            await asyncio.to_thread(
                Path(target).write_bytes, await agent.read_file(f"{_OUT}/test.xml")
            )
        except AgentError as error:
            print(f"vm_pytest: no report from the guest: {error}")
    if (kept := outputs.directory()) is not None:
        packed = await agent.run(["tar", "-C", f"{_OUT}/outputs", "-c", "."])
        with tarfile.open(fileobj=io.BytesIO(packed.stdout)) as tar:
            tar.extractall(kept, filter="data")
    if shard := os.environ.get("TEST_SHARD_STATUS_FILE"):
        await asyncio.to_thread(Path(shard).touch)


async def run(options: argparse.Namespace, directory: Path) -> int:
    """Boot the machine and run the test; return pytest's exit status."""
    begin = time.monotonic()
    machine = Machine(
        kernel=options.kernel.resolve(),
        initrd=options.initramfs.resolve(),
        cmdline=f"quiet {options.cmdline}".rstrip(),
        drives=(Drive(options.root.resolve(), "root"), Drive(options.disk.resolve(), "tools")),
        channels=(_CHANNEL,),
        memory_mib=options.memory,
    )
    vm = Vm(machine, await find_accel(machine.kernel), directory)
    async with vm, Agent(vm.layout.channel(_CHANNEL)) as agent:
        try:
            async with asyncio.timeout(_BOOT_TIMEOUT_S):
                await agent.run(["mkdir", "-p", f"{_OUT}/outputs"])
        except TimeoutError:
            raise vm.failure(f"no agent after {_BOOT_TIMEOUT_S:g} s") from None
        print(f"vm_pytest: the machine is up after {time.monotonic() - begin:.1f} s", flush=True)
        try:
            status = await _copy(agent, options.arguments)
            await _bring_back(agent)
            if status:
                tail = vm.console_tail() or "(nothing)"
                print(f"vm_pytest: FAILED; the end of the console:\n{tail}", flush=True)
        except AgentError as error:
            # Usually a panic: the kernel's messages explain it.
            raise vm.failure(str(error)) from error
    return status


def failed(report: str | None) -> bool:
    """Return whether a JUnit report exists and contains a failure."""
    if report is None or not Path(report).is_file():
        return False
    return ET.parse(report).find(".//failure") is not None


def main(arguments: Sequence[str]) -> int:
    """Run the command; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("kernel", "initramfs", "root", "disk"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--memory", type=int, required=True)
    parser.add_argument("--cmdline", default="")
    parser.add_argument("--expect-failure", action="store_true")
    parser.add_argument("arguments", nargs="*")
    options = parser.parse_args(arguments)
    # Bazel ends a test that takes too long by SIGTERM; leave as for Ctrl-C.
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    # Bazel's own directories are too deep for unix sockets.
    directory = Path(tempfile.mkdtemp(prefix="m-vm-", dir="/tmp"))
    status = 1
    try:
        status = asyncio.run(run(options, directory))
    except (AgentError, VmError) as error:
        print(f"vm_pytest: {error}")
        return 1
    except KeyboardInterrupt:
        log = directory / "console.log"
        tail = log.read_text(errors="replace")[-8000:] if log.exists() else ""
        print(f"vm_pytest: ended from outside; the console:\n{tail}")
        return 1
    finally:
        if (kept := outputs.directory()) is not None:
            for name in ("console.log", "qemu.log"):
                if (directory / name).exists():
                    shutil.copy(directory / name, kept)
            if status:
                print(f"vm_pytest: {outputs.listing(kept)}", flush=True)
        shutil.rmtree(directory, ignore_errors=True)
    if options.expect_failure:
        report = os.environ.get("XML_OUTPUT_FILE")
        has_failure = failed(report)
        if report is not None:
            Path(report).unlink(missing_ok=True)
        print(f"vm_pytest: expected a failure; status {status}, reported: {has_failure}")
        return 0 if status == 1 and has_failure else 1
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
