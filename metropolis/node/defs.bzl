# SPDX-License-Identifier: Apache-2.0
"""What node images have in common, those of tests and benchmarks too."""

# Kernel modules of a node.
NODE_MODULES = [
    # The machine
    "button",
    "evdev",
    "qemu_fw_cfg",
    "virtio_net",
    "virtio_rng",
    # Containers
    "overlay",
    # Uplinks
    "8021q",
    "bonding",
    # Workload networks
    "act_mirred",
    "cls_bpf",
    "ifb",
    "sch_ingress",
    "sch_tbf",
    "veth",
    # The overlay
    "wireguard",
    # Rules
    "nf_conntrack",
    "nf_conntrack_netlink",
    "nf_nat",
    "nf_tables",
    "nft_chain_nat",
    "nft_ct",
    "nft_fib_inet",
    "nft_fib_ipv4",
    "nft_fib_ipv6",
    "nft_limit",
    "nft_masq",
    "nft_nat",
    "nft_reject",
    "nft_reject_inet",
    "nft_socket",
    # Looking at sockets and packets
    "inet_diag",
    "netlink_diag",
    "tcp_diag",
    "udp_diag",
    "unix_diag",
]
