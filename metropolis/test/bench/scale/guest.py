# SPDX-License-Identifier: Apache-2.0
"""The program on the node: its clock, its kernel's events, node core's usage.

One request a line on stdin, one answer a line on stdout:

    ping           {"now_s": of CLOCK_MONOTONIC, the clock of events}
    events         {"lines": since the last time}
    usage          {"process", "begun_s", "cpu_s", "rss_kib", "threads",
                    "slab_kib": of WireGuard's peers and allowed IPs,
                    "available_kib"}; while there is none, {"process": 0}

Events stay in the kernel's buffer until they are requested: nothing runs here
during a measurement. Standard library only; ends with stdin.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

_TRACING = Path("/sys/kernel/tracing")
_INSTANCE = _TRACING / "instances/scale"
_PID = Path("/run/sv/node-core/supervise/pid")
_MODULE = b"metropolis.node.core.main"
_BUFFER_KIB = 16384  # a CPU
# Kernels with BTF resolve an argument's name and its members
# (Documentation/trace/kprobetrace.rst).
_PROBES = (
    "p:scale/nl_begin netlink_sendmsg len=len protocol=sock->sk->sk_protocol:u16",
    "r:scale/nl_end netlink_sendmsg ret=$retval:s32",
)


def _write(path: Path, text: str) -> None:
    """Write a file, opened for writing only, as tracefs requires."""
    fd = os.open(path, os.O_WRONLY | os.O_APPEND)
    try:
        os.write(fd, text.encode())
    except OSError as error:
        log = (_TRACING / "error_log").read_text()[-1000:]
        raise SystemExit(f"write {text!r} to {path}: {error.strerror}\n{log}") from error
    finally:
        os.close(fd)


def begin(port: int) -> int:
    """Switch the events on; return a non-blocking descriptor of them."""
    for probe in _PROBES:
        _write(_TRACING / "kprobe_events", probe)
    _INSTANCE.mkdir(exist_ok=True)
    _write(_INSTANCE / "trace_clock", "mono")
    _write(_INSTANCE / "buffer_size_kb", str(_BUFFER_KIB))
    _write(_INSTANCE / "options/record-tgid", "1")
    _write(_INSTANCE / "events/tcp/tcp_probe/filter", f"dport == {port} && data_len > 0")
    _write(_INSTANCE / "events/tcp/tcp_probe/enable", "1")
    _write(_INSTANCE / "events/scale/enable", "1")
    return os.open(_INSTANCE / "trace_pipe", os.O_RDONLY | os.O_NONBLOCK)


def events(pipe: int) -> list[str]:
    """Return the events since the last call."""
    data = bytearray()
    while True:
        try:
            part = os.read(pipe, 65536)
        except BlockingIOError:
            break
        if not part:
            break
        data += part
    return data.decode().splitlines()


def usage() -> dict[str, Any]:
    """Return the usage of node core's present process, and of the machine."""
    process = int(_PID.read_text())
    # Between two runs it is the process of runit's scripts.
    if _MODULE not in Path(f"/proc/{process}/cmdline").read_bytes().split(b"\0"):
        raise ValueError(f"process {process} is not node core")
    status = _fields(Path(f"/proc/{process}/status"))
    # The clock of a process's CPU time (linux/posix-timers.h: CPUCLOCK_SCHED).
    cpu_s = time.clock_gettime((~process << 3) | 2)
    begun = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[19]
    slab = 0
    for line in Path("/proc/slabinfo").read_text().splitlines()[2:]:
        name, _, objects, size = line.split()[:4]
        if name in ("wg_peer", "allowedips_node"):
            slab += int(objects) * int(size)
    return {
        "process": process,
        "begun_s": int(begun) / os.sysconf("SC_CLK_TCK"),
        "cpu_s": cpu_s,
        "rss_kib": int(status["VmRSS"].split()[0]),
        "threads": int(status["Threads"]),
        "slab_kib": slab // 1024,
        "available_kib": int(_fields(Path("/proc/meminfo"))["MemAvailable"].split()[0]),
    }


def _fields(path: Path) -> dict[str, str]:
    lines = (line.partition(":") for line in path.read_text().splitlines())
    return {name: value.strip() for name, _, value in lines}


def main() -> None:
    """The one argument: etcd's port."""
    pipe = begin(int(sys.argv[1]))
    for line in sys.stdin:
        answer: dict[str, Any]
        if line.strip() == "ping":
            answer = {"now_s": time.monotonic()}
        elif line.strip() == "events":
            answer = {"lines": events(pipe)}
        else:
            try:
                answer = usage()
            except KeyError, OSError, ValueError:  # it is ending, or starting
                answer = {"process": 0}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
