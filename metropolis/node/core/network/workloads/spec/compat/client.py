# SPDX-License-Identifier: Apache-2.0
"""A caller built from base.proto or future.proto alone.

    client base|future SOCKET

One call a line of standard input: {"method": NAME, "request": {...}}, as
protobuf's JSON (bytes in base64). One answer a line of standard output:

    sent         the request, as bytes in hex
    code         the status, such as "OK"
    details      of an error
    response     protobuf's JSON of the fields that this caller knows
    unknown      the numbers of those that it does not
    received     the response, as bytes in hex

What is called is the generated stub, and what reads is the generated message.
"""

import argparse
import importlib
import json
import sys
from typing import Any

import grpc
from google.protobuf import json_format
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from google.protobuf.unknown_fields import UnknownFieldSet

HERE = "metropolis.node.core.network.workloads.spec.compat"
OURS = "metropolis.node.core.network.workloads.spec.workload_pb2"
DEADLINE_S = 20.0


class Caller:
    """The stub of one generation, with messages of the same."""

    def __init__(self, generation: str, channel: grpc.Channel) -> None:
        self._messages: Any = importlib.import_module(f"{HERE}.{generation}_pb2")
        stubs: Any = importlib.import_module(f"{HERE}.{generation}_pb2_grpc")
        self._stub: Any = stubs.WorkloadNetworkingStub(channel)

    def call(self, method: str, fields: dict[str, Any]) -> dict[str, Any]:
        """Call `method`; what came of it, as above."""
        service = self._messages.DESCRIPTOR.services_by_name["WorkloadNetworking"]
        request = GetMessageClass(service.methods_by_name[method].input_type)()
        json_format.ParseDict(fields, request)
        sent = {"sent": request.SerializeToString(deterministic=True).hex()}
        try:
            response: Message = getattr(self._stub, method)(request, timeout=DEADLINE_S)
        except grpc.RpcError as error:
            failed: Any = error
            return sent | {"code": failed.code().name, "details": failed.details()}
        unknown: Any = UnknownFieldSet(response)
        return sent | {
            "code": "OK",
            "response": json_format.MessageToDict(response, preserving_proto_field_name=True),
            "unknown": sorted({field.field_number for field in unknown}),
            "received": response.SerializeToString().hex(),
        }


def main() -> None:
    """Call until standard input ends."""
    parser = argparse.ArgumentParser(description="Call the API with stubs of another proto.")
    parser.add_argument("generation", choices=["base", "future"])
    parser.add_argument("socket")
    given = parser.parse_args()
    with grpc.insecure_channel(f"unix:{given.socket}") as channel:
        caller = Caller(given.generation, channel)
        if OURS in sys.modules:
            sys.exit("client: has the service's own messages, and so shows nothing")
        for line in sys.stdin:
            wanted = json.loads(line)
            print(json.dumps(caller.call(wanted["method"], wanted["request"])), flush=True)


if __name__ == "__main__":
    main()
