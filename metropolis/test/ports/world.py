# SPDX-License-Identifier: Apache-2.0
"""The namespaces of the truth table, and node core in one of them.

                       lan: a router, and the bridge of the node's network
    outside 198.51.100.2 ---- 192.0.2.1 br0 ---- up0 192.0.2.10, .11 node
                               |                      |---- pods
    203.0.113.20 other 192.0.2.20              203.0.113.0/24 by other

IPv6 has the same plan in 2001:db8::/32. All ends with `close`, and at the
latest with the process.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final

import grpc

from metropolis.node.core.network.workloads.spec import workload_pb2 as pb
from metropolis.node.core.network.workloads.spec import workload_pb2_grpc as rpc
from metropolis.test.ports.oracle import At, Client, HostIP, Mapping
from metropolis.test.world.namespaces import Netns, WorldError

PREFIXES: Final = {4: "10.192.0.0/24", 6: "fd00:10:192::/112"}
ADDRESSES: Final[dict[tuple[At, int], str]] = {
    (At.NODE, 4): "192.0.2.10",
    (At.NODE, 6): "2001:db8:2::10",
    (At.SECOND, 4): "192.0.2.11",
    (At.SECOND, 6): "2001:db8:2::11",
    (At.LOOPBACK, 4): "127.0.0.1",
    (At.LOOPBACK, 6): "::1",
    (At.LOOPBACK_53, 4): "127.0.0.53",
    (At.HOP, 4): "169.254.77.1",
    (At.HOP, 6): "fe80::1",
}
OUTSIDE: Final = {4: "198.51.100.2", 6: "2001:db8:51::2"}
OTHER: Final = {4: "192.0.2.20", 6: "2001:db8:2::20"}
BEHIND_OTHER: Final = {4: "203.0.113.20", 6: "2001:db8:113::20"}
DIRECTORY: Final = Path("/run/ports")
_SOCKET: Final = DIRECTORY / "network" / "workload.sock"
_LIMIT_S: Final = 60.0  # for what takes a second, on a busy machine
_READY: Final = (
    "root.network.workloads.prefixes: pod prefixes: ",
    "root.network.workloads.grpc: serving on",
)
_NOT_READY: Final = "none, not ready"
_PROBES: Final = "metropolis.test.ports.probes"
_LOG_TAIL: Final = 30

_LAN: Final = """\
link set lo up
link add br0 type bridge
link add p-node type veth peer name up0 netns {node}
link add p-other type veth peer name eth0 netns {other}
link add p-outside type veth peer name eth0 netns {outside}
link set p-node master br0 up
link set p-other master br0 up
link set br0 up
link set p-outside up
address add 192.0.2.1/24 dev br0
address add 2001:db8:2::1/64 dev br0 nodad
address add 198.51.100.1/24 dev p-outside
address add 2001:db8:51::1/64 dev p-outside nodad
route add 203.0.113.0/24 via 192.0.2.10
route add 2001:db8:113::/64 via 2001:db8:2::10
"""
_OUTSIDE: Final = """\
link set lo up
link set eth0 up
address add 198.51.100.2/24 dev eth0
address add 2001:db8:51::2/64 dev eth0 nodad
route add default via 198.51.100.1
route add default via 2001:db8:51::1
"""
_OTHER: Final = """\
link set lo up
link set eth0 up
address add 192.0.2.20/24 dev eth0
address add 2001:db8:2::20/64 dev eth0 nodad
address add 203.0.113.20/32 dev lo
address add 2001:db8:113::20/128 dev lo nodad
route add default via 192.0.2.1
route add default via 2001:db8:2::1
rule add from 203.0.113.20 lookup 100
route add default via 192.0.2.10 table 100
route add default via 2001:db8:2::10 table 100
"""
# The kernel sends few ICMP errors to one address, and some cells await one.
_PLENTY_OF_ERRORS: Final = (
    ("net/ipv4/icmp_ratelimit", "0"),
    ("net/ipv6/icmp/ratelimit", "0"),
    ("net/ipv6/conf/default/accept_dad", "0"),
)


_UPLINK: Final = """\
  uplink {
    name: "up0"
    static {
      address: "192.0.2.10/24" address: "192.0.2.11/24"
      address: "2001:db8:2::10/64" address: "2001:db8:2::11/64"
      gateway: "192.0.2.1" gateway: "2001:db8:2::1"
      route { destination: "203.0.113.0/24" gateway: "192.0.2.20" }
      route { destination: "2001:db8:113::/64" gateway: "2001:db8:2::20" }
    }
  }
"""


def configuration(
    *, access: bool, versions: Sequence[int], uplink: bool = True, routed: bool = False
) -> str:
    """Return the node's configuration. versions: families of pods. routed:
    others route to pods.
    """
    return f"""
network {{
{_UPLINK if uplink else ""}
  {" ".join(f'pod_prefix: "{PREFIXES[version]}"' for version in versions)}
  routed_pods: {"true" if routed else "false"}
  node_access {{ mode: "{"all" if access else "nothing"}" }}
}}
"""


def host_ip(mapping: Mapping) -> str:
    """Return a mapping's host address as text; "" for any."""
    match mapping.host:
        case HostIP.ANY:
            return ""
        case HostIP.WILDCARD:
            return "0.0.0.0" if mapping.version == 4 else "::"
        case other:
            return ADDRESSES[At(other.value), mapping.version]


def port(
    host_port: int, container_port: int, protocol: str = "", address: str = ""
) -> pb.PortMapping:
    """Return a mapping of a request. address: of the host, as text."""
    packed = ip_address(address).packed if address else b""
    return pb.PortMapping(
        host_port=host_port, container_port=container_port, protocol=protocol, host_ip=packed
    )


class Space:
    """A network namespace with its helper process. Raises WorldError."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.netns = Netns()
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._started = self._closed = False

    def begin(self) -> None:
        """Start the helper. `call` waits until it listens."""
        self._process = self.netns.inside(
            lambda: subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", sys.executable, "-P", "-m", _PROBES],
                env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                start_new_session=True,  # Ctrl-C is for the driver
            )
        )

    @property
    def pid(self) -> int:
        """Return the helper's process id."""
        assert self._process is not None, "a space that has begun"
        return self._process.pid

    def call(self, do: str, **arguments: Any) -> dict[str, Any]:
        """Send the helper a request; return its answer."""
        with self._lock:
            process = self._process
            assert process is not None
            assert process.stdin is not None
            assert process.stdout is not None
            if not self._started:
                process.stdout.readline()
                self._started = True
            process.stdin.write(json.dumps({"do": do} | arguments) + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
        if not line:
            raise WorldError(f"{self.name}: the helper has ended, status {process.wait(_LIMIT_S)}")
        return dict(json.loads(line))

    def listen(self, sockets: Iterable[Sequence[Any]], name: str = "") -> None:
        """Listen as this space, or by another name; sockets: see probes."""
        answer = self.call("listen", name=name or self.name, sockets=[[*one] for one in sockets])
        if answer["errors"]:
            raise WorldError(f"{self.name}: {answer['errors'][0]}")

    def forget(self, name: str = "") -> None:
        """End the listeners of a name."""
        self.call("close", name=name or self.name)

    def ask(self, asks: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Ask at once; see probes."""
        return list(self.call("ask", asks=list(asks))["results"]) if asks else []

    def run(self, command: Sequence[str], stdin: str = "", *, ok: bool = True) -> str:
        """Run a command there; return its output. Raises WorldError."""
        done = self.netns.inside(
            lambda: subprocess.run(
                command,
                input=stdin,
                text=True,
                capture_output=True,
                timeout=_LIMIT_S,
                check=False,
                env=os.environ | {"PATH": f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"},
            )
        )
        if ok and done.returncode:
            raise WorldError(f"{self.name}: {' '.join(command)}: {done.stderr.strip()}")
        return done.stdout

    def sysctls(self, settings: Iterable[tuple[str, str]]) -> None:
        """Write settings below /proc/sys."""

        def write() -> None:
            for name, value in settings:
                Path("/proc/sys", name).write_text(value)

        self.netns.inside(write)

    def close(self) -> None:
        """End the helper and the namespace. May be repeated."""
        if self._closed:
            return
        self._closed = True
        process, self._process = self._process, None
        if process is not None:
            assert process.stdin is not None
            assert process.stdout is not None
            process.kill()
            process.wait(_LIMIT_S)
            with contextlib.suppress(BrokenPipeError):  # a request was interrupted
                process.stdin.close()
            process.stdout.close()
        self.netns.close()


class Core:
    """Node core as a process in the node's namespace."""

    def __init__(self, node: Space, log: Path) -> None:
        self._node = node
        self._process: subprocess.Popen[str] | None = None
        self._follower: threading.Thread | None = None
        self.log = log

    def start(self, text: str) -> None:
        """Start it with a configuration; return when it serves with prefixes.
        Raises WorldError with its log.
        """
        DIRECTORY.mkdir(exist_ok=True)
        config = DIRECTORY / "node.textproto"
        config.write_text(text)
        command = [
            *("setpriv", "--pdeathsig", "KILL"),
            *(sys.executable, "-P", "-m", "metropolis.node.core.main"),
            *("--config", str(config), "--runtime-dir", str(_SOCKET.parent)),
            *("--state-dir", str(DIRECTORY / "state")),
        ]
        process = self._node.netns.inside(
            lambda: subprocess.Popen(
                command,
                env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
                stdin=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
        )
        self._process = process
        assert process.stderr is not None
        stderr = process.stderr
        awaited, decided = set(_READY), threading.Event()

        def follow() -> None:
            with self.log.open("a", buffering=1) as log, stderr:
                for line in stderr:
                    log.write(line)
                    if _NOT_READY not in line:
                        awaited.difference_update([one for one in awaited if one in line])
                    if not awaited:
                        decided.set()
            decided.set()

        self._follower = threading.Thread(target=follow, daemon=True)
        self._follower.start()
        if not decided.wait(_LIMIT_S) or awaited:
            raise WorldError(f"node core does not serve:\n{self.tail()}")

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """End it by a signal; return the status."""
        process, self._process = self._process, None
        if process is None:
            return 0
        process.send_signal(number)
        try:
            status = process.wait(_LIMIT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(_LIMIT_S)
            raise WorldError(f"node core did not end in {_LIMIT_S:g} s") from None
        if self._follower is not None:
            self._follower.join(_LIMIT_S)
        return status

    def tail(self) -> str:
        """Return the end of the log."""
        text = self.log.read_text() if self.log.exists() else ""
        return "\n".join(text.splitlines()[-_LOG_TAIL:])


class World:
    """All namespaces, and the service. In new namespaces, see test.world."""

    def __init__(self, log: Path) -> None:
        """log: file for what node core reports."""
        self._stack = contextlib.ExitStack()
        self.lan, self.node, self.outside, self.other = (
            self._space(name) for name in ("lan", "node", "outside", "other-node")
        )
        self.core = Core(self.node, log)
        self._stack.callback(self.core.stop, signal.SIGKILL)
        self._pods: dict[str, Space] = {}
        backoff = ("initial", "max")
        self.channel = grpc.insecure_channel(
            f"unix:{_SOCKET}",
            options=[(f"grpc.{which}_reconnect_backoff_ms", 50) for which in backoff],
        )
        self._stack.callback(self.channel.close)
        self.stub = rpc.WorkloadNetworkingStub(self.channel)
        self.attached: dict[str, dict[int, str]] = {}
        self.links: dict[str, str] = {}

    def _space(self, name: str) -> Space:
        space = Space(name)
        self._stack.callback(space.close)
        space.begin()
        return space

    def build(self) -> None:
        """Make the links. Raises WorldError."""
        for space in (self.lan, self.node, self.other, self.outside):
            space.sysctls(_PLENTY_OF_ERRORS)
        for space in (self.lan, self.other):
            forwarding = ("ipv4/ip_forward", "ipv6/conf/all/forwarding")
            space.sysctls((f"net/{name}", "1") for name in forwarding)
        names = {
            "node": self.node.netns.path,
            "other": self.other.netns.path,
            "outside": self.outside.netns.path,
        }
        self.lan.run(["ip", "-batch", "-"], _LAN.format(**names))
        self.outside.run(["ip", "-batch", "-"], _OUTSIDE)
        self.other.run(["ip", "-batch", "-"], _OTHER)
        rule = ("rule", "add", "from", BEHIND_OTHER[6], "lookup", "100")
        self.other.run(["ip", "-6", *rule])

    def start(self, *, access: bool, versions: Sequence[int], routed: bool = False) -> None:
        """Start node core; wait for the uplink's addresses."""
        self.core.start(configuration(access=access, versions=versions, routed=routed))
        self._await_uplink()

    def start_without_uplink(self) -> None:
        """Start node core on a node without an uplink and its addresses. Until
        the next start, which gives them back.
        """
        self.core.stop()
        self.node.run(["ip", "address", "flush", "dev", "up0"])
        self.node.run(["ip", "link", "set", "up0", "down"])
        self.core.start(configuration(access=False, versions=(4, 6), uplink=False))

    def _await_uplink(self) -> None:
        deadline = time.monotonic() + _LIMIT_S
        wanted = {ADDRESSES[at, version] for at in (At.NODE, At.SECOND) for version in (4, 6)}
        while not wanted <= self._usable():
            if time.monotonic() > deadline:
                raise WorldError(f"up0 never gets {wanted}:\n{self.core.tail()}")
            time.sleep(0.05)

    def _usable(self) -> set[str]:
        """Return the addresses of the uplink that are no longer tentative."""
        listed = json.loads(self.node.run(["ip", "-json", "address", "show", "dev", "up0"]))
        return {
            str(one["local"])
            for link in listed
            for one in link.get("addr_info", ())
            if not one.get("tentative")
        }

    def pod(self, name: str) -> Space:
        """Return a pod's namespace, made when it is first asked for."""
        if name not in self._pods:
            self._pods[name] = self._space(name)
        return self._pods[name]

    def attach(
        self,
        name: str,
        ports: Iterable[pb.PortMapping] = (),
        space: str = "",
        if_name: str = "eth0",
        identity: pb.Identity | None = None,
    ) -> dict[int, str]:
        """Attach; return the addresses by family, those of the last interface
        from now on. space: of another name than the workload's. Raises
        grpc.RpcError.
        """
        where = pb.NetNSAttachment(netns_path=self.pod(space or name).netns.path, if_name=if_name)
        request = pb.AttachRequest(
            workload_id=name, netns=where, port_mapping=ports, identity=identity
        )
        response = self.stub.Attach(request, timeout=_LIMIT_S)
        self.links[name] = response.host_interface
        found = [ip_address(packed) for packed in response.ip]
        self.attached[name] = {one.version: str(one) for one in found}
        return self.attached[name]

    def check(self, name: str) -> list[str]:
        """Return what Check finds, in words. Raises grpc.RpcError."""
        request = pb.CheckRequest(workload_id=name)
        return [
            f"{found.what}: expected {found.expected}, found {found.found}"
            for one in self.stub.Check(request, timeout=_LIMIT_S).attachments
            for found in one.findings
        ]

    def detach(self, name: str) -> None:
        """Detach. Raises grpc.RpcError."""
        self.stub.Detach(pb.DetachRequest(workload_id=name), timeout=_LIMIT_S)
        self.attached.pop(name, None)

    def drop(self, name: str) -> None:
        """End a pod's namespace while it is attached, as a crash does."""
        self._pods.pop(name).close()
        self.attached.pop(name, None)

    def detach_all(self) -> None:
        """Detach all that is attached."""
        for name in list(self.attached):
            self.detach(name)

    @contextlib.contextmanager
    def workload(
        self, name: str, ports: Iterable[pb.PortMapping] = (), space: str = ""
    ) -> Iterator[dict[int, str]]:
        """Attach for the time of a block; the addresses."""
        addresses = self.attach(name, ports, space)
        try:
            yield addresses
        finally:
            self.detach(name)

    def client(self, client: Client) -> Space:
        """Return where a client's questions come from."""
        match client:
            case Client.OUTSIDE:
                return self.outside
            case Client.OTHER:
                return self.other
            case Client.NODE:
                return self.node
            case Client.NEIGHBOUR:
                return self.pod("pod-b")
            case Client.SELF:
                return self.pod("pod-a")

    def link_local(self) -> str:
        """Return the link-local address of the uplink."""
        listed = json.loads(self.node.run(["ip", "-6", "-json", "address", "show", "dev", "up0"]))
        found = [one["local"] for one in listed[0]["addr_info"] if one["scope"] == "link"]
        if not found:
            raise WorldError("up0 has no link-local address")
        return str(found[0])

    def close(self) -> None:
        """End everything."""
        self._stack.close()
