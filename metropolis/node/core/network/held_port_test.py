# SPDX-License-Identifier: Apache-2.0
"""The overlay's port belongs to another program when node core starts: pods are
listed and removed, and Status names the port's owner.

In a machine, since the host's kernel may have no WireGuard.
"""

from __future__ import annotations

import signal
import socket
import time

import grpc
import pytest

from metropolis.node import allocs
from metropolis.node.core.network.testing.nodecore import NodeCore
from metropolis.node.core.network.workloads.spec import workload_pb2 as pb
from osbase.test.namespaces import LIMIT_S, sh

ALONE = 'network { pod_prefix: "10.192.0.0/24" }'
CLUSTER = """
network {}
cluster { node_id: "node-1" etcd_endpoint: "127.0.0.1:1" underlay_address: "192.0.2.7" }
"""
HELD = f"another program has UDP port {allocs.WIREGUARD_PORT}"


def test_the_port_is_held(world: None, core: NodeCore) -> None:
    """And in the end it is free."""
    core.config = ALONE
    core.start()
    core.attach("pod-a")
    assert core.stop(signal.SIGKILL) == -signal.SIGKILL
    core.config = CLUSTER
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(("0.0.0.0", allocs.WIREGUARD_PORT))
        core.start(ready=False)
        core.wait_until_said(HELD)
        assert core.listed() == {"pod-a"}
        core.stub().Check(pb.CheckRequest(workload_id="pod-a"), timeout=LIMIT_S)
        core.stub().Detach(pb.DetachRequest(workload_id="pod-a"), timeout=LIMIT_S)
        assert core.listed() == set()
        with pytest.raises(grpc.RpcError, match=HELD) as refusal:
            core.attach("pod-a")
        assert refusal.value.code() is grpc.StatusCode.UNAVAILABLE
    deadline = time.monotonic() + 2 * LIMIT_S
    while HELD in core.said():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert core.stop() == 0
    sh(f"ip link del {allocs.OVERLAY_LINK}")
