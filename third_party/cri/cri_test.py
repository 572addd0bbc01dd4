# SPDX-License-Identifier: Apache-2.0
"""The generated client uses containerd's name of the service."""

import grpc

from third_party.cri import api_pb2, api_pb2_grpc


def test_service_has_its_name_on_the_wire() -> None:
    services = api_pb2.DESCRIPTOR.services_by_name
    assert services["RuntimeService"].full_name == "runtime.v1.RuntimeService"
    assert "RunPodSandbox" in services["RuntimeService"].methods_by_name


def test_stub_can_be_made() -> None:
    request = api_pb2.RunPodSandboxRequest(
        config=api_pb2.PodSandboxConfig(metadata=api_pb2.PodSandboxMetadata(name="a", uid="b"))
    )
    assert request.config.metadata.name == "a"
    with grpc.insecure_channel("unix:/nowhere") as channel:
        assert api_pb2_grpc.RuntimeServiceStub(channel).RunPodSandbox is not None
