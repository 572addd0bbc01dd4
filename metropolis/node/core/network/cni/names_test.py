# SPDX-License-Identifier: Apache-2.0
"""Errors reach a caller of CNI with CNI's names."""

import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_address

import pytest

from metropolis.node.core.network.cni.adapter import Adapter
from metropolis.node.core.network.cni.names import in_words_of_cni
from metropolis.node.core.network.cni.protocol import encode
from metropolis.node.core.network.cni.wire import Answer, Request
from metropolis.node.core.network.workloads import bandwidth, errors, host_ports
from metropolis.node.core.network.workloads.model import AttachIntent, Attachment
from metropolis.node.core.network.workloads.spec import workload_pb2 as pb


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "port_mapping: host_ip 198.51.100.1: is not an address of this node",
            "runtimeConfig.portMappings: hostIP 198.51.100.1: is not an address of this node",
        ),
        ("port_mapping: host_port 0: must be", "runtimeConfig.portMappings: hostPort 0: must be"),
        (
            "bandwidth: ingress_burst 7: needs an ingress_rate",
            "runtimeConfig.bandwidth: ingressBurst 7: needs an ingressRate",
        ),
        ("requested_ip 10.0.0.5: in use by workload 'w1'", "ips 10.0.0.5: in use by workload 'w1'"),
        ("requested_mac b'x': must", "mac b'x': must"),
        ("netns.netns_path '/x': is", "CNI_NETNS '/x': is"),
        ("with MAC 02, port_mapping 't80=80', made", "with MAC 02, runtimeConfig.portMappings "
         "'t80=80', made"),
        # Values, and words of others, stay.
        ("attach 'host_ip', interface 'bandwidth': busy", None),
        ("netns '/run/host_port/x': is none", None),
        ("port_mapping_of: my-host_ip: 'if_name b'", None),
    ],
)  # fmt: skip
def test_names(text: str, expected: str | None) -> None:
    assert in_words_of_cni(text) == (text if expected is None else expected)


class Refusing:
    """An engine that refuses with an error."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def list(self, workload_id: str = "") -> Sequence[Attachment]:
        return []

    def attach(self, intent: AttachIntent) -> Attachment:
        raise self.error

    def protect(self, workload_id: str) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(1)  # any that `with` takes


@pytest.mark.parametrize(
    "error",
    [
        host_ports.invalid("host_ip ::1: is not an address of this node"),
        errors.FailedPrecondition("port_mapping: tcp port 80: nginx listens at host_ip"),
        bandwidth.invalid("egress_rate 7: must be more"),
        errors.AlreadyExists("requested_ip 10.0.0.5: in use"),
        errors.InvalidArgument("requested_mac b'': must have 6 bytes", field="requested_mac"),
    ],
)
async def test_no_error_of_the_engine_has_names_of_the_api(error: Exception) -> None:
    answers: list[Answer] = []

    async def deliver(answer: Answer) -> bool:
        answers.append(answer)
        return True

    env = {"CNI_COMMAND": "ADD", "CNI_CONTAINERID": "c1", "CNI_IFNAME": "eth0", "CNI_NETNS": "/x"}
    stdin = encode({"cniVersion": "1.1.0", "name": "blue", "type": "cniproxy"})
    with ThreadPoolExecutor(1) as executor:
        adapter = Adapter(Refusing(error), executor)  # type: ignore[arg-type]
        await adapter.serve(Request(("cniproxy",), env, stdin), deliver, lambda: False)
    (answer,) = answers
    said = answer.stdout.decode()
    assert answer.exit_code == 1
    every = [
        field.name
        for message in (pb.AttachRequest, pb.PortMapping, pb.Bandwidth)
        for field in message.DESCRIPTOR.fields
        if "_" in field.name
    ]
    assert "host_ip" in every
    assert not re.search("|".join(every), said), said


def test_it_is_the_part_of_the_request_too() -> None:
    mapping = host_ports.Mapping("tcp", 0, 80, ip_address("::1"))
    with pytest.raises(errors.InvalidArgument) as caught:
        host_ports.part_of([mapping])
    assert in_words_of_cni(str(caught.value)).startswith(
        "runtimeConfig.portMappings: hostPort 0: must be 1 to 65535; hostIP ::1: "
    )
