# SPDX-License-Identifier: Apache-2.0
"""The workload network service: gives pods, containers and VMs their network.

    gRPC ──> api ──┐
    CNI  ──────────┴──> engine ──┬──> ledger      the state, and its mutex
                                 └──> datapath.interface
                                         ├── datapath.veth   rtnetlink
                                         └── testing.fake    for tests

    api        requests: messages, the server
    spec       the .proto of the API, and its compatibility with other versions
    engine     ownership, and the order of steps
    datapath   makes attachments in the kernel
    testing    the fake, the contract suite that both datapaths pass, a lab

    for all of them:  model, errors, validate, conditions, parts, host_ports,
                      bandwidth

A folder imports only folders to its right: build/lint checks that. The steps of
an attach, and what a crash leaves after each, are in engine.attach; those of a
removal in engine.detach.

An attachment is a veth pair: one end in the workload's network namespace with
a /32 and a /128 address and its routes, the other on the host with the routes
to them. Routed, no bridge, the same link-local first hop on every node.

The kernel is the database. A restart reads all its state from the host-side
link: workload id, owner, namespace identity, interface name, addresses, MAC,
MTU, parts and a digest of the request (alternative names; see datapath.names),
and the peer's index. No state file: nothing can be stale, and a reboot starts
clean. A link without its records is an attach that never finished: a restart
removes it. A link with records is a running pod, and is repaired. Links that
only look like ours, or that a newer version made, are left alone, their
addresses are not handed out, and Status reports them.

The first packet of a workload is not lost or delayed: the MAC of the first hop
is written inside as a permanent neighbour, and the kernel looks at the carrier
before Attach returns (by itself it does so later, and the link drops what is
sent until then). The first one to a workload may be, in IPv6.

Other programs change links, too. A pod's traffic depends on the following state
of the host. A start, and every look of the ward, compares and restores it:

    link      up, ARP on, in the workloads' group, in no bridge; MAC; MTU
    ipv4      conf/LINK/forwarding 1, while the host forwards at all;
              conf/LINK/arp_ignore 0, as the first hop is an address of lo;
              conf/LINK/rp_filter 1 and arp_accept 0, so that invented
              senders of ARP do not become neighbours
    ipv6      conf/LINK/disable_ipv6 0; fe80::1 on the link; no addresses that
              the kernel chose (addr_gen_mode)
    routes    of protocol 77: the workload's addresses, its link-local one
    records   name, alias, alternative names: for a removal, and a restart
    parts     their settings of the link; their nftables elements; limits, and
              the links that these need

It does not depend on proxies, redirects and accept_ra; nor on IPv6's
conf/LINK/forwarding, since the kernel uses `all`. Settings beyond one link,
such as ip_forward, lo, the rule set, and arp_ignore of `all`, are guarded by
their own wards. Nothing inside a namespace is restored. Links that are leaving,
and attachments that a call is busy with, are not touched.

An attach is three sends: create the pair (host); configure the inside
(namespace); name, first hop, up and routes (host, the commit).

A request may ask for more than addresses, such as host ports: each such feature
is a part, one module of pure methods. Engine and datapath iterate over the
parts that they are given, so a new part changes none of their modules:

    check        refuses texts it does not understand   engine, recovery
    resources    what it reserves on the node           ledger
    refuse       what the host cannot do now            attach
    requests     its settings of the link               attach, repair
    change       how they become others                 SetBandwidth
    companion    whether it needs a second link         attach, removal, start
    elements     its nftables elements                  attach, repair, removal
    findings     differences of the link                Check, repair

The text of a part is written on the link, where a restart reads it. The product
has two, datapath.bandwidth and datapath.host_ports; testing.toy_part is a whole
one, too. To add one:

    datapath/NAME.py             a subclass of datapath.parts.LinkPart, with a
                                 letter of its own: see datapath.names
    datapath/NAME_test.py        tests each method. testing.parts_contract and
                                 parts_test test all the rest, with toy_part
    datapath/registry.py         an entry of PARTS
    datapath/BUILD.bazel         both files
    ../rules                     if it has elements: a table with its sets and
                                 maps, which neither an update of the rules nor
                                 a start empties
    api/wire.py                  the text from the field of spec/workload.proto
    ../cni                       the same for CNI: capabilities, protocol

An attachment ends by Detach, by Collect (if the caller does not list it as
live), or with its namespace, which is noticed; Watch reports each. A Detach
answers when no packet can pass its link any more, in half a millisecond; the
link is deleted behind the answer (engine.removals, datapath.removal), as the
kernel takes 20 ms for that. Until then List does not show it, its addresses are
not handed out, and an Attach that needs them, its id or its namespace waits. A
restart finds such links, and goes on. Check
reports differences of attachments and problems of the node; it repairs nothing.

A namespace may have several interfaces. The first has the default route, others
have it with a greater metric; so if the first is detached, the one of lowest
index has the default route. What is sent from the address of a further one
leaves by that, as its host link drops no other: a routing rule of priority
32000 and protocol 77 looks up a table of its own, which has the default route
and nothing else. A Detach with the path of the namespace removes the rule. If
it stays (no path, or a crash between two steps), it leads to an empty table,
so it does nothing; the next attach with the index replaces it. The first
interface has no rule, and costs nothing more. Rules that the workload makes
are not touched. If it removes ours, Check reports it. A UDP server that is not
bound to an address answers with that of the interface with the default route,
as on every host with several addresses: it has to bind, or use IP_PKTINFO.

Limits: one IPv4 and one IPv6 address per interface. A workload does not reach a
host port that leads to another interface of its own. Where IPv6 is off,
in the node's kernel or in a namespace (net.ipv6.conf.*.disable_ipv6), and there
is an IPv6 prefix, an attach is refused; if the node's configuration makes IPv6
optional, it gets IPv4 alone. The kernel's refusal reveals it, so other attaches
pay nothing for the check.

Why not CNI plugins: two processes and a file for each call, tens of
milliseconds, and leaks when one of them dies in between.
"""
