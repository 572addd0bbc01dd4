# SPDX-License-Identifier: Apache-2.0
"""Network policies on a node: from files and by the API, over the life of the
service, from a pod's first packet on.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from ipaddress import ip_address
from typing import Any

import grpc
import pytest

from metropolis.cli.metroctl import main as metroctl
from metropolis.node.core.network.policy.spec import policy_pb2, policy_pb2_grpc
from metropolis.node.core.network.testing.nodecore import NodeCore
from metropolis.node.core.network.workloads.spec import workload_pb2
from osbase.ip import IPAddress
from osbase.test.namespaces import LIMIT_S, inside, sh

PORT = 7000
FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}
DENY = """\
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: deny, namespace: shop}
spec: {podSelector: {}, policyTypes: [Ingress]}
"""
ALLOW = f"""\
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {{name: allow-web, namespace: shop}}
spec:
  podSelector: {{matchLabels: {{app: db}}}}
  ingress:
  - from: [{{podSelector: {{matchLabels: {{app: web}}}}}}]
    ports: [{{port: {PORT}}}]
"""


@pytest.fixture
def node(world: None, core: NodeCore) -> NodeCore:
    """A node without an uplink, not started."""
    core.config = """
network { pod_prefix: "10.192.0.0/24" pod_prefix: "fd00:10:192::/112" }
"""
    return core


class Pods:
    """pod-a, which is `app: web`, and pod-b, `app: db`, which listens."""

    def __init__(self, node: NodeCore) -> None:
        self.node = node
        self.ips: dict[str, dict[int, IPAddress]] = {}

    def attach(self, pod: str, labels: dict[str, str] | None, if_name: str = "eth0") -> None:
        request = workload_pb2.AttachRequest(
            workload_id=pod,
            netns=workload_pb2.NetNSAttachment(netns_path=f"/run/netns/{pod}", if_name=if_name),
        )
        if labels is not None:
            request.identity.namespace = "shop"
            request.identity.labels.update(labels)
        answer = self.node.stub().Attach(request, timeout=LIMIT_S)
        found = map(ip_address, answer.ip)
        self.ips[pod] = {ip.version: ip for ip in found}

    def detach(self, pod: str) -> None:
        self.node.stub().Detach(workload_pb2.DetachRequest(workload_id=pod), timeout=LIMIT_S)

    def reach(self, source: str, destination: str, port: int = PORT) -> dict[int, bool]:
        """Connect by TCP in both families; True: something answers."""
        found = {}
        for version, ip in self.ips[destination].items():
            with inside(source):
                client = socket.socket(FAMILY[version])
            with client, contextlib.suppress(OSError):
                client.settimeout(LIMIT_S)
                found[version] = False
                client.connect((str(ip), port))
                found[version] = client.recv(1) == b"!"
        return found


BOTH, NEITHER = {4: True, 6: True}, {4: False, 6: False}


@contextlib.contextmanager
def listening(pod: str, port: int = PORT) -> Iterator[None]:
    """Answer connections with one byte."""
    with inside(pod):
        server = socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True)

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = server.accept()
                with client:
                    client.sendall(b"!")

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield
    finally:
        server.shutdown(socket.SHUT_RDWR)
        server.close()
        thread.join()


def until(what: Callable[[], bool], why: str) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not what():
        assert time.monotonic() < deadline, why
        time.sleep(0.02)


def policies(node: NodeCore) -> policy_pb2_grpc.NetworkPoliciesStub:
    channel = grpc.insecure_channel(
        f"unix:{node.runtime / 'workload.sock'}",
        options=[("grpc.use_local_subchannel_pool", 1)],
    )
    return policy_pb2_grpc.NetworkPoliciesStub(channel)


def states(node: NodeCore) -> dict[str, str]:
    """Return the error of each policy, by name."""
    found = policies(node).GetPolicies(policy_pb2.GetPoliciesRequest(), timeout=LIMIT_S)
    return {one.policy.name: one.error for one in found.policies}


def write(node: NodeCore, **files: str) -> None:
    directory = node.directory / "policies"
    directory.mkdir(exist_ok=True)
    for name, text in files.items():
        beside = directory / f".{name}"
        beside.write_text(text)
        beside.rename(directory / f"{name}.yaml")


def test_files_are_followed(node: NodeCore) -> None:
    """Made, changed, broken, mended and removed, while pods run."""
    node.start()
    pods = Pods(node)
    pods.attach("pod-a", {"app": "web"})
    pods.attach("pod-b", {"app": "db"})
    with listening("pod-a"), listening("pod-b"):
        assert pods.reach("pod-a", "pod-b") == BOTH
        write(node, deny=DENY)
        until(lambda: states(node) == {"shop/deny": ""}, "the file is never read")
        assert pods.reach("pod-a", "pod-b") == NEITHER
        write(node, allow=ALLOW)
        until(lambda: len(states(node)) == 2, "the second file is never read")
        assert pods.reach("pod-a", "pod-b") == BOTH
        assert pods.reach("pod-b", "pod-a") == NEITHER
        assert node.problem() == ""
        # No YAML at all: nobody can say what it was about.
        write(node, allow="{")
        node.wait_until_said("allow.yaml")
        assert pods.reach("pod-a", "pod-b") == BOTH
        # A misspelt field: this policy isolates, and the other stays.
        write(node, allow=ALLOW.replace("from:", "form:"))
        until(lambda: "form" in states(node).get("shop/allow-web", ""), "no error of its own")
        node.wait_until_said('did you mean "from"')
        assert pods.reach("pod-a", "pod-b") == NEITHER
        # Pods may come all the same.
        assert node.problem() == ""
        write(node, allow=ALLOW)
        until(lambda: "policies/" not in node.said(), "still noted")
        assert pods.reach("pod-a", "pod-b") == BOTH
        for path in (node.directory / "policies").iterdir():
            path.unlink()
        until(lambda: not states(node), "the policies stay")
        assert pods.reach("pod-b", "pod-a") == BOTH


def test_policies_and_labels_outlive_the_service(node: NodeCore) -> None:
    """In force while it is away; a restart knows the labels, and what files
    say by then.
    """
    write(node, deny=DENY, allow=ALLOW)
    node.start()
    pods = Pods(node)
    pods.attach("pod-a", {"app": "web"})
    pods.attach("pod-b", {"app": "db"})
    with listening("pod-a"), listening("pod-b"):
        until(lambda: len(states(node)) == 2, "the files are never read")
        assert pods.reach("pod-a", "pod-b") == BOTH
        for number in (signal.SIGKILL, signal.SIGTERM):
            node.stop(number)
            assert pods.reach("pod-a", "pod-b") == BOTH
            assert pods.reach("pod-b", "pod-a") == NEITHER
            node.start()
            assert pods.reach("pod-a", "pod-b") == BOTH
            assert pods.reach("pod-b", "pod-a") == NEITHER
        node.stop(signal.SIGKILL)
        write(node, allow=ALLOW.replace("app: web", "app: cache"))
        node.start()
        until(lambda: pods.reach("pod-a", "pod-b") == NEITHER, "the old file is in force")
        request = policy_pb2.SetLabelsRequest(workload_id="pod-a")
        request.identity.namespace = "shop"
        request.identity.labels["app"] = "cache"
        policies(node).SetLabels(request, timeout=LIMIT_S)
        assert pods.reach("pod-a", "pod-b") == BOTH


def test_a_flush_is_repaired(node: NodeCore) -> None:
    write(node, deny=DENY)
    node.start()
    pods = Pods(node)
    pods.attach("pod-a", {"app": "web"})
    pods.attach("pod-b", {"app": "db"})
    with listening("pod-b"):
        until(lambda: len(states(node)) == 1, "the file is never read")
        for command in ("flush ruleset", "delete table inet metropolis_workloads"):
            node.drain()
            sh(f"nft {command}")
            node.wait_for("ward-policies: put back: ")
            assert pods.reach("pod-a", "pod-b") == NEITHER
        until(lambda: node.problem() == "", "it stays a problem")


def test_pods_whose_labels_are_not_known(node: NodeCore) -> None:
    """By a runtime's K8S_ arguments: isolated while there are policies. Others,
    without any labels, are known at once.
    """
    node.start()
    pods = Pods(node)
    request = workload_pb2.AttachRequest(
        workload_id="pod-a",
        netns=workload_pb2.NetNSAttachment(netns_path="/run/netns/pod-a", if_name="eth0"),
        labels={"K8S_POD_NAMESPACE": "shop", "K8S_POD_NAME": "web-0"},
    )
    answer = node.stub().Attach(request, timeout=LIMIT_S)
    pods.ips["pod-a"] = {ip.version: ip for ip in map(ip_address, answer.ip)}
    pods.attach("pod-b", None)
    with listening("pod-a"), listening("pod-b"):
        assert pods.reach("pod-a", "pod-b") == BOTH
        write(node, deny=DENY)
        until(lambda: len(states(node)) == 1, "the file is never read")
        assert pods.reach("pod-a", "pod-b") == NEITHER
        assert pods.reach("pod-b", "pod-a") == NEITHER
        found = policies(node).GetPolicies(policy_pb2.GetPoliciesRequest(), timeout=LIMIT_S)
        assert list(found.unknown) == ["pod-a"]
        said = policy_pb2.SetLabelsRequest(workload_id="pod-a")
        said.identity.namespace = "elsewhere"
        policies(node).SetLabels(said, timeout=LIMIT_S)
        assert pods.reach("pod-b", "pod-a") == BOTH


@pytest.mark.parametrize("attaches", [int(os.environ.get("FIRST_PACKETS", "40"))])
def test_the_first_packet(node: NodeCore, attaches: int) -> None:
    """A pod sends from before its interface exists: nothing that is forbidden
    arrives, also when the service is killed in between.
    """
    write(node, deny=DENY)
    node.start()
    pods = Pods(node)
    pods.attach("pod-b", {"app": "db"})
    until(lambda: len(states(node)) == 1, "the file is never read")
    with inside("pod-b"):
        receiver = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    receiver.bind(("::", PORT))
    ending = threading.Event()
    sent = {4: 0, 6: 0}

    def send(version: int) -> None:
        with inside("pod-a"):
            sock = socket.socket(FAMILY[version], socket.SOCK_DGRAM)
        with sock:
            sock.setblocking(False)
            while not ending.is_set():
                with contextlib.suppress(OSError):
                    sock.sendto(b"first", (str(pods.ips["pod-b"][version]), PORT))
                    sent[version] += 1

    threads = [threading.Thread(target=send, args=(version,)) for version in FAMILY]
    for thread in threads:
        thread.start()
    try:
        for number in range(attaches):
            before = dict(sent)
            pods.attach("pod-a", {"app": "web"})
            until(lambda: all(sent[v] > before[v] for v in sent), "nothing was sent")  # noqa: B023
            if number % 10 == 9:
                node.stop(signal.SIGKILL)
                node.start()
            pods.detach("pod-a")
    finally:
        ending.set()
        for thread in threads:
            thread.join()
    with receiver:
        assert not select.select([receiver], [], [], 0)[0], receiver.recvfrom(100)


def metroctl_says(
    node: NodeCore, capsys: pytest.CaptureFixture[str], *words: str
) -> dict[str, Any]:
    metroctl.main(["policy", *words, "--json", "--socket", str(node.runtime / "workload.sock")])
    return dict(json.loads(capsys.readouterr().out))


def test_metroctl(node: NodeCore, capsys: pytest.CaptureFixture[str]) -> None:
    """What an operator asks, and what the packets do."""
    write(node, deny=DENY, allow=ALLOW)
    node.start()
    pods = Pods(node)
    pods.attach("pod-a", {"app": "web"})
    pods.attach("pod-b", {"app": "db"})
    until(lambda: len(states(node)) == 2, "the files are never read")
    listed = metroctl_says(node, capsys, "list")
    assert [one["policy"] for one in listed["policies"]] == ["shop/allow-web", "shop/deny"]
    for source, destination, port in (
        ("pod-a", "pod-b", PORT),
        ("pod-a", "pod-b", PORT + 1),
        ("pod-b", "pod-a", PORT),
    ):
        with listening(destination, port):
            reached = pods.reach(source, destination, port)
        said = metroctl_says(node, capsys, "explain", source, destination, f"{port}/tcp")
        assert {one["ip_version"]: one["allowed"] for one in said["explained"]} == reached
        address = str(pods.ips[source][6])
        by_address = metroctl_says(node, capsys, "explain", address, destination, str(port))
        assert by_address["explained"] == [said["explained"][1]]
    denied = metroctl_says(node, capsys, "explain", "pod-b", "pod-a", str(PORT))
    assert denied["explained"][0]["policy"] == "shop/deny"
    assert denied["explained"][0]["direction"] == "ingress"
    metroctl_says(node, capsys, "label", "pod-b", "shop", "app=web")
    with listening("pod-a"):
        assert pods.reach("pod-b", "pod-a") == NEITHER
    metroctl_says(node, capsys, "label", "pod-a", "shop", "app=db")
    with listening("pod-a"):
        assert pods.reach("pod-b", "pod-a") == BOTH


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("sender", ["client", "server"])
def test_a_change_cuts_bulk_traffic(node: NodeCore, sender: str, version: int) -> None:
    """The end that sends gets a reset; one that only receives hears nothing
    more.
    """
    write(node, allow=ALLOW)
    node.start()
    pods = Pods(node)
    pods.attach("pod-a", {"app": "web"})
    pods.attach("pod-b", {"app": "db"})
    until(lambda: len(states(node)) == 1, "the file is never read")
    with inside("pod-b"):
        server = socket.create_server(("::", PORT), family=socket.AF_INET6, dualstack_ipv6=True)
    with inside("pod-a"):
        client = socket.socket(FAMILY[version])
    with server, client:
        client.settimeout(LIMIT_S)
        client.connect((str(pods.ips["pod-b"][version]), PORT))
        accepted, _ = server.accept()
        source, sink = (client, accepted) if sender == "client" else (accepted, client)
        ended: dict[str, OSError] = {}

        def send() -> None:
            try:
                while True:
                    source.sendall(bytes(1 << 16))
            except OSError as error:
                ended["source"] = error

        def receive() -> None:
            try:
                while sink.recv(1 << 16):
                    received.set()
            except OSError as error:
                ended["sink"] = error

        received = threading.Event()
        threads = [threading.Thread(target=one) for one in (send, receive)]
        with accepted:
            for sock in (source, sink):
                sock.settimeout(LIMIT_S)
            for thread in threads:
                thread.start()
            assert received.wait(LIMIT_S)
            write(node, allow=ALLOW.replace("app: web", "app: cache"))
            threads[0].join(2 * LIMIT_S)
            with contextlib.suppress(OSError):  # it is reset already
                sink.shutdown(socket.SHUT_RDWR)
            threads[1].join()
    assert isinstance(ended["source"], ConnectionResetError | BrokenPipeError)


def test_a_first_load_that_is_not_whole(node: NodeCore) -> None:
    """What can be read is in force, and no pod comes until all can; nothing of
    before could stay.
    """
    write(node, deny=DENY, broken="{")
    node.start()
    node.wait_until_said("broken.yaml")
    assert states(node) == {"shop/deny": ""}
    assert "not whole" in node.problem()
    write(node, broken=ALLOW)
    until(lambda: node.problem() == "", "it stays a problem")
    assert set(states(node)) == {"shop/deny", "shop/allow-web"}
    # From now on a broken file changes nothing.
    write(node, broken="{")
    node.wait_until_said("broken.yaml")
    assert set(states(node)) == {"shop/deny", "shop/allow-web"}
    assert node.problem() == ""
