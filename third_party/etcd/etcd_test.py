# SPDX-License-Identifier: Apache-2.0
"""The generated client uses etcd's names of the services."""

import grpc

from third_party.etcd import kv_pb2, rpc_pb2, rpc_pb2_grpc


def test_services_have_their_names_on_the_wire() -> None:
    services = rpc_pb2.DESCRIPTOR.services_by_name
    assert services["KV"].full_name == "etcdserverpb.KV"
    assert {"KV", "Watch", "Lease"} <= set(services)
    assert "Txn" in services["KV"].methods_by_name


def test_field_options_were_all_that_went() -> None:
    """A field lost with its options would be read as unknown."""
    put = rpc_pb2.PutRequest(key=b"a", value=b"b", lease=7)
    assert put.SerializeToString() == b"\x0a\x01a\x12\x01b\x18\x07"
    response = rpc_pb2.RangeResponse(kvs=[kv_pb2.KeyValue(key=b"a", mod_revision=3)])
    assert response.SerializeToString() == b"\x12\x05\x0a\x01a\x18\x03"


def test_stubs_can_be_made() -> None:
    with grpc.insecure_channel("unix:/nowhere") as channel:
        assert rpc_pb2_grpc.KVStub(channel).Range is not None
        assert rpc_pb2_grpc.WatchStub(channel).Watch is not None
        assert rpc_pb2_grpc.LeaseStub(channel).LeaseKeepAlive is not None
