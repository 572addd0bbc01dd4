# SPDX-License-Identifier: Apache-2.0
"""veth beside netkit as the pair of a pod: the cost and the features of each.

    ./bazelw run //metropolis/test/bench/links [-- --json] [-- --instructions]

Boots one machine (the node's kernel has netkit, hosts may not), attaches pods
in it as the service does, and measures the kinds alternately:

    attach        the datapath's messages, dual stack, in its three sends,
                  encoded beforehand: the kernel's time, without Python's
    delete        one, and many by their group in one request
    TCP_RR        netperf from pod to pod through the host's rules and routes
    TCP_STREAM    the same way

Limits. An emulated CPU (no KVM) has no caches and no pipeline; its memory
accesses and wake-ups of another CPU are expensive. So absolute figures mean
nothing, and costs common to all kinds bring ratios closer to 1. --instructions
boots a machine whose clock counts instructions instead; its traffic figures
repeat to a percent, but a cache miss costs the same as any other instruction.
Waiting (deletes, and more than one CPU: RCU) is not executing: there its clock
is the host's. netkit's own gain, BPF in place of rules and routes, is not
measured: our datapath has none.
"""

import argparse
import asyncio
import json
import shutil
import signal
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from metropolis.node.core.network import sysctls
from metropolis.node.core.network.rules.base import render
from metropolis.node.core.network.rules.settings import Settings
from metropolis.test.bench.common import vm
from metropolis.test.bench.common.errors import BenchError
from metropolis.test.bench.common.terminal import positive, say
from metropolis.test.bench.common.vm import CHANNEL, WORKSPACE
from metropolis.test.bench.links import report
from metropolis.test.bench.links.model import Measured, Plan
from osbase.test.agent.client import AgentError
from osbase.test.qemu.accel import find_accel
from osbase.test.qemu.config import Accel, Drive, Machine
from osbase.test.qemu.vm import VmError

_BOOT_TIMEOUT_S = 120.0
_CODE = "/tools/bench"
_MODULE = "metropolis.test.bench.links.guest"
_SINGLES = 10  # links deleted one by one; a grace period each

_FILES = {
    "kernel": "osbase/boot/vmlinux",
    "initramfs": "osbase/boot/initramfs.cpio.zst",
    "root": "osbase/test/vm/root.erofs",
    "tools": "metropolis/test/bench/links/disk.erofs",
}


def plan(rounds: int, samples: int) -> Plan:
    """Make a plan. samples: pods per round and kind; traffic grows with it."""
    return Plan(
        rounds=rounds,
        attaches=samples + _SINGLES,
        singles=_SINGLES,
        transactions=samples * 30,
        stream_kib=samples * 512,
        sysctls=tuple((one.path, one.value) for one in sysctls.NODE),
        rules=render(Settings()),
    )


async def measure(
    todo: Plan, *, cpus: int, instructions: bool, directory: Path
) -> tuple[Accel, Measured]:
    """Boot and measure. Raises BenchError, VmError, AgentError."""
    files = {name: (WORKSPACE / path).resolve() for name, path in _FILES.items()}
    machine = Machine(
        kernel=files["kernel"],
        initrd=files["initramfs"],
        cmdline="quiet",
        drives=(Drive(files["root"], "root"), Drive(files["tools"], "tools")),
        channels=(CHANNEL,),
        cpus=cpus,
    )
    accel = Accel.ICOUNT if instructions else await find_accel(machine.kernel)
    environment = {"PATH": "/usr/sbin:/usr/bin:/tools/usr/bin", "PYTHONPATH": _CODE}
    output = await vm.run(
        machine, accel, directory, _MODULE, todo.to_json(), environment, _BOOT_TIMEOUT_S
    )
    found = Measured.from_json(output)
    if instructions:
        found = replace(found, samples=tuple(report.as_instructions(found.samples)))
    return accel, found


def describe(accel: Accel, todo: Plan, found: Measured) -> dict[str, str | int]:
    """Describe the machine and the amount of measurements."""
    return {
        **vm.describe(accel),
        **found.versions,
        "rounds": todo.rounds,
        "attaches": todo.attaches,
        "transactions": todo.transactions,
        "stream_kib": todo.stream_kib,
    }


def run(todo: Plan, *, cpus: int, instructions: bool) -> tuple[dict[str, str | int], Measured]:
    """Run everything; the machine and its files are removed at the end."""
    # Bazel's own directories are too deep for unix sockets.
    directory = Path(tempfile.mkdtemp(prefix="m-links-", dir="/tmp"))
    try:
        work = measure(todo, cpus=cpus, instructions=instructions, directory=directory)
        accel, found = asyncio.run(work)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    return describe(accel, todo, found), found


def main(arguments: Sequence[str]) -> int:
    """Run the command; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="links",
        usage="%(prog)s [options]",
        epilog="exit status: 0 measured, 1 something failed, 2 wrong arguments, 130 after Ctrl-C",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--rounds", metavar="N", type=positive, default=5,
        help="rounds, of which figures are medians; default: %(default)s",
    )  # fmt: skip
    parser.add_argument(
        "--samples", metavar="N", type=positive, default=100,
        help="attaches a round; traffic in proportion; default: %(default)s",
    )  # fmt: skip
    parser.add_argument(
        "--cpus", metavar="N", type=positive,
        help="of the machine; default: 2, with --instructions 1",
    )  # fmt: skip
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
    except (AgentError, BenchError, VmError) as error:
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
