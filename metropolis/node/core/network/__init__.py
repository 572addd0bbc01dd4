# SPDX-License-Identifier: Apache-2.0
"""The network service of a node.

    service    the runnable that owns all of it
    workload_service  the task that makes the engine, and serves it
    failures   failing tasks are problems in Status
    host, paths  preparation of the node; where the service listens
    sysctls    kernel settings
    rules/     which traffic may pass: nftables, rendered from settings
    reconcile/ restores what others change
    conntrack  no workload fills the table of tracked flows alone
    uplink/    how the node reaches other networks
    gate       refuses pod prefixes and networks that overlap used ones
    overlap    finds these overlaps                         pure
    names      Status waits for name servers
    time_servers  time servers for chronyd
    overlay/   WireGuard between the nodes of a cluster
    workloads/ interfaces of workloads: engine, kernel, gRPC
    cni/       the same for runtimes that speak CNI

Importing this package imports nothing else; its modules import what they need.
"""
