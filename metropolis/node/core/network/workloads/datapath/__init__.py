# SPDX-License-Identifier: Apache-2.0
"""How attachments are made in the kernel, behind one interface.

    interface ── the engine's view: Datapath, Record, Netns, Scan
        │
       veth ──┬──> messages   the three batches of an attach, pure
              ├──> changes    another text of a part, while the link is there
              ├──> removal    the requests of a removal
              ├──> restore    a start, and every look of the reconciler
              │      ├──> plan      what a start does with each link, pure
              │      └──> repairs   differences, with their requests, pure
              ├──> observe    reads the state that checks compares
              │      └──> checks    differences from a record, pure
              ├──> netns      the namespaces of the host and of workloads
              ├──> elements   nftables elements of attachments
              ├──> flows      tracked flows that parts make stale
              ├──> facts      what parts ask about the host
              └──> host       sockets, batches and dumps of the host

    names      records on links: the format that a restart reads, pure
    parts      the base of the parts' modules, pure
    host_ports the part for ports of the node, pure
    registry   the product's parts

The fake in ../testing passes the same contract suite.
"""
