# SPDX-License-Identifier: Apache-2.0
"""Nodes in machines, with a network around them; a library and commands.

    namespaces of the launcher                        a node (QEMU)
    +---------------------------------------+        +----------------+
    | outside host    router, DHCP, RA      |  tap   | uplink         |
    | 203.0.113.80    198.51.100.1     node1+--------+ 198.51.100.10  |
    | 2001:db8:80::80 2001:db8:51::1   node2+--..    | 2001:db8:51::… |
    |      etcd  -------+------------- lab0-+        +---+--------+---+
    +---------------------------------------+          pod-a    pod-b
    containerd.sock, workload.sock, console.sock of each node

The library, in the order of use:

    lab, child, started, sntp     a bridge, dnsmasq, an outside host that tells
                                  callers the address it saw
    outside                       requests from that host
    images, configuration, node   the image in a machine, in the lab
    servicelogs                   services that crash; what to print of logs
    cri, checks, rows, report     pods; what they reach; the table
    own_pods                      pods of the user's own files (../kubelet)
    echo, pings                   pings without end, and what is lost
    cluster, capture              several nodes, etcd, faults; their traffic
    reach, matrix, prober         all pairs, once and continuously
    keeping, verdict, failures    logs that are kept, and reports of failures

The commands:

    launch          main          one node and its pods, until Ctrl-C
    launch-cluster  cluster_main  several nodes
    pod             pod, terminal, ...   list, run, exec -it, fetch, rm
    nodes           nodes         list, add, poweroff, boot
    console         console       a root shell on a node
    metroctl        metroctl, etcd_socket           the operator's command

The last four find a launch by its directory (`state`) and ask it through a
socket there (`control`). `command` has what both launchers share.

There is no route back to pod addresses in the lab, so what is not masqueraded
gets no answer at all.

Limits: the network belongs to this process and cannot be reached from the host,
nor can nodes reach the host's network.

Why not QEMU's user network or passt: both answer from the host's side of a
proxy, so neither DHCP and RA nor the source address would be the real thing.
"""
