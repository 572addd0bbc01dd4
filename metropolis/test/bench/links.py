# SPDX-License-Identifier: Apache-2.0
"""veth beside netkit as the pair of a pod: what each costs, what each can do.

    ./bazelw run //metropolis/test/bench:links [-- --json] [-- --instructions]

Boots one machine (the node's kernel has netkit, hosts may not), attaches pods
in it as the service does, and measures the kinds in turns:

    attach        the datapath's messages, dual stack, in its three sends,
                  encoded beforehand: what the kernel needs, not Python
    delete        one, and many by their group in one request
    TCP_RR        netperf from pod to pod through the host's rules and routes
    TCP_STREAM    likewise

Limits. An emulated CPU (no KVM) has no caches and no pipeline, its memory
accesses and wake-ups of another CPU are dear: absolute figures mean nothing,
ratios are dulled by what is the same for all kinds. --instructions boots a
machine whose clock counts instructions instead; its traffic figures repeat to a
percent, but an instruction that misses the cache costs the same as any other.
Waiting (deletes, and more than one CPU: RCU) is not executing: there its clock
is the host's. netkit's own gain, BPF in place of rules and routes, is not
measured: our datapath has none.

    links            the command: the machine
    links_report     figures from samples; table and JSON      pure
    links_model      what host and guest tell each other       pure
    links_messages   netlink messages of an attach             pure
    links_guest      the program in the guest
    links_pods, links_traffic, links_abilities    its parts
"""

import argparse
import asyncio
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from metropolis.node.core.network import rules, sysctls
from metropolis.test.bench import links_report as report
from metropolis.test.bench.links_model import LinksError, Measured, Plan
from osbase.test.agent.client import Agent, AgentError
from osbase.test.qemu.accel import find_accel
from osbase.test.qemu.config import Accel, Drive, Machine
from osbase.test.qemu.vm import QEMU, Vm, VmError

_CHANNEL = "dev.metropolis.agent"
_BOOT_TIMEOUT_S = 120.0
_CODE = "/tools/bench"
_PLAN = "/tmp/plan.json"
_SINGLES = 10  # links deleted one by one; a grace period each

_WORKSPACE = Path(__file__).parents[3]
_FILES = {
    "kernel": "osbase/boot/bzImage",
    "initramfs": "osbase/boot/initramfs.cpio.zst",
    "root": "osbase/test/vm/root.erofs",
    "tools": "metropolis/test/bench/links_disk.erofs",
}


def say(message: str) -> None:
    """Progress."""
    print(message, file=sys.stderr, flush=True)


def plan(rounds: int, samples: int) -> Plan:
    """samples: pods attached a round and kind; traffic grows with it."""
    return Plan(
        rounds=rounds,
        attaches=samples + _SINGLES,
        singles=_SINGLES,
        transactions=samples * 30,
        stream_kib=samples * 512,
        sysctls=tuple((one.path, one.value) for one in sysctls.NODE),
        rules=rules.render(),
    )


async def measure(
    todo: Plan, *, cpus: int, instructions: bool, directory: Path
) -> tuple[Accel, Measured]:
    """Boot the machine, measure in it. LinksError, VmError, AgentError."""
    files = {name: (_WORKSPACE / path).resolve() for name, path in _FILES.items()}
    machine = Machine(
        kernel=files["kernel"],
        initrd=files["initramfs"],
        cmdline="quiet",
        drives=(Drive(files["root"], "root"), Drive(files["tools"], "tools")),
        channels=(_CHANNEL,),
        cpus=cpus,
    )
    accel = Accel.ICOUNT if instructions else await find_accel(machine.kernel)
    vm = Vm(machine, accel, directory)
    async with vm, Agent(vm.layout.channel(_CHANNEL)) as agent:
        try:
            async with asyncio.timeout(_BOOT_TIMEOUT_S):
                await agent.write_file(_PLAN, todo.to_json().encode())
        except TimeoutError:
            raise vm.failure(f"no agent after {_BOOT_TIMEOUT_S:g} s") from None
        say(f"the machine is up ({accel.value})")
        try:
            found = await _run(agent)
        except AgentError as error:
            # A panic, mostly: what the kernel said is what matters.
            raise vm.failure(str(error)) from error
    if instructions:
        found = replace(found, samples=tuple(report.as_instructions(found.samples)))
    return accel, found


async def _run(agent: Agent) -> Measured:
    """Run the guest's program, its progress on our standard error."""
    environment = {
        "PATH": "/usr/sbin:/usr/bin:/tools/usr/bin",
        "HOME": "/tmp",
        "LANG": "C.UTF-8",
        "PYTHONPATH": _CODE,
    }
    command = ["python3", "-s", "-m", "metropolis.test.bench.links_guest", _PLAN]
    async with agent.exec(command, environment) as process:

        async def relay() -> None:
            while data := await process.read(1):
                sys.stderr.write(data.decode(errors="replace"))
                sys.stderr.flush()

        output, _ = await asyncio.gather(process.read_all(0), relay())
        status = await process.wait()
    if status:
        raise LinksError(f"the guest's program ended with status {status}")
    return Measured.from_json(output.decode())


def describe(accel: Accel, todo: Plan, found: Measured) -> dict[str, str | int]:
    """On what was measured, and how much."""
    cpu = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    qemu = subprocess.run([QEMU, "--version"], check=True, capture_output=True, text=True).stdout
    return {
        "cpu": cpu,
        "cores": len(os.sched_getaffinity(0)),
        "kernel": platform.release(),
        "load": " ".join(f"{load:.2f}" for load in os.getloadavg()),
        "qemu": qemu.split()[3],
        "accel": accel.value,
        **found.versions,
        "rounds": todo.rounds,
        "attaches": todo.attaches,
        "transactions": todo.transactions,
        "stream_kib": todo.stream_kib,
    }


def run(todo: Plan, *, cpus: int, instructions: bool) -> tuple[dict[str, str | int], Measured]:
    """All of it; the machine is gone and its files, too, when this returns."""
    # Bazel's own directories are too deep for unix sockets.
    directory = Path(tempfile.mkdtemp(prefix="m-links-", dir="/tmp"))
    try:
        work = measure(todo, cpus=cpus, instructions=instructions, directory=directory)
        accel, found = asyncio.run(work)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    return describe(accel, todo, found), found


def positive(text: str) -> int:
    """A number of at least 1."""
    if (number := int(text)) < 1:
        raise ValueError(text)
    return number


def main(arguments: Sequence[str]) -> int:
    """Run the command; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="links",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rounds", type=positive, default=5)
    parser.add_argument(
        "--samples", type=positive, default=100, help="attaches a round; traffic in proportion"
    )
    parser.add_argument("--cpus", type=positive, help="of the machine; 2, or 1 for instructions")
    parser.add_argument("--json", action="store_true", help="print one line of JSON, no table")
    parser.add_argument(
        "--instructions", action="store_true", help="count instructions instead of time"
    )
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        todo = plan(options.rounds, options.samples)
        cpus = options.cpus or (1 if options.instructions else 2)
        machine, found = run(todo, cpus=cpus, instructions=options.instructions)
    except (AgentError, LinksError, VmError) as error:
        say(f"links: {error}")
        return 1
    except KeyboardInterrupt:
        say("links: interrupted; the machine is gone")
        return 130
    if options.json:
        print(json.dumps(report.to_json(machine, found)))
    else:
        print(report.table(machine, found))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
