# SPDX-License-Identifier: Apache-2.0
"""One node in a machine, with a world around it; a library and a command.

    namespaces of the launcher                        the node (QEMU)
    +---------------------------------------+        +----------------+
    | outside host    router, DHCP, RA      |  tap   | uplink         |
    | 203.0.113.80    198.51.100.1     node0+--------+ 198.51.100.10  |
    | 2001:db8:80::80 2001:db8:51::1        |        | 2001:db8:51::… |
    +---------------------------------------+        +---+--------+---+
    containerd.sock, workload.sock, console.sock       pod-a    pod-b

`lab` is the world: user, network and mount namespaces, a tap, dnsmasq, and an
outside host which tells callers the address it saw them come from. There is no
route back to pod addresses, so what is not masqueraded gets no answer at all.
`node` boots the image in it, `cri` drives containerd from here, `checks` asks
the pods what they can reach, `report` prints it. `main` is the command.

Limits: one node; the network is this process's own and cannot be reached from
the host, nor can the node reach the host's network.

Why not QEMU's user network or passt: both answer from the host's side of a
proxy, so neither DHCP and RA nor the source address would be the real thing.
"""
