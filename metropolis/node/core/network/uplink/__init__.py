# SPDX-License-Identifier: Apache-2.0
"""How the node reaches the world.

    uplink     the runnable: follows the link, takes leases, announces addresses
    wanted     addresses, routes, MTU, name servers that it should have     pure
    program    gives them to the kernel
    ward       puts back what others take

Importing this package imports nothing.
"""
