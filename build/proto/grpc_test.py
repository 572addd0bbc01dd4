# SPDX-License-Identifier: Apache-2.0
"""Generated code works: a call over a unix socket, imports between protos."""

import pathlib
from collections.abc import Iterator
from concurrent import futures

import grpc

from build.proto.testdata import greeting_pb2, greeting_pb2_grpc, name_pb2


class Greeter(greeting_pb2_grpc.GreeterServicer):
    """Says hello."""

    def Greet(  # noqa: N802 (gRPC's name)
        self, request: greeting_pb2.GreetRequest, context: grpc.ServicerContext
    ) -> greeting_pb2.GreetResponse:
        """Greet one."""
        return greeting_pb2.GreetResponse(text=f"hello {request.name.given}")

    def GreetMany(  # noqa: N802 (gRPC's name)
        self,
        request_iterator: Iterator[greeting_pb2.GreetRequest],
        context: grpc.ServicerContext,
    ) -> Iterator[greeting_pb2.GreetResponse]:
        """Greet each as it comes."""
        for request in request_iterator:
            yield self.Greet(request, context)


def test_calls(tmp_path: pathlib.Path) -> None:
    address = f"unix:{tmp_path}/greeter.sock"
    server = grpc.server(futures.ThreadPoolExecutor(2))
    greeting_pb2_grpc.add_GreeterServicer_to_server(Greeter(), server)
    server.add_insecure_port(address)
    server.start()
    request = greeting_pb2.GreetRequest(name=name_pb2.Name(given="pod"))
    request.patience.FromSeconds(3)
    with grpc.insecure_channel(address) as channel:
        stub = greeting_pb2_grpc.GreeterStub(channel)
        assert stub.Greet(request).text == "hello pod"
        assert [r.text for r in stub.GreetMany(iter([request] * 2))] == ["hello pod"] * 2
    server.stop(None).wait()


def test_descriptors_carry_the_import_path() -> None:
    assert greeting_pb2.DESCRIPTOR.name == "build/proto/testdata/greeting.proto"


def test_stubs_for_the_type_checker_are_made() -> None:
    folder = pathlib.Path(greeting_pb2.__file__).parent
    made = {path.name for path in folder.glob("*.pyi")}
    assert {"greeting_pb2.pyi", "greeting_pb2_grpc.pyi", "name_pb2.pyi"} <= made
    assert "name_pb2_grpc.pyi" not in made
