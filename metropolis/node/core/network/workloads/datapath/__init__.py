# SPDX-License-Identifier: Apache-2.0
"""How attachments are made in the kernel, behind one interface.

    interface ── the engine's view: Datapath, Record, Netns, Scan
        │
       veth ──┬──> messages   the three batches of an attach, pure
              ├──> removal    the queue of removals, and the requests
              ├──> restore    a start, and every look of the reconciler
              │      ├──> plan      what a start makes of links, pure
              │      └──> repairs   what is put back, and how, pure
              ├──> observe    reads what checks compares
              │      └──> checks    what differs from a record, pure
              ├──> netns      the namespaces of the host and of workloads
              ├──> elements   nftables elements of attachments
              └──> host       sockets, batches and dumps of the host

    names      records on links: the format that a restart reads, pure
    parts      what a part of an attachment says to all of these, pure
    registry   the parts that there are

The fake in ../testing passes the same contract suite.
"""
