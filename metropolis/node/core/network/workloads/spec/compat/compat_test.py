# SPDX-License-Identifier: Apache-2.0
"""Callers and services of other protos, with the real service and the kernel.

Runs in a network namespace of its own. The package says what the stubs are of.
"""

import base64
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import FieldDescriptor as Field
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from pyroute2 import IPRoute

from metropolis.node.core.network.workloads.spec import workload_pb2 as pb
from metropolis.node.core.network.workloads.testing.lab import Pod, await_objects, objects, pods
from metropolis.node.core.network.workloads.testing.served import PREFIXES, Client, Served, texts

HERE = "metropolis.node.core.network.workloads.spec.compat"
EXIT_S = 20.0
# In AttachResponse: mac, host_interface, gateway, routes, mtu.
BEYOND_THE_BASE = [64, 65, 66, 67, 68]


class Peer:
    """A client process; see client.py."""

    def __init__(self, generation: str, socket_path: Path) -> None:
        command = [sys.executable, "-m", f"{HERE}.client", generation, str(socket_path)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def call(self, method: str, **request: Any) -> dict[str, Any]:
        """Return the line of one call."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(
            json.dumps({"method": method, "request": request}), file=self.process.stdin, flush=True
        )
        line = self.process.stdout.readline()
        assert line, f"the client ended with {self.process.wait(EXIT_S)}"
        answer: dict[str, Any] = json.loads(line)
        return answer

    def ok(self, method: str, **request: Any) -> dict[str, Any]:
        """Return the line of a call that succeeds."""
        answer = self.call(method, **request)
        assert answer["code"] == "OK", answer
        return answer

    def refused(self, method: str, **request: Any) -> tuple[str, str]:
        """Return code and details of a call that fails."""
        answer = self.call(method, **request)
        assert answer["code"] != "OK", answer
        return answer["code"], answer["details"]


@contextmanager
def peer(generation: str, socket_path: Path) -> Iterator[Peer]:
    """A client process, which ends well."""
    made = Peer(generation, socket_path)
    with made.process:
        yield made
        assert made.process.stdin is not None
        made.process.stdin.close()
        assert made.process.wait(EXIT_S) == 0


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run" / "s"


@pytest.fixture
def served(path: Path) -> Iterator[Served]:
    service = Served(path)
    yield service
    for workload_id in service.client.list():
        service.client.detach(workload_id)
    assert service.end() == 0


@pytest.fixture
def base(served: Served, path: Path) -> Iterator[Peer]:
    with peer("base", path) as made:
        yield made


@pytest.fixture
def future(served: Served, path: Path) -> Iterator[Peer]:
    with peer("future", path) as made:
        yield made


@pytest.fixture
def pod() -> Iterator[Pod]:
    with pods(1) as (made,):
        yield made


def netns(pod: Pod, if_name: str = "eth0") -> dict[str, str]:
    return {"netns_path": pod.path, "if_name": if_name}


def interfaces() -> set[tuple[int, str]]:
    """Return indexes with MAC and other addresses, of the calling thread's
    namespace; not those that the kernel adds once a link is up.
    """
    with IPRoute() as witness:
        links = {(one["index"], one.get("IFLA_ADDRESS")) for one in witness.get_links()}
        addresses = {(one["index"], one.get("IFA_ADDRESS")) for one in witness.get_addr()}
    return links | {one for one in addresses if one[1] == "fe80::1" or one[1][:4] != "fe80"}


def packed(ips: list[str]) -> list[bytes]:
    """Return bytes in protobuf's JSON."""
    return [base64.b64decode(ip) for ip in ips]


def string(number: int, value: str | bytes) -> bytes:
    """Return a length-delimited field, number below 16, below 128 bytes."""
    data = value.encode() if isinstance(value, str) else value
    assert number < 16
    assert len(data) < 128
    return bytes([number << 3 | 2, len(data)]) + data


# ---- A caller built from the base ------------------------------------------


def test_attach_in_both_families(base: Peer, served: Served, pod: Pod) -> None:
    answer = base.ok("Attach", workload_id="web-1", netns=netns(pod))
    assert list(answer["response"]) == ["ip"]
    ips = texts(packed(answer["response"]["ip"]))
    for ip, prefix in zip(ips, PREFIXES, strict=True):
        assert ip_address(ip) in ip_network(prefix)
    assert served.client.list() == {"web-1": ips}
    assert set(ips) < {address for _, address in pod.inside(interfaces)}
    assert answer["unknown"] == BEYOND_THE_BASE


@pytest.mark.parametrize("prefix", PREFIXES)
def test_attach_in_one_family(path: Path, pod: Pod, prefix: str) -> None:
    served = Served(path, prefixes=[prefix])
    with peer("base", path) as base:
        answer = base.ok("Attach", workload_id="web-1", netns=netns(pod))
        (ip,) = texts(packed(answer["response"]["ip"]))
        assert ip_address(ip) in ip_network(prefix)
        base.ok("Detach", workload_id="web-1")
    assert served.end() == 0


def test_the_bytes_are_those_of_ever(base: Peer, pod: Pod) -> None:
    """The base proto itself, against its encoding by hand."""
    answer = base.ok("Attach", workload_id="web-1", netns=netns(pod))
    inner = string(1, pod.path) + string(2, "eth0")
    assert bytes.fromhex(answer["sent"]) == string(1, "web-1") + string(2, inner)
    ips = b"".join(string(1, ip) for ip in packed(answer["response"]["ip"]))
    assert bytes.fromhex(answer["received"]).startswith(ips)
    answer = base.ok("Detach", workload_id="web-1", netns=netns(pod))
    assert bytes.fromhex(answer["sent"]) == string(1, "web-1") + string(2, inner)
    assert answer["received"] == ""
    answer = base.ok("Status")
    assert (answer["sent"], answer["received"]) == ("", "")


def test_a_repeated_attach_is_the_same(base: Peer, served: Served, pod: Pod) -> None:
    first = base.ok("Attach", workload_id="web-1", netns=netns(pod))
    there = pod.inside(interfaces), interfaces()
    again = base.ok("Attach", workload_id="web-1", netns=netns(pod))
    assert again["received"] == first["received"]
    assert (pod.inside(interfaces), interfaces()) == there
    assert list(served.client.list()) == ["web-1"]


def test_detach_by_the_id_alone_takes_all(base: Peer, served: Served, pod: Pod) -> None:
    before = objects()
    for if_name in ("eth0", "net1"):
        base.ok("Attach", workload_id="web-1", netns=netns(pod, if_name))
    base.ok("Attach", workload_id="web-2", netns=netns(pod, "net2"))
    answer = base.ok("Detach", workload_id="web-1")
    assert (answer["response"], answer["unknown"]) == ({}, [])
    assert list(served.client.list()) == ["web-2"]
    base.ok("Detach", workload_id="web-2")
    assert await_objects(before) == before
    base.ok("Detach", workload_id="web-2")
    base.ok("Detach", workload_id="never-there")


def test_detach_of_one_interface(base: Peer, served: Served, pod: Pod) -> None:
    ips = {}
    for if_name in ("eth0", "net1"):
        answer = base.ok("Attach", workload_id="web-1", netns=netns(pod, if_name))
        ips[if_name] = texts(packed(answer["response"]["ip"]))
    base.ok("Detach", workload_id="web-1", netns=netns(pod))
    assert served.client.list() == {"web-1": ips["net1"]}
    base.ok("Detach", workload_id="web-1", netns={"if_name": "net1"})
    assert served.client.list() == {}


def test_a_namespace_that_is_another_is_left_alone(base: Peer, served: Served) -> None:
    with pods(2) as (one, two):
        base.ok("Attach", workload_id="web-1", netns=netns(one))
        base.ok("Detach", workload_id="web-1", netns=netns(two))
        assert list(served.client.list()) == ["web-1"]
        one.close()
        base.ok("Detach", workload_id="web-1", netns={"netns_path": "/run/netns/gone"})
        assert served.client.list() == {}


def test_status(base: Peer) -> None:
    answer = base.ok("Status")
    assert (answer["response"], answer["unknown"]) == ({}, [])


def test_without_a_prefix(path: Path, pod: Pod) -> None:
    served = Served(path, prefixes=[])
    with peer("base", path) as base:
        code, details = base.refused("Status")
        assert (code, "prefix" in details) == ("UNAVAILABLE", True)
        assert base.refused("Attach", workload_id="w", netns=netns(pod))[0] == "UNAVAILABLE"
        base.ok("Detach", workload_id="w")
    assert served.end() == 0


def test_errors(base: Peer, served: Served, pod: Pod) -> None:
    missing = {"netns_path": "/run/netns/missing", "if_name": "eth0"}
    wrong: list[tuple[dict[str, Any], str, str]] = [
        ({"netns": netns(pod)}, "INVALID_ARGUMENT", "workload_id"),
        ({"workload_id": "x" * 256, "netns": netns(pod)}, "INVALID_ARGUMENT", "workload_id"),
        ({"workload_id": "web-1"}, "INVALID_ARGUMENT", "netns_path"),
        ({"workload_id": "web-1", "netns": netns(pod, "")}, "INVALID_ARGUMENT", "if_name"),
        ({"workload_id": "web-1", "netns": netns(pod, "x" * 16)}, "INVALID_ARGUMENT", "if_name"),
        ({"workload_id": "web-1", "netns": missing}, "NOT_FOUND", "missing"),
    ]
    for request, expected, names in wrong:
        code, details = base.refused("Attach", **request)
        assert (code, names in details) == (expected, True), details
    assert base.refused("Detach")[0] == "INVALID_ARGUMENT"
    assert served.client.list() == {}
    base.ok("Attach", workload_id="web-1", netns=netns(pod))
    assert base.refused("Attach", workload_id="web-2", netns=netns(pod))[0] == "ALREADY_EXISTS"
    with pods(1) as (other,):
        code, _ = base.refused("Attach", workload_id="web-1", netns=netns(other))
        assert code == "ALREADY_EXISTS"
    assert list(served.client.list()) == ["web-1"]


def test_no_address_left(path: Path) -> None:
    served = Served(path, prefixes=["10.192.0.0/30"])
    with peer("base", path) as base, pods(5) as spaces:
        codes = [
            base.call("Attach", workload_id=f"web-{n}", netns=netns(pod))["code"]
            for n, pod in enumerate(spaces)
        ]
        given = len(served.client.list())
        assert codes == ["OK"] * given + ["RESOURCE_EXHAUSTED"] * (5 - given)
        assert 0 < given < 5
        for n in range(5):
            base.ok("Detach", workload_id=f"web-{n}")
    assert served.end() == 0


# ---- Fields of the future ----------------------------------------------------

BYTES = base64.b64encode(b"\xff\xfe").decode()  # no UTF-8
NEW_NETNS = {"driver": "bridge", "token": BYTES, "queues": 4}
NEW_ATTACH: dict[str, Any] = {
    "priority": 2**63,
    "colour": 7,
    "weight": 1.5,
    "label": "é",
    "second": {"netns_path": "/run/netns/missing", "if_name": "net1"} | NEW_NETNS,
    "offsets": [-1, 1],
    "labels": {"a": "b"},
    "last": BYTES,
}
NEW_DETACH = {"force": True, "stamp": 2**63, "reasons": ["a", "b"]}
NEW_STATUS = {"scope": "all", "deep": True, "netns": NEW_NETNS}


def test_the_service_ignores_fields_of_the_future(
    base: Peer, future: Peer, served: Served, pod: Pod
) -> None:
    before = objects()
    known = base.ok("Attach", workload_id="web-1", netns=netns(pod))
    there = pod.inside(interfaces), interfaces()
    new = future.ok("Attach", workload_id="web-1", netns=netns(pod) | NEW_NETNS, **NEW_ATTACH)
    assert len(new["sent"]) > len(known["sent"]) + 100
    assert new["received"] == known["received"]
    assert (pod.inside(interfaces), interfaces()) == there
    future.ok("Detach", workload_id="web-1", netns=netns(pod) | NEW_NETNS, **NEW_DETACH)
    assert served.client.list() == {}
    assert await_objects(before) == before

    made = future.ok("Attach", workload_id="web-2", netns=netns(pod) | NEW_NETNS, **NEW_ATTACH)
    assert served.client.list() == {"web-2": texts(packed(made["response"]["ip"]))}
    future.ok("Detach", workload_id="web-2", **NEW_DETACH)
    assert await_objects(before) == before
    assert future.ok("Status", **NEW_STATUS)["received"] == ""


def test_fields_of_the_future_do_not_excuse_those_of_the_base(future: Peer, pod: Pod) -> None:
    code, details = future.refused("Attach", netns=netns(pod) | NEW_NETNS, **NEW_ATTACH)
    assert (code, "workload_id" in details) == ("INVALID_ARGUMENT", True)
    code, details = future.refused("Attach", workload_id="web-1", netns=NEW_NETNS, **NEW_ATTACH)
    assert (code, "netns_path" in details) == ("INVALID_ARGUMENT", True)


def test_a_method_of_the_future_is_refused(future: Peer, served: Served, pod: Pod) -> None:
    future.ok("Attach", workload_id="web-1", netns=netns(pod))
    assert future.refused("Rename", workload_id="web-1")[0] == "UNIMPLEMENTED"
    assert list(served.client.list()) == ["web-1"]
    future.ok("Status")


@pytest.fixture
def later(tmp_path: Path) -> Iterator[Path]:
    """Return the socket of a service built from future.proto."""
    path = tmp_path / "later"
    command = [sys.executable, "-m", f"{HERE}.future_server", str(path)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield path
        process.stdin.close()
        assert process.wait(EXIT_S) == 0


def test_the_base_reads_answers_of_the_future(later: Path) -> None:
    with peer("base", later) as base:
        netns = {"netns_path": "/run/netns/a", "if_name": "eth0"}
        answer = base.ok("Attach", workload_id="web-1", netns=netns)
        assert list(answer["response"]) == ["ip"]
        assert texts(packed(answer["response"]["ip"])) == ("10.192.0.9", "fd00:10:192::9")
        assert answer["unknown"] == [2, 62, 63, 1001, 1002, 2**29 - 1]
        answer = base.ok("Detach", workload_id="web-1")
        assert (answer["response"], answer["unknown"]) == ({}, [1, 1001])
        answer = base.ok("Status")
        assert (answer["response"], answer["unknown"]) == ({}, [1, 63, 1001])


def test_our_own_client_reads_answers_of_the_future(later: Path) -> None:
    client = Client(later)
    netns = pb.NetNSAttachment(netns_path="/run/netns/a", if_name="eth0")
    request = pb.AttachRequest(workload_id="web-1", netns=netns)
    answer = client.stub.Attach(request, timeout=EXIT_S)
    assert texts(answer.ip) == ("10.192.0.9", "fd00:10:192::9")
    assert (answer.mac, answer.mtu, list(answer.routes)) == (b"", 0, [])
    gone = client.stub.Detach(pb.DetachRequest(workload_id="web-1"), timeout=EXIT_S)
    status = client.stub.Status(pb.StatusRequest(), timeout=EXIT_S)
    assert (gone.ListFields(), status.ListFields()) == ([], [])
    assert (gone.ByteSize(), status.ByteSize()) != (0, 0)
    with pytest.raises(grpc.RpcError, match="UNIMPLEMENTED"):
        client.list()
    client.close()


# ---- What the wire does not show ---------------------------------------------

STRING, BYTES_TYPE, MESSAGE = Field.TYPE_STRING, Field.TYPE_BYTES, Field.TYPE_MESSAGE
# Messages, and their fields as name, number, type and whether repeated.
BASE: dict[str, set[tuple[str, int, int, bool]]] = {
    "NetNSAttachment": {("netns_path", 1, STRING, False), ("if_name", 2, STRING, False)},
    "AttachRequest": {("workload_id", 1, STRING, False), ("netns", 2, MESSAGE, False)},
    "AttachResponse": {("ip", 1, BYTES_TYPE, True)},
    "DetachRequest": {("workload_id", 1, STRING, False), ("netns", 2, MESSAGE, False)},
    "DetachResponse": set(),
    "StatusRequest": set(),
    "StatusResponse": set(),
}


def base_file() -> Any:
    """Return base.proto's descriptor, in a pool of its own."""
    script = (
        f"import sys; from {HERE} import base_pb2;"
        "sys.stdout.buffer.write(base_pb2.DESCRIPTOR.serialized_pb)"
    )
    file = FileDescriptorProto.FromString(subprocess.check_output([sys.executable, "-c", script]))
    pool = DescriptorPool()
    pool.Add(file)
    return pool.FindFileByName(file.name)


@pytest.mark.parametrize("whose", ["ours", "base"])
def test_base_fields_have_the_numbers_and_types_of_ever(whose: str) -> None:
    file: Any = pb.DESCRIPTOR if whose == "ours" else base_file()
    assert file.package == "metropolis.node.core.network.workloads"
    for name, expected in BASE.items():
        message = file.message_types_by_name[name]
        fields = [field for field in message.fields if field.number < 64]
        found = {(one.name, one.number, one.type, one.is_repeated) for one in fields}
        assert found == expected, name
        assert all(one.has_presence == (one.type == MESSAGE) for one in fields), name
        for one in fields:
            if one.type == MESSAGE:
                assert one.message_type.name == "NetNSAttachment"
        if whose == "base":
            assert len(message.fields) == len(expected)
    service = file.services_by_name["WorkloadNetworking"]
    for method in ("Attach", "Detach", "Status"):
        found_method = service.methods_by_name[method]
        kinds = (found_method.input_type.name, found_method.output_type.name)
        assert kinds == (f"{method}Request", f"{method}Response")
        assert not found_method.client_streaming
        assert not found_method.server_streaming
