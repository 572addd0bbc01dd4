# SPDX-License-Identifier: Apache-2.0
"""Benchmarks: what the product costs, beside the kernel's floor and its peers.

    attach      one attach and detach, through every interface
    limits      what bandwidth limits let through, and the wait in their queues
    links       kinds of links for a pod: veth, netkit
    packets     the cost of the rule set per packet
    runtimes    whole pods, with containerd and with other runtimes' networks
    scale       a node in a cluster of thousands
    common      shared by all

Each is a package whose docstring explains how to run it; it imports only
`common` of the others. Results are in PERFORMANCE.md and CLUSTER.md. No test is
timed: the tests here run each benchmark with few samples and check that it
works.
"""
