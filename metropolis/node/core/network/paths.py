# SPDX-License-Identifier: Apache-2.0
"""Where the network service listens and writes."""

from __future__ import annotations

from dataclasses import dataclass

from metropolis.node import allocs


@dataclass(frozen=True)
class Paths:
    """Where the service listens and writes. rpc_server: gRPC's implementation,
    see osbase.rpc.choose; tests use other values.
    """

    workload_socket: str = allocs.WORKLOAD_SOCKET
    cni_socket: str = allocs.CNI_SOCKET
    resolv_conf: str = allocs.RESOLV_CONF
    state_dir: str = allocs.STATE_DIR
    time_dir: str = allocs.TIME_DIR
    policy_dir: str = allocs.POLICY_DIR
    policy_files: str = allocs.POLICY_FILES
    rpc_server: str = "auto"
