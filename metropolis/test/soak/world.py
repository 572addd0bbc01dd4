# SPDX-License-Identifier: Apache-2.0
"""A namespace that represents a node, and a service process that may die."""

import signal
import subprocess
import sys
from pathlib import Path

import grpc

from metropolis.node.core.network.rules import host_ports
from metropolis.node.core.network.workloads.spec import workload_pb2_grpc as rpc
from metropolis.test.world.namespaces import Netns, WorldError
from osbase.nftables import Nftables

_SERVE = "metropolis.node.core.network.workloads.api.serve"
_END_S = 30.0


def _make_host_ports() -> None:
    """Make the table of host ports, as the network service does."""
    with Nftables() as nft:
        nft.apply(host_ports.render())


class Host:
    """A namespace that represents a node, and the service in it.

    Call `start`, `kill` and `end` from one thread that lives as long as the
    program: the kernel ends the service with that thread.
    """

    def __init__(self, name: str, prefixes: tuple[str, ...], log: Path) -> None:
        self.name = name
        self.netns = Netns()
        self.netns.inside(_make_host_ports)
        self._prefixes = prefixes
        self._socket = f"/run/{name}/workload.sock"
        self._log = log
        self._process: subprocess.Popen[str] | None = None
        # Calls wait for a service that is being restarted, and notice soon.
        backoff = ("initial", "max")
        self._channel = grpc.insecure_channel(
            f"unix:{self._socket}",
            options=[(f"grpc.{which}_reconnect_backoff_ms", 50) for which in backoff],
        )
        self.stub = rpc.WorkloadNetworkingStub(self._channel)

    @property
    def pid(self) -> int:
        """Return the service's process id."""
        assert self._process is not None, "a host that was started"
        return self._process.pid

    def start(self) -> None:
        """Start the service; return when it serves. Raises WorldError."""
        command = ["setpriv", "--pdeathsig", "KILL", sys.executable, "-m", _SERVE]
        command += ["--socket", self._socket]
        command += [f"--prefix={prefix}" for prefix in self._prefixes]

        def spawn() -> subprocess.Popen[str]:
            with self._log.open("ab") as log:
                return subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    text=True,
                    start_new_session=True,  # Ctrl-C is for the driver
                )

        self._process = self.netns.inside(spawn)
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if line != "ready\n":
            status = self._process.wait(_END_S)
            raise WorldError(f"the service said {line!r}, ended with {status}; see {self._log}")

    def kill(self) -> None:
        """Kill the service by SIGKILL."""
        self._stop(signal.SIGKILL)

    def hang_up(self) -> None:
        """Kill the service by SIGKILL, and close the channel."""
        try:
            self.kill()
        finally:
            self._channel.close()

    def end(self) -> int:
        """End the service by SIGTERM; return the exit status."""
        return self._stop(signal.SIGTERM)

    def _stop(self, number: int) -> int:
        process, self._process = self._process, None
        if process is None:
            return 0
        process.send_signal(number)
        assert process.stdout is not None
        process.stdout.close()
        try:
            return process.wait(_END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise WorldError(f"{self.name}: the service did not end in {_END_S:g} s") from None

    def close(self) -> None:
        """End the service if it runs, and the namespace."""
        try:
            self._stop(signal.SIGKILL)
        finally:
            self._channel.close()
            self.netns.close()
