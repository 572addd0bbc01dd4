# SPDX-License-Identifier: Apache-2.0
"""SECURITY.md, tried: on nodes in machines, and as one command.

    claims       runs every test that the page names        verdicts   (pure)
    node_test    attacks on one node                        attacks
    cluster_test attacks in a cluster, by one of its nodes  attacks
    attacks      what an attacker does, and what arrived    guest, frames

The tests beside the packet rules have every direction, family and order of each
claim, in namespaces; here the same is tried where nothing is replaced: on the
image, by a pod with all capabilities, a host on the uplink's link, and a node
that took the cluster's credentials and turned hostile.

That a packet did not arrive is never concluded from silence: behind it, by the
same way, comes one that has to arrive.
"""
