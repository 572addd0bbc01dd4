# SPDX-License-Identifier: Apache-2.0
"""The network service of a node.

    service    the runnable that owns all of it
    workload_service  its part that makes the engine, and serves it
    failures   why a part fails is in Status
    host, paths  what the node itself needs; where the service listens
    sysctls    kernel settings
    rules/     what may go where: nftables, rendered from settings
    reconcile/ puts back what others change
    conntrack  no workload fills the table of tracked flows
    uplink/    how the node reaches the world
    gate       pod prefixes and networks, unless they overlap what is in use
    overlap    which do, and with what                      pure
    names      Status waits for name servers
    overlay/   WireGuard between the nodes of a cluster
    workloads/ interfaces of workloads: engine, kernel, gRPC
    cni/       the same for runtimes that speak CNI

Importing this package imports nothing; its parts import what they need.
"""
