# SPDX-License-Identifier: Apache-2.0
"""A host's own network interface: static or DHCPv4 addresses, and its links.

    spec/        the static configuration as people write it (protobuf)
    config       the same, checked, as value objects        pure
    stack        creates its links: port, bond, VLAN; sets their MTU
    links        follow one link through its life, by the kernel's events
    ports        choose one of several ports, if none is configured
    dhcp4/       a DHCPv4 client
    addressing   wanted addresses and routes, and how to program them
    external     the addresses by which others reach it, from any source
    occupied     addresses in use on any link
    announce     announce addresses to the neighbours
    solicit      ask the routers for an advertisement
    mtu          a temporarily smaller MTU                  pure

IPv6 addresses come from router advertisements. The kernel handles those by
itself; it is only switched on (see metropolis.node.core.network.sysctls).

Why not systemd-networkd or NetworkManager: for one link, one policy and a
status that the rest of the process can await, another daemon with a bus is not
needed. Why not dhclient or udhcpc: they run scripts.
"""
