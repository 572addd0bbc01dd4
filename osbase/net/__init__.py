# SPDX-License-Identifier: Apache-2.0
"""A host's own network interface: by hand, by DHCPv4, and its links.

    spec/        the static configuration as people write it (protobuf)
    config       the same, checked, as value objects        pure
    stack        the links it is made of: port, bond, VLAN; and their MTU
    links        follow one link through its life, by the kernel's events
    ports        which of several ports, when nobody said so
    dhcp4/       a DHCPv4 client
    addressing   what an interface should have, and making it so
    external     by which addresses others reach it, whoever gave them
    occupied     which addresses are in use on any link
    announce     tell the neighbours where they are
    solicit      ask the routers for an advertisement
    mtu          an MTU that is smaller for a while         pure

IPv6 comes from router advertisements, which the kernel handles by itself; it
is only switched on (see metropolis.node.core.network.sysctls).

Why not systemd-networkd or NetworkManager: one link, one policy and a
status that the rest of the process can wait for do not need another daemon
with a bus. Why not dhclient or udhcpc: they run scripts.
"""
