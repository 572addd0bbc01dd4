# SPDX-License-Identifier: Apache-2.0
"""The client with the real service and the kernel, in a network namespace."""

import itertools
import json
import os
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv4Address, IPv6Address, ip_network
from pathlib import Path
from typing import Any

import grpc
import pytest

from metropolis.node.containerd.cniproxy import cni as cniproxy
from metropolis.node.containerd.cniproxy import errors, namespace, options, result
from metropolis.node.core.network.rules import host_ports
from metropolis.node.core.network.workloads.api.server import WorkloadServer
from metropolis.node.core.network.workloads.datapath.registry import PARTS
from metropolis.node.core.network.workloads.datapath.veth import KernelDatapath
from metropolis.node.core.network.workloads.engine.engine import Engine
from metropolis.node.core.network.workloads.spec import workload_pb2 as pb
from osbase.nftables import Nftables

PREFIXES = [ip_network("10.192.0.0/24"), ip_network("fd00:10:192::/112")]
GENEROUS_S = 60.0


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    with Nftables() as nft:
        nft.apply(host_ports.render())
    engine = Engine(KernelDatapath(parts=PARTS))
    engine.start()
    yield engine
    engine.close()


@pytest.fixture
def socket_path(tmp_path: Path, engine: Engine) -> Iterator[str]:
    engine.set_prefixes(PREFIXES)
    path = tmp_path / "run" / "workload.sock"
    server = WorkloadServer(engine, path)
    server.start()
    yield str(path)
    server.stop()
    for attachment in engine.list():
        engine.detach(attachment.workload_id)


@pytest.fixture
def cni(socket_path: str) -> Iterator[cniproxy.CNI]:
    """A client as containerd's CRI plugin makes one."""
    with cniproxy.new(
        options.with_socket(socket_path),
        options.with_min_network_count(2),
        options.with_plugin_conf_dir("/etc/cni/net.d"),
        options.with_plugin_max_conf_num(1),
        options.with_plugin_dir(["/usr/libexec/cni"]),
    ) as client:
        client.load(options.with_lo_network, options.with_default_conf)
        yield client


def make_netns() -> tuple[int, str]:
    """A network namespace, and its path while the descriptor is open."""
    made: list[int] = []

    def make() -> None:
        os.unshare(os.CLONE_NEWNET)
        made.append(os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC))

    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    return made[0], f"/proc/{os.getpid()}/fd/{made[0]}"


@pytest.fixture
def netns() -> Iterator[str]:
    descriptor, path = make_netns()
    yield path
    os.close(descriptor)


def relay(path: Path, behind: str, delay_s: float) -> None:
    """Take one connection to `path`; forward each chunk after a delay."""

    def copy(source: socket.socket, target: socket.socket, wait_s: float) -> None:
        while data := source.recv(65536):
            time.sleep(wait_s)
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)

    with socket.socket(socket.AF_UNIX) as listening, socket.socket(socket.AF_UNIX) as server:
        listening.bind(str(path))
        listening.listen()
        client, _ = listening.accept()
        server.connect(behind)
        with client, ThreadPoolExecutor() as pool:
            pool.submit(copy, client, server, 0.0)
            pool.submit(copy, server, client, delay_s)


def test_a_service_that_answers_late_is_connected_to(socket_path: str, tmp_path: Path) -> None:
    """By the first connection: there is no second."""
    path = tmp_path / "slow.sock"
    thread = threading.Thread(target=relay, args=(path, socket_path, 0.7))
    thread.start()
    while not path.exists():
        time.sleep(0.01)
    with cniproxy.new(options.with_socket(str(path)), options.with_default_conf) as client:
        client.status(timeout_s=GENEROUS_S)
    thread.join()


def test_setup_gives_what_containerd_reads(cni: cniproxy.CNI, netns: str, engine: Engine) -> None:
    found = cni.setup(
        "sandbox-1",
        netns,
        namespace.with_labels({"K8S_POD_NAMESPACE": "default", "IgnoreUnknown": "1"}),
        namespace.with_capability("io.kubernetes.cri.pod-annotations", {"a": "b"}),
        namespace.with_capability_port_map([]),
        namespace.with_capability_bandwidth(namespace.BandWidth()),
        namespace.with_capability_cgroup_path("/kubepods"),
        namespace.with_capability_dns(namespace.DNS(servers=["10.0.0.53"])),
    )
    (attachment,) = engine.list()
    assert attachment.workload_id == "sandbox-1"
    eth0 = found.interfaces["eth0"]
    assert tuple(one.ip for one in eth0.ip_configs) == attachment.ips
    assert [str(one.gateway) for one in eth0.ip_configs] == ["169.254.77.1", "fe80::1"]
    assert (eth0.mac, eth0.sandbox) == (attachment.mac.hex(":"), netns)
    assert found.interfaces[attachment.host_interface].sandbox == ""
    assert found.interfaces["lo"].ip_configs[0].ip == IPv4Address("127.0.0.1")
    assert found.interfaces["lo"].sandbox == netns
    assert found.dns == (result.DNS(), result.DNS(nameservers=("10.0.0.53",)))
    assert {(str(r.dst), r.gw and str(r.gw), r.scope) for r in found.routes} == {
        ("0.0.0.0/0", "169.254.77.1", None),
        ("::/0", "fe80::1", None),
        ("169.254.77.1/32", None, 253),
        ("fe80::1/128", None, 253),
    }
    assert result.Result.from_json(found.to_json()) == found
    assert cni.setup_serially("sandbox-1", netns).interfaces == found.interfaces


def test_remove_and_check(cni: cniproxy.CNI, netns: str, engine: Engine) -> None:
    cni.setup("sandbox-1", netns)
    cni.check("sandbox-1", netns)
    cni.remove("sandbox-2", netns)
    cni.check("sandbox-1", netns)
    cni.remove("sandbox-1", netns)
    cni.remove("sandbox-1", "")
    assert engine.list() == []
    with pytest.raises(errors.NotFoundError, match="sandbox-1"):
        cni.check("sandbox-1", netns)


def test_check_compares_with_the_kernel(cni: cniproxy.CNI, netns: str) -> None:
    """Check reports differences on the host, and in a named namespace."""
    host = next(
        name
        for name, config in cni.setup("sandbox-1", netns).interfaces.items()
        if name != "lo" and not config.sandbox
    )
    for path in (netns, ""):
        cni.check("sandbox-1", path)
    inside = ["nsenter", f"--net={netns}"]
    subprocess.run([*inside, "ip", "route", "del", "default"], check=True)
    cni.check("sandbox-1", "")
    with pytest.raises(errors.CheckError, match=r"0\.0\.0\.0/0"):
        cni.check("sandbox-1", netns)
    subprocess.run(["ip", "link", "set", host, "mtu", "1400"], check=True)
    for path in (netns, ""):
        with pytest.raises(errors.CheckError, match="1400"):
            cni.check("sandbox-1", path)
    with pytest.raises(errors.NotFoundError, match="missing"):
        cni.check("sandbox-1", "/run/netns/missing")
    descriptor, other = make_netns()
    with pytest.raises(errors.CheckError, match="network namespace"):
        cni.check("sandbox-1", other)
    os.close(descriptor)


def test_remove_needs_no_namespace_and_no_network(socket_path: str, engine: Engine) -> None:
    descriptor, path = make_netns()
    with cniproxy.new(options.with_socket(socket_path), options.with_default_conf) as client:
        client.setup("sandbox-1", path)
    with cniproxy.new(options.with_socket(socket_path)) as client:
        client.remove("sandbox-1", "")
        assert engine.list() == []
        with pytest.raises(errors.CNINotInitializedError, match="0 of 1 networks"):
            client.setup("sandbox-1", path)
    os.close(descriptor)


def test_requested_addresses_and_mac(cni: cniproxy.CNI, netns: str) -> None:
    found = cni.setup(
        "sandbox-1",
        netns,
        namespace.with_capability("ips", ["10.192.0.77/24", "fd00:10:192::77"]),
        namespace.with_args("MAC", "02:AB:00:00:00:01"),
    )
    ips = [one.ip for one in found.interfaces["eth0"].ip_configs]
    assert ips == [IPv4Address("10.192.0.77"), IPv6Address("fd00:10:192::77")]
    assert found.interfaces["eth0"].mac == "02:ab:00:00:00:01"


@pytest.mark.parametrize("label", [namespace.with_args, lambda k, v: namespace.with_labels({k: v})])
def test_addresses_and_mac_by_labels(cni: cniproxy.CNI, netns: str, label: Any) -> None:
    """In either order of the options a capability has priority, as in CNI."""
    asked = [
        label("IP", "fd00:10:192::78/64,10.192.0.78"),
        label("MAC", "02-ab-00-00-00-01"),
        namespace.with_capability("mac", "02:ab:00:00:00:02"),
    ]
    made = [cni.setup("sandbox-1", netns, *opts) for opts in itertools.permutations(asked)]
    assert all(one == made[0] for one in made)
    ips = [one.ip for one in made[0].interfaces["eth0"].ip_configs]
    assert ips == [IPv4Address("10.192.0.78"), IPv6Address("fd00:10:192::78")]
    assert made[0].interfaces["eth0"].mac == "02:ab:00:00:00:02"


def test_mtu_and_routes(cni: cniproxy.CNI, netns: str, engine: Engine) -> None:
    routes = namespace.with_routes(
        namespace.Route("192.0.2.9/24"),
        namespace.Route("0.0.0.0/0"),
    )
    more = namespace.with_routes(namespace.Route("2001:db8::/32", "fe80::1"))
    found = cni.setup("sandbox-1", netns, namespace.with_mtu(1400), routes, more)
    assert [one.mtu for one in engine.list()] == [1400]
    assert [(str(one.dst), str(one.gw)) for one in found.routes if one.gw] == [
        ("0.0.0.0/0", "169.254.77.1"),
        ("::/0", "fe80::1"),
        ("192.0.2.0/24", "169.254.77.1"),
        ("2001:db8::/32", "fe80::1"),
    ]
    cni.check("sandbox-1", netns)


def test_port_mappings(cni: cniproxy.CNI, netns: str) -> None:
    ports = [
        namespace.PortMapping(8080, 80, "TCP"),
        namespace.PortMapping(53, 53, "udp", "::ffff:127.0.0.1"),
        namespace.PortMapping(0, 9000),
    ]
    made = cni.setup("sandbox-1", netns, namespace.with_capability_port_map(ports))
    again = cni.setup("sandbox-1", netns, namespace.with_capability_port_map(ports[:2]))
    assert made.interfaces == again.interfaces
    descriptor, other = make_netns()
    with pytest.raises(errors.ServiceError, match=r"ALREADY_EXISTS.*tcp port 8080.*sandbox-1"):
        cni.setup("sandbox-2", other, namespace.with_capability_port_map(ports[:1]))
    # For the connections to the node's 127.0.0.1; another's are not affected.
    taken = namespace.PortMapping(53, 53, "tcp", "127.0.0.1")
    with socket.create_server(("127.0.0.1", 0)) as listening:
        busy = namespace.PortMapping(listening.getsockname()[1], 80)
        with pytest.raises(errors.ServiceError, match=r"FAILED_PRECONDITION.*tcp port"):
            cni.setup("sandbox-2", other, namespace.with_capability_port_map([busy]))
    cni.setup("sandbox-2", other, namespace.with_capability_port_map([taken]))
    os.close(descriptor)


@pytest.mark.parametrize(
    "opt",
    [
        namespace.with_capability_port_map([namespace.PortMapping(-1, 80)]),
        namespace.with_capability_port_map([namespace.PortMapping(80, 0)]),
        namespace.with_capability_port_map([namespace.PortMapping(80, 80, "icmp")]),
        namespace.with_capability_port_map([namespace.PortMapping(80, 80, "\udcff")]),
        namespace.with_capability_port_map([namespace.PortMapping(80, 80, host_ip="nowhere")]),
        namespace.with_capability_port_map([namespace.PortMapping(80, 80, host_ip="fe80::1%lo")]),
        namespace.with_capability_port_map([namespace.PortMapping(80, 80, host_ip="192.0.2.1")]),
        namespace.with_capability_port_map([namespace.PortMapping(80, 80)] * 2),
        namespace.with_capability("portMappings", [{"hostPort": 80, "containerPort": 80}]),
        namespace.with_capability_bandwidth(namespace.BandWidth(ingress_rate=1)),
        namespace.with_capability_bandwidth(namespace.BandWidth(ingress_rate=-1)),
        namespace.with_capability_bandwidth(namespace.BandWidth(egress_rate=2**64)),
        namespace.with_capability_bandwidth(namespace.BandWidth(ingress_burst=1)),
        namespace.with_capability("bandwidth", {"ingressRate": 1000000}),
        namespace.with_capability("ipRanges", [[{}]]),
        namespace.with_capability("ips", ["x"]),
        namespace.with_capability("ips", [7]),
        namespace.with_capability("mac", "02:ab"),
        namespace.with_capability("ips", ["fe80::7%eth0"]),
        namespace.with_capability("ips", ["10.192.0.7", "10.192.0.8"]),
        namespace.with_capability("ips", ["10.192.0.0"]),
        namespace.with_capability("mac", "02:ab-00:00:00:01"),
        namespace.with_capability("mac", "01:00:5e:00:00:01"),
        namespace.with_capability("deviceID", "0000:03:02.3"),
        namespace.with_capability("infinibandGUID", "c2:11:22:33:44:55:66:77"),
        namespace.with_capability("aliases", {"net": ["web"]}),
        namespace.with_args("IP", "192.0.2.1"),
        namespace.with_args("IP", "10.192.0.7;MAC=02:ab:00:00:00:01"),
        namespace.with_args("MAC", "mac"),
        namespace.with_mtu(-1),
        namespace.with_mtu(1279),
        namespace.with_mtu(9000),
        namespace.with_routes(namespace.Route("192.0.2.0")),
        namespace.with_routes(namespace.Route("192.0.2.0/33")),
        namespace.with_routes(namespace.Route("192.0.2.0/255.255.255.0")),
        namespace.with_routes(namespace.Route("fe80::%eth0/64")),
        namespace.with_routes(namespace.Route("192.0.2.0/24", "10.192.0.1")),
        namespace.with_routes(namespace.Route("192.0.2.0/24", "fe80::1")),
        namespace.with_routes(*[namespace.Route("::/0")] * 2),
    ],
)
def test_what_the_service_does_not_have_is_refused(
    cni: cniproxy.CNI, netns: str, engine: Engine, opt: namespace.NamespaceOpt
) -> None:
    with pytest.raises(errors.InvalidConfigError):
        cni.setup("sandbox-1", netns, opt)
    assert engine.list() == []


@pytest.mark.parametrize("id", ["", "x" * 300, "\udcff", "a\nb"])
def test_ids_that_are_none(cni: cniproxy.CNI, netns: str, id: str) -> None:
    with pytest.raises(errors.InvalidConfigError):
        cni.setup(id, netns)


def test_paths_that_are_none(cni: cniproxy.CNI) -> None:
    for call in (cni.setup, cni.remove, cni.check):
        with pytest.raises(errors.InvalidConfigError):
            call("sandbox-1", "/run/netns/\udcff")


def test_errors_of_the_service_keep_their_cause(
    cni: cniproxy.CNI, netns: str, engine: Engine
) -> None:
    with pytest.raises(errors.NotFoundError, match="missing") as info:
        cni.setup("sandbox-1", "/run/netns/missing")
    assert isinstance(info.value.__cause__, grpc.RpcError)
    cni.setup("sandbox-1", netns)
    descriptor, other = make_netns()
    with pytest.raises(errors.ServiceError, match=r"ALREADY_EXISTS"):
        cni.setup("sandbox-1", other)
    os.close(descriptor)
    engine.set_prefixes([])
    with pytest.raises(errors.CNINotInitializedError, match="prefix"):
        cni.status()


def test_unavailable_is_not_always_uninitialized(
    cni: cniproxy.CNI, netns: str, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Too many calls for one sandbox: the service's message is kept."""
    started, go_on = threading.Semaphore(0), threading.Event()
    real = engine._datapath.open_netns

    def slow(path: str) -> Any:
        started.release()
        assert go_on.wait(GENEROUS_S)
        return real(path)

    monkeypatch.setattr(engine._datapath, "open_netns", slow)
    with ThreadPoolExecutor(5) as pool:
        first = pool.submit(cni.setup, "sandbox-1", netns)
        assert started.acquire(timeout=GENEROUS_S)
        others = [pool.submit(cni.setup, "sandbox-1", netns) for _ in range(4)]
        deadline = time.monotonic() + GENEROUS_S
        while engine._ledger._protected._calls["sandbox-1"] < 5:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        try:
            for call in (cni.setup, cni.remove):
                with pytest.raises(errors.ServiceError, match="UNAVAILABLE: 5 other calls"):
                    call("sandbox-1", netns)
        finally:
            go_on.set()
        assert {one.result() == first.result() for one in others} == {True}


def test_status_and_a_service_that_comes_and_goes(tmp_path: Path, engine: Engine) -> None:
    path = tmp_path / "run" / "workload.sock"
    engine.set_prefixes(PREFIXES)
    with cniproxy.new(options.with_socket(str(path)), options.with_default_conf) as client:
        for _ in range(2):
            with pytest.raises(errors.CNINotInitializedError, match="UNAVAILABLE"):
                client.status()
            server = WorkloadServer(engine, path)
            server.start()
            give_up = threading.Event()
            timer = threading.Timer(GENEROUS_S, give_up.set)
            timer.start()
            while True:  # the channel dials again after a short while
                try:
                    client.status()
                    break
                except errors.CNINotInitializedError:
                    assert not give_up.wait(0.02)
            timer.cancel()
            server.stop()


def test_every_call_has_a_deadline(tmp_path: Path) -> None:
    """A service that accepts and never answers."""
    arrived = threading.Event()

    def silent(request: bytes, context: grpc.ServicerContext) -> bytes:
        done = threading.Event()
        context.add_callback(done.set)
        arrived.set()
        done.wait(GENEROUS_S)
        return b""

    server = grpc.server(ThreadPoolExecutor(1))
    service = pb.DESCRIPTOR.services_by_name["WorkloadNetworking"].full_name
    methods: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {
        "Status": grpc.unary_unary_rpc_method_handler(silent)
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, methods),))
    path = str(tmp_path / "s")
    server.add_insecure_port(f"unix:{path}")
    server.start()
    opts = (options.with_socket(path), options.with_default_conf, options.with_timeout(1.0))
    with cniproxy.new(*opts) as client, pytest.raises(errors.DeadlineExceededError):
        client.status()
    assert arrived.is_set()
    server.stop(None).wait()


def test_many_at_once(cni: cniproxy.CNI, engine: Engine) -> None:
    spaces = [make_netns() for _ in range(30)]
    with ThreadPoolExecutor(10) as pool:
        found = list(pool.map(lambda i: cni.setup(f"s{i}", spaces[i][1]), range(30)))
        assert len({one.interfaces["eth0"].ip_configs[0].ip for one in found}) == 30
        list(pool.map(lambda i: cni.remove(f"s{i}", ""), range(30)))
    assert engine.list() == []
    for descriptor, _ in spaces:
        os.close(descriptor)


def test_others_close_and_load_meanwhile(cni: cniproxy.CNI, socket_path: str) -> None:
    """close() ends no call that is under way."""

    def calls() -> None:
        for _ in range(50):
            cni.status()

    paths = itertools.cycle([socket_path, f"/.{socket_path}"])
    with ThreadPoolExecutor() as pool:
        calling = [pool.submit(calls) for _ in range(4)]
        while not all(one.done() for one in calling):
            cni.close()
            networks = (options.with_lo_network, options.with_default_conf)
            cni.load(options.with_socket(next(paths)), *networks)
    for one in calling:
        one.result()


def test_get_config(cni: cniproxy.CNI) -> None:
    config = cni.get_config()
    assert config.plugin_dirs == ("/usr/libexec/cni",)
    assert (config.plugin_conf_dir, config.plugin_max_conf_num) == ("/etc/cni/net.d", 1)
    assert [(one.config.name, one.if_name) for one in config.networks] == [
        ("cni-loopback", "lo"),
        ("metropolis", "eth0"),
    ]
    for one in config.networks:
        assert json.loads(one.config.source)["plugins"] == [
            json.loads(one.config.plugins[0].source)
        ]


def test_a_load_that_fails_changes_nothing(cni: cniproxy.CNI) -> None:
    before = cni.get_config()
    with pytest.raises(errors.LoadError, match="absolute path"):
        cni.load(options.with_default_conf, options.with_socket("relative"))
    assert cni.get_config() == before


def test_the_interface_prefix(socket_path: str, netns: str, engine: Engine) -> None:
    opts = (options.with_socket(socket_path), options.with_interface_prefix("net"))
    with cniproxy.new(*opts) as client:
        client.load(options.with_all_conf)
        assert client.setup("sandbox-1", netns).interfaces["net0"].ip_configs
    assert [one.if_name for one in engine.list()] == ["net0"]


def test_an_answer_that_is_none_is_an_error() -> None:
    settings = options.Settings(networks=[options.NETWORK_NAME])
    with pytest.raises(ValueError, match="IPv4 or IPv6"):
        cniproxy._result(settings, "/x", namespace.Namespace(), pb.AttachResponse(ip=[b"abc"]))


def test_a_service_with_only_the_base_of_the_api() -> None:
    """A service that answers with addresses and nothing else."""
    settings = options.Settings(networks=[options.NETWORK_NAME])
    made = pb.AttachResponse(ip=[bytes([10, 0, 0, 1])])
    found = cniproxy._result(settings, "/x", namespace.Namespace(), made)
    ips = (result.IPConfig(IPv4Address("10.0.0.1")),)
    assert found.interfaces == {"eth0": result.Config(ips, "", "/x")}
