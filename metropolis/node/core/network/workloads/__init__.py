# SPDX-License-Identifier: Apache-2.0
"""The workload network service: gives pods, containers and VMs their network.

    gRPC ──> api ──┐
    CNI  ──────────┴──> engine ──┬──> ledger      the state, and its mutex
                                 └──> datapath.interface
                                         ├── datapath.veth   rtnetlink
                                         └── testing.fake    for tests

    api        requests: messages, the server
    engine     ownership, and the order of steps
    datapath   how it is made in the kernel
    testing    the fake, the contract suite that both keep, a lab

    for all of them:  model, errors, validate, conditions, parts

A folder imports only what is to its right: build/lint checks that. The steps of
an attach, and what a crash leaves after each, are in engine.attach; those of a
removal in engine.detach.

An attachment is a veth pair: one end in the workload's network namespace with
a /32 and a /128 address and its routes, the other on the host with the routes
to them. Routed, no bridge, the same link-local first hop on every node.

The kernel is the database. A restart reads all its state from the host-side
link: workload id, owner, namespace identity, interface name, addresses, MAC,
MTU, parts and a digest of the request (alternative names; see names), and the
peer's index. No state file: nothing can be stale, and a reboot starts clean. A
link without its records is an attach that never finished: a restart removes it.
One that has them is a running pod, and is put right. Links that only look like
ours, or that a newer version made, are left alone, their addresses are not
handed out, and Status says so.

Others change links, too. A pod's traffic depends on the following, on the host.
A start, and every look of the ward, compares and restores it:

    link      up, ARP on, in the workloads' group, in no bridge; MAC; MTU
    ipv4      conf/LINK/forwarding 1, while the host forwards at all;
              conf/LINK/arp_ignore 0, as the first hop is an address of lo;
              conf/LINK/rp_filter 1 and arp_accept 0, so that invented
              senders of ARP do not become neighbours
    ipv6      conf/LINK/disable_ipv6 0; fe80::1 on the link; no addresses that
              the kernel chose (addr_gen_mode)
    routes    of protocol 77: the workload's addresses, its link-local one
    records   name, alias, alternative names: for a removal, and a restart
    parts     what they added to the link; their nftables elements

It does not depend on: proxies, redirects, accept_ra; IPv6's
conf/LINK/forwarding, since the kernel uses `all`. Settings beyond one link,
such as ip_forward, lo, the rule set, and arp_ignore of `all`, are guarded by
their own wards. Nothing inside a namespace is restored. Links in a removal
group, and attachments that a call is busy with, are not touched.

An attach is three sends: create the pair (host); configure the inside
(namespace); name, up, first hop and routes (host, the commit).

What a request asks for besides addresses is a part: a module that says, purely,
all that is to be known of it. The rest iterates over the parts that the program
which serves has given to the datapath, so that a new one touches no other:

    check        which texts it understands           engine, recovery
    resources    what it reserves on the node         ledger
    requests     what it adds to the link             attach, repair
    elements     what it has in nftables              attach, repair, removal
    findings     what of the link differs             Check, repair

Its text is written on the link, and read back from there by a restart. The
product has none yet (datapath.registry); testing.toy_part is one.

An attachment ends by Detach, by Collect (whatever is not said to be live), or
with its namespace, which is noticed; Watch tells of each. Check says what is
not as it was made, and of the node's problems, and mends nothing.

Limits: one IPv4 and one IPv6 address an interface. If a namespace has several
interfaces, the first has the default route, the others have it with a greater
metric: traffic through them must be bound to the interface. Where IPv6 is off,
in the node's kernel or in a namespace (net.ipv6.conf.*.disable_ipv6), and there
is an IPv6 prefix, an attach is refused; if the node's configuration makes IPv6
optional, it gets IPv4 alone. The kernel's refusal reveals it, so other attaches
pay nothing for the check.

Why not CNI plugins: two processes and a file a pod and call, tens of
milliseconds, and leaks when one of them dies in between.
"""
