# SPDX-License-Identifier: Apache-2.0
"""Pods by our containerd beside stock containerds: the cost of networking.

    ./bazelw run //metropolis/test/bench/runtimes [-- --json] [-- --quick]

It takes 15 to 25 minutes without KVM. It boots one machine from a special
image: the node's, with both containerds and CNI's plugins. In it run node core
with the workload network service, and three containerds with separate files
and sockets:

    ours            our containerd, which asks the service itself
    stock + CNI     Debian's, with CNI's bridge and portmap (host-local,
                    masquerading, dual stack), as containerd's script
                    install-cni sets them up; iptables-nft
    stock + shim    Debian's, with our exec shim as its only CNI plugin
    host network    pods with the node's network, on ours: the floor

Figures:

    RunPodSandbox            ms, one at a time; the same for
                             Stop+RemovePodSandbox, both calls together
    ...: network             ms of it in the network plugin, or its substitute,
                             by containerd's own metrics. A pod's network is
                             torn down by StopPodSandbox, and again by
                             RemovePodSandbox
    ... at N                 pods a second, N at once
    ... at N: network        ms in the plugin, mean of these N
    ...: processes           new ones (no threads), by the kernel's
                             tracepoints, counted apart from the timing
    ...: programs executed   the same, and which programs
    size in an image         containerd, its runc shim, ctr and the files of
                             their networks, as an erofs compressed like the
                             node's; and the same files unpacked

Method. Subjects alternate at every pod, in random order; before each turn the
kernel has removed the namespaces of the one before. The clock and the client
are in the machine. A figure is the median of the rounds' percentiles, a ratio
the median of the rounds' ratios. Each pod must have both addresses, and the
plugin must have been called for each.

Limits. There are sandboxes only: no containers, no images pulled. Emulation (no
KVM) slows down execution, such as starts of programs, more than waiting: so
absolute figures have no meaning elsewhere, and ratios little. The machine has
no uplink, so nothing is masqueraded.
Stock containerd has its default `loopback` plugin in stock + CNI, and brings lo
up itself in stock + shim.

Exit status: 0; 1 when it could not be measured; 2 for wrong arguments; 130
after Ctrl-C.
"""

import argparse
import asyncio
import json
import shutil
import signal
import stat
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from metropolis.test.bench.common import vm
from metropolis.test.bench.common.errors import BenchError
from metropolis.test.bench.common.terminal import positive, say
from metropolis.test.bench.common.vm import CHANNEL, WORKSPACE
from metropolis.test.bench.runtimes import report
from metropolis.test.bench.runtimes.model import Measured, Plan, Subject
from metropolis.test.bench.runtimes.report import Size
from osbase.build.erofs import ErofsError, Image
from osbase.test.agent.client import AgentError
from osbase.test.qemu.accel import find_accel
from osbase.test.qemu.config import Accel, ConfigError, Drive, Machine
from osbase.test.qemu.vm import VmError

_BOOT_TIMEOUT_S = 180.0
_MEMORY_MIB = 2048
_CODE = "/usr/lib/metropolis"
_MODULE = "metropolis.test.bench.runtimes.guest"

_FILES = {
    "kernel": "osbase/boot/vmlinux",
    "initramfs": "osbase/boot/initramfs.cpio.zst",
    "root": "metropolis/test/bench/runtimes/image.erofs",
    "tools": "osbase/test/agent/tools.erofs",
}
_LOCK = "third_party/debian/packages.lock"
_SIZES = {
    Subject.OURS: "metropolis/test/bench/runtimes/size_ours.erofs",
    Subject.CNI: "metropolis/test/bench/runtimes/size_cni.erofs",
    Subject.SHIM: "metropolis/test/bench/runtimes/size_shim.erofs",
}


async def measure(todo: Plan, *, cpus: int, directory: Path) -> tuple[Accel, Measured]:
    """Boot and measure. Raises BenchError, VmError, AgentError."""
    files = {name: (WORKSPACE / path).resolve() for name, path in _FILES.items()}
    machine = Machine(
        kernel=files["kernel"],
        initrd=files["initramfs"],
        cmdline="quiet",
        drives=(Drive(files["root"], "root"), Drive(files["tools"], "tools")),
        channels=(CHANNEL,),
        memory_mib=_MEMORY_MIB,
        cpus=cpus,
    )
    accel = await find_accel(machine.kernel)
    environment = {
        "PATH": "/usr/sbin:/usr/bin",
        "PYTHONPATH": f"{_CODE}:{_CODE}/site-packages",
    }
    output = await vm.run(
        machine, accel, directory, _MODULE, todo.to_json(), environment, _BOOT_TIMEOUT_S
    )
    return accel, Measured.from_json(output)


def describe(accel: Accel, todo: Plan, found: Measured) -> dict[str, Any]:
    """Describe the machine and the amount of measurements."""
    pins = json.loads((WORKSPACE / _LOCK).read_text())["packages"]
    return {
        **vm.describe(accel),
        **found.versions,
        "cni_plugins": pins["containernetworking-plugins"]["version"],
        "rounds": todo.rounds,
        "samples": todo.samples,
    }


def sizes() -> dict[Subject, Size]:
    """Return the size of each in an image. Raises BenchError."""
    found = {}
    for subject, name in _SIZES.items():
        path = WORKSPACE / name
        try:
            files = {node.path: node.size for node in Image(path).walk() if stat.S_ISREG(node.mode)}
            found[subject] = Size(path.stat().st_size, files)
        except (OSError, ErofsError) as error:
            raise BenchError(f"{path}: {error}") from error
    return found


def run(todo: Plan, *, cpus: int) -> tuple[dict[str, Any], Measured]:
    """Run everything; the machine and its files are removed at the end."""
    # Bazel's own directories are too deep for unix sockets.
    directory = Path(tempfile.mkdtemp(prefix="m-pods-", dir="/tmp"))
    try:
        accel, found = asyncio.run(measure(todo, cpus=cpus, directory=directory))
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    return describe(accel, todo, found), found


def plan(options: argparse.Namespace) -> Plan:
    """Return the plan of the options."""
    quick = options.quick
    return Plan(
        rounds=options.rounds or (1 if quick else 5),
        samples=options.samples or (1 if quick else 5),
        at_once=(2,) if quick else (1, 4, 8),
        repeats=1,
        counted=1 if quick else 3,
        seed=options.seed,
        warm_up=not quick,
    )


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse. Raises SystemExit for invalid arguments."""
    parser = argparse.ArgumentParser(
        prog="runtimes",
        usage="%(prog)s [options]",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--rounds", type=positive, help="rounds, of which figures are medians (default: 5)")
    add("--samples", type=positive, help="pods a round and subject, alone (default: 5)")
    add("--cpus", type=positive, default=2, help="of the machine (default: 2)")
    add("--seed", type=int, default=1, help="of the order of subjects (default: 1)")
    add("--json", action="store_true", help="print one line of JSON, no table")
    add("--quick", action="store_true", help="a few minutes: to see that it works, not how fast")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str]) -> int:
    """Run the command; return the exit status."""
    options = parse(arguments)
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        weighed = sizes()
        machine, found = run(plan(options), cpus=options.cpus)
    except (AgentError, BenchError, ConfigError, VmError) as error:
        say(f"runtimes: {error}")
        return 1
    except KeyboardInterrupt:
        say("runtimes: interrupted; the machine is gone")
        return 130
    if options.json:
        print(json.dumps(report.to_json(machine, found, weighed)))
    else:
        print(report.table(machine, found, weighed))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
