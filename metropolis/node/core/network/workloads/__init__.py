# SPDX-License-Identifier: Apache-2.0
"""The workload network service: gives pods, containers and VMs their network.

    gRPC, CNI ── validate ──> engine ──> pool        addresses, pure
    (server)     (pure)         │
                                ├──> watchers        who is told of changes
                                └──> datapath        the one interface to the
                                       ├ kernel      kernel: rtnetlink, or a
                                       │             fake with the same contract
                                       ├ batches     what an attach sends, pure
                                       ├ removals    who is removed together
                                       └ testing/    the fake

    below the datapath, pure:   names     records on links
                                recovery  what a restart makes of links
                                checks    what differs from an attachment
                    not pure:   observe   reads what checks compares

An attachment is a veth pair: one end in the workload's network namespace with
a /32 and a /128 address and its routes, the other on the host with the routes
to them. Routed, no bridge, the same link-local first hop on every node.

The kernel is the database. All that a restart must know is on the host-side
link: workload id (alias), namespace identity, interface name, addresses, MAC
and a digest of the request (alternative names), MTU and the peer's index. No
state file: nothing can be stale, and a reboot starts clean. A host-side link
that is down or has no record is an attach that never finished: a restart
removes it. Links that only look like ours it leaves alone, and says so.

An attach is three sends: create the pair (host); configure the inside
(namespace); name, up, first hop and routes (host, the commit).

An attachment ends by Detach, by Collect (whatever is not said to be live), or
with its namespace, which is noticed; Watch tells of each. Check says what is
not as it was made, and mends nothing.

Limits: one IPv4 and one IPv6 address an interface. Of several interfaces in
one namespace the first has the default route, the others have it with a
greater metric: what is to leave through them must be bound to the interface.
A namespace in which IPv6 is switched off (net.ipv6.conf.*.disable_ipv6) is
refused on a node that has IPv6 prefixes, in the kernel's words.

Why not CNI plugins: two processes and a file a pod and call, tens of
milliseconds, and leaks when one of them dies in between.
"""
