# SPDX-License-Identifier: Apache-2.0
"""metroctl, the operator's command: shows and changes a cluster, and shows the
network of a node's workloads.

    main ──┬─ cluster    arguments of `cluster` and `node`, and the connection
           │  └─ commands    their work, by the curator's administration
           └─ workload   `workload`, by node core's socket
    output   their output: tables for people, JSON for programs

Each imports what it needs when it is used: `workload` starts without etcd's
parts, on a node that may be short of memory.

Why not etcdctl: values are protobuf, and a node is removed in one transaction
or not at all.
"""
