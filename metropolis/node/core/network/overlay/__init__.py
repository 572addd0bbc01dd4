# SPDX-License-Identifier: Apache-2.0
"""The overlay: pod traffic between nodes, in WireGuard. See README.md.

mesh        values that the curator and the overlay exchange
overlay     the runnable that programs the kernel
handshakes  handshakes after a change of keys
peers       peers by node: the effect of a change on the kernel    pure
addressing  addresses and routes that the link should have         pure
damage      what others changed in the kernel
rotation    the life of a key                                      pure
keys        keys, and the file that keeps them
device      the interface to the kernel
wireguard   its messages                                           pure
kernel      the real kernel; testing/ has a fake one
"""
