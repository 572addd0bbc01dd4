# SPDX-License-Identifier: Apache-2.0
"""A host's own network interface: by hand, by DHCPv4, and its link.

    spec/        the static configuration as people write it (protobuf)
    config       the same, checked, as value objects        pure
    dhcp4/       a DHCPv4 client
    links        follow one link through its life, by the kernel's events
    addressing   what an interface should have, and making it so

IPv6 comes from router advertisements, which the kernel handles by itself; it
is only switched on (see metropolis.node.core.network.sysctls).

Why not systemd-networkd or NetworkManager: one link, one policy and a
status that the rest of the process can wait for do not need another daemon
with a bus. Why not dhclient or udhcpc: they run scripts.
"""
