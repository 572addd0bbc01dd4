# SPDX-License-Identifier: Apache-2.0
"""The attacks on SECURITY.md's claims: on nodes in machines, and one command.

    claims       runs every test that the page names        verdicts   (pure)
    node_test    attacks on one node                        attacks
    cluster_test attacks in a cluster, by one of its nodes  attacks
    attacks      sends attacks, returns arrived packets     guest, frames
    trials       attacks for both kinds of nodes

The tests beside the packet rules cover every direction, family and order of
each claim, in namespaces. Here the same attacks run on the real image, by a pod
with all capabilities, a host on the uplink's link, and a node with the
cluster's credentials that turned hostile.

Silence never proves that a packet did not arrive: after it, on the same path,
follows one that has to arrive.
"""
