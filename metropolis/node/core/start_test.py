# SPDX-License-Identifier: Apache-2.0
"""The foreign modules that are loaded when workloads are served.

Our own are not listed. A module that is new here costs every start, and every
boot of a machine in a test: import it where it is used, or add it to LISTED.
Names with an underscore come with those without.
"""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from metropolis.node.core import cluster, start

SERVE = "metropolis.node.core.network.workloads.api.serve"
MAIN = "metropolis.node.core.main"
LIMIT_S = 120
OVERLAY = "metropolis.node.core.network.overlay.overlay"
OURS = ("metropolis", "osbase")

LISTED = """
annotationlib argparse ast asyncio asyncio.base_events asyncio.base_futures
asyncio.base_subprocess asyncio.base_tasks asyncio.constants asyncio.coroutines
asyncio.events asyncio.exceptions asyncio.format_helpers asyncio.futures
asyncio.graph asyncio.locks asyncio.log asyncio.mixins asyncio.protocols
asyncio.queues asyncio.runners asyncio.selector_events asyncio.staggered
asyncio.streams asyncio.subprocess asyncio.taskgroups asyncio.tasks
asyncio.threads asyncio.timeouts asyncio.transports asyncio.trsock
asyncio.unix_events binascii bisect collections collections.abc concurrent
concurrent.futures concurrent.futures._base concurrent.futures.thread contextlib
contextvars copy copyreg ctypes ctypes._endian cython_runtime dataclasses
datetime dis encodings.ascii encodings.raw_unicode_escape
encodings.unicode_escape enum fcntl fnmatch functools gc gettext glob google
google._upb google._upb._message google.protobuf google.protobuf.descriptor
google.protobuf.descriptor_database google.protobuf.descriptor_pool
google.protobuf.internal google.protobuf.internal.api_implementation
google.protobuf.internal.builder google.protobuf.internal.containers
google.protobuf.internal.decoder google.protobuf.internal.encoder
google.protobuf.internal.enum_type_wrapper google.protobuf.internal.field_mask
google.protobuf.internal.python_edition_defaults
google.protobuf.internal.type_checkers google.protobuf.internal.well_known_types
google.protobuf.internal.wire_format google.protobuf.message
google.protobuf.message_factory google.protobuf.pyext
google.protobuf.pyext.cpp_message google.protobuf.reflection
google.protobuf.runtime_version google.protobuf.symbol_database
google.protobuf.text_encoding google.protobuf.text_format grp grpc
grpc._compression grpc._cython grpc._cython.cygrpc grpc._grpcio_metadata
grpc._observability grpc._runtime_protos grpc._typing grpc.tools grpc_tools
hashlib heapq inspect ipaddress itertools json json.decoder json.encoder
json.scanner keyword locale logging math numbers opcode operator pathlib
pathlib._os pwd queue random re re._casefix re._compiler re._constants
re._parser reprlib resource select selectors signal socket string struct
subprocess tempfile threading token traceback typing warnings weakref zlib
"""

# Prints the modules when the program ends, first those that are still deferred.
RUN = """
import atexit, runpy, sys
plain = set(sys.modules)
def names():
    from osbase.imports import waits
    made = {name: module for name, module in sys.modules.items() if module is not None}
    print("waiting", *(name for name, module in made.items() if waits(module)))
    print("loaded", *(name for name in made if name not in plain))
atexit.register(names)
del sys.argv[0]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""


def serving(log: Path, *arguments: str) -> dict[str, set[str]]:
    """Run a program until it serves; return what it has loaded."""
    with log.open("w") as written:
        program = subprocess.Popen(
            [sys.executable, "-c", RUN, *arguments],
            stdout=written, stderr=subprocess.STDOUT,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "PYTHONUNBUFFERED": "1"},
        )  # fmt: skip
    try:
        # `tail` ends with the program, so a failure to start is seen.
        with subprocess.Popen(
            ["tail", "--pid", str(program.pid), "-s", "0.02", "-n", "+1", "-f", log],
            stdout=subprocess.PIPE, text=True,
        ) as tail:  # fmt: skip
            assert tail.stdout is not None
            for line in tail.stdout:
                if line == "ready\n" or "workload.sock" in line:
                    break
            tail.kill()
        program.send_signal(signal.SIGTERM)
        assert program.wait(LIMIT_S) == 0, log.read_text()
    finally:
        program.kill()
        program.wait()
    return {
        kind: set(names.split())
        for kind, names in re.findall(r"^(waiting|loaded) (.*)$", log.read_text(), re.MULTILINE)
    }


def arguments_of(program: str, tmp_path: Path) -> list[str]:
    if program == SERVE:
        return [f"--socket={tmp_path}/workload.sock", "--prefix=10.192.0.0/24"]
    config = tmp_path / "node.textproto"
    config.write_text('network { pod_prefix: "10.192.0.0/24" pod_prefix: "fd00:10:192::/112" }')
    return [
        f"--config={config}", f"--runtime-dir={tmp_path}/run/network", f"--state-dir={tmp_path}",
    ]  # fmt: skip


@pytest.mark.parametrize("program", [SERVE, MAIN])
def test_what_is_loaded_when_it_serves(program: str, tmp_path: Path) -> None:
    found = serving(tmp_path / "log", program, *arguments_of(program, tmp_path))
    foreign = {name for name in found["loaded"] if not name.startswith((*OURS, "_"))}
    foreign -= found["waiting"]
    unlisted = sorted(foreign.difference(LISTED.split()))
    assert not unlisted, f"{program} loads before it serves: {', '.join(unlisted)}"
    used = sorted(found["loaded"].intersection(start.LATER) - found["waiting"])
    assert not used, f"{program} uses before it serves, although deferred: {', '.join(used)}"
    assert not found["loaded"].intersection(start.NEVER)


@pytest.mark.parametrize("module", [cluster.CURATOR, OVERLAY])
def test_what_is_loaded_later_can_be(module: str) -> None:
    """Also what is refused until then."""
    program = (
        "import metropolis.node.core.start\n"
        "from metropolis.node.core.cluster import load\n"
        f"load({module!r})\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True, text=True, check=False, timeout=LIMIT_S,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
