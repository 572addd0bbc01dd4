# SPDX-License-Identifier: Apache-2.0
"""The network service of a node.

    service    the runnable that owns all of it
    workload_service  its part that makes the engine, and serves it
    failures   failing parts are problems in Status
    host, paths  the node's own needs; where the service listens
    sysctls    kernel settings
    rules/     which traffic may pass: nftables, rendered from settings
    reconcile/ restores what others change
    conntrack  no workload fills the table of tracked flows
    uplink/    how the node reaches other networks
    gate       refuses pod prefixes and networks that overlap used ones
    overlap    which overlap, and with what                 pure
    names      Status waits for name servers
    overlay/   WireGuard between the nodes of a cluster
    workloads/ interfaces of workloads: engine, kernel, gRPC
    cni/       the same for runtimes that speak CNI

Importing this package imports nothing else; its parts import what they need.
"""
