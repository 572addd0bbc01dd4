# SPDX-License-Identifier: Apache-2.0
"""`metroctl policy`, with a service that has what a test says."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest

from metropolis.cli.metroctl import main
from metropolis.node.core.network.policy.spec import policy_pb2 as pb
from metropolis.node.core.network.workloads.spec import workload_pb2

_POLICIES = "/metropolis.node.core.network.policy.NetworkPolicies/"
_STATUS = "/metropolis.node.core.network.workloads.WorkloadNetworking/Status"


class Node(grpc.GenericRpcHandler):
    """The service, and the command. asked: requests by method."""

    def __init__(self, directory: Path, capture: pytest.CaptureFixture[str]) -> None:
        self.policies = pb.GetPoliciesResponse()
        self.status = workload_pb2.StatusResponse()
        self.asked: dict[str, bytes] = {}
        self._capture = capture
        self._socket = directory / "s"
        self._server = grpc.server(ThreadPoolExecutor(2), handlers=[self])
        self._server.add_insecure_port(f"unix:{self._socket}")
        self._server.start()

    def service(self, details: Any) -> Any:
        """Answer a call."""
        answers = {
            f"{_POLICIES}GetPolicies": self.policies,
            f"{_POLICIES}SetLabels": pb.SetLabelsResponse(),
            f"{_POLICIES}Explain": pb.ExplainResponse(),
            _STATUS: self.status,
        }

        def answer(request: bytes, context: object) -> bytes:
            self.asked[details.method.rpartition("/")[2]] = request
            return answers[details.method].SerializeToString()

        return grpc.unary_unary_rpc_method_handler(answer)

    def run(self, *arguments: str) -> tuple[int, str, str]:
        """Run a command; return its status, stdout and stderr."""
        try:
            number = main.main(["policy", "--socket", str(self._socket), *arguments])
        except SystemExit as end:
            assert isinstance(end.code, int)
            number = end.code
        said = self._capture.readouterr()
        return number, said.out, said.err

    def close(self) -> None:
        """Stop."""
        self._server.stop(0).wait()


@pytest.fixture
def node(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Node]:
    made = Node(tmp_path, capsys)
    yield made
    made.close()


def test_a_file_that_cannot_be_read_is_in_the_list(node: Node) -> None:
    """It has no policy that could say it, and perhaps none is in force."""
    node.status.problems.add(name="policy-files", text="/x.yaml:2: not YAML")
    node.status.problems.add(name="uplink", text="no carrier")
    number, out, _ = node.run("list")
    assert number == 1
    assert out == "no policies are in force\nwrong: policy-files: /x.yaml:2: not YAML\n"
    number, out, _ = node.run("--json", "list")
    assert number == 1
    assert json.loads(out)["problems"] == {"policy-files": "/x.yaml:2: not YAML"}


def test_policies_without_errors(node: Node) -> None:
    policy = pb.Policy(name="shop/db", tier=pb.Policy.NAMESPACE)
    node.policies.policies.add(source="files", policy=policy)
    number, out, _ = node.run("list")
    assert number == 0
    assert "shop/db" in out
    assert "wrong:" not in out


def test_unknown_workloads(node: Node) -> None:
    node.policies.unknown.append("web-1")
    number, out, _ = node.run("list")
    assert number == 0
    assert "labels are not known, which isolates it under policies: web-1" in out


def test_label(node: Node) -> None:
    assert node.run("label", "web-1", "shop", "app=web", "tier=")[:2] == (0, "done\n")
    asked = pb.SetLabelsRequest.FromString(node.asked["SetLabels"])
    assert (asked.identity.namespace, dict(asked.identity.labels)) == (
        "shop",
        {"app": "web", "tier": ""},
    )


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("app=web",), "'app=web': the namespace comes before the labels"),
        (("shop", "app=a", "app=b"), "label app: is given twice"),
        (("shop", "app"), "'app': want KEY=VALUE"),
        (("shop", "=web"), "'=web': want KEY=VALUE"),
    ],
)
def test_labels_that_are_refused(node: Node, arguments: tuple[str, ...], why: str) -> None:
    """Before the service is asked: the workload stays what it was."""
    number, _, error = node.run("label", "web-1", *arguments)
    assert number == 2
    assert why in error
    assert not node.asked


@pytest.mark.parametrize("port", ["53/udp", "53/UDP"])
def test_a_protocol_as_in_a_policy(node: Node, port: str) -> None:
    node.run("explain", "web-1", "192.0.2.7", port)
    asked = pb.ExplainRequest.FromString(node.asked["Explain"])
    assert (asked.protocol, asked.port) == (pb.UDP, 53)
