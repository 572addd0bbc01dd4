# SPDX-License-Identifier: Apache-2.0
"""How the node reaches other networks.

    uplink     the runnable: follows the link, takes leases, announces addresses
    wanted     addresses, routes, MTU, name servers that it should have     pure
    program    programs them in the kernel
    ward       restores what others remove

Importing this package imports nothing else.
"""
