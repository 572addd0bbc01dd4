# SPDX-License-Identifier: Apache-2.0
"""Nodes in machines, with a network around them; a library and two commands.

    namespaces of the launcher                        a node (QEMU)
    +---------------------------------------+        +----------------+
    | outside host    router, DHCP, RA      |  tap   | uplink         |
    | 203.0.113.80    198.51.100.1     node1+--------+ 198.51.100.10  |
    | 2001:db8:80::80 2001:db8:51::1   node2+--..    | 2001:db8:51::… |
    |      etcd  -------+------------- lab0-+        +---+--------+---+
    +---------------------------------------+          pod-a    pod-b
    containerd.sock, workload.sock, console.sock of each node

`lab` is the world: a bridge with a tap for each node, dnsmasq, and an outside
host which tells callers the address it saw them come from. There is no route
back to pod addresses, so what is not masqueraded gets no answer at all. `node`
boots the image in it, `cri` drives containerd from here, `checks` asks the pods
what they can reach, `report` prints it; `pings` has a pod ping without end and
counts what is lost. `main` is the command for one node.

`cluster` has several nodes, etcd, and faults; `capture` records the traffic
between them; `reach` tests all pairs, `matrix` prints the results; `prober`
tests continuously. `cluster_main` is the command.

Limits: the network belongs to this process and cannot be reached from the host,
nor can nodes reach the host's network.

Why not QEMU's user network or passt: both answer from the host's side of a
proxy, so neither DHCP and RA nor the source address would be the real thing.
"""
