# SPDX-License-Identifier: Apache-2.0
"""Benchmarks: what the product costs, beside the kernel's floor and its peers.

    attach      one attach and detach, by every way there is
    links       kinds of links for a pod: veth, netkit
    packets     the rule set, by packet
    runtimes    whole pods, by containerd and by other runtimes' networks
    scale       a node in a cluster of thousands
    common      what they share

Each is a package that says how to run it, and imports only `common` of the
others. Results are in PERFORMANCE.md and CLUSTER.md. No test is timed: the
tests here run each benchmark with few samples and check that it works.
"""
