# SPDX-License-Identifier: Apache-2.0
"""The truth table of host ports: who reaches what by which address, generated.

    ./bazelw run //metropolis/test/ports:matrix -- --json

    oracle    the claim: what each cell must show, with the reason; pure
    world     a node, a neighbour network, an outside host, pods: namespaces
    probes    the helper process of a namespace: it listens and asks
    sctp      as much of SCTP as a probe needs, without the kernel's
    table     all cells, asked and compared with the oracle
    kernel    elements and links as the kernel lists them
    cases     what is no cell: conflicts, bad input, replaced pods, recovery
    matrix    the command

The oracle is written from the claims, not from the code, and imports none of
it. Elements are read by nft, which does not know the code either.

    outside ---- lan (router) ---- up0 node: node core ---- wl… pod-a (ports)
                  |                                    ---- wl… pod-b
    other node ---+  a network behind it, by the node

The node runs the real node core: its service, rules, uplink and reconciler.
There is no virtual machine, and no privilege is needed.

Limits: the other node is a host without pods, since its pods would need
WireGuard, which a kernel may lack; the tests of clusters have it. SCTP is the
first two packets of an association, by raw sockets: a kernel may lack the
protocol, and has its conntrack all the same.
"""
