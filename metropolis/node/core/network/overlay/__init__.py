# SPDX-License-Identifier: Apache-2.0
"""The overlay: pod traffic between nodes, in WireGuard. See README.md.

mesh        what the overlay is told and tells
overlay     the runnable that makes the kernel have it
handshakes  handshakes after a change of keys
peers       peers by node: what a change means for the kernel      pure
addressing  addresses and routes that the link should have         pure
damage      what others changed of it
rotation    the life of a key                                      pure
keys        keys, and the file they are kept in
device      what is asked of the kernel
wireguard   its messages                                           pure
kernel      the real one; testing/ has a fake one
"""
