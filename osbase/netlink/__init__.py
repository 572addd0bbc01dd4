# SPDX-License-Identifier: Apache-2.0
"""Batched rtnetlink, and network namespaces without fork.

    attrs     attribute encoding and parsing           pure
    message   message headers, acknowledgements        pure
    rtnl      link, address and route messages         pure
    errors    the one error family
    genl      families of generic netlink              pure
    transport a netlink socket: batch() and dump()
    netns     network namespaces: open safely, open sockets inside
    events    link removal events, with the overrun told

Made for a service that configures one namespace in a few system calls: many
requests go out in one send, and since the kernel executes a send in order and
before it returns, only the last request asks for an acknowledgement (failures
are reported whether asked for or not). A batch that works is two system calls.

Limits: of NETLINK_ROUTE only what our datapath needs; of NETLINK_GENERIC only
the header and the family's number.

Why not pyroute2: it is good, and our tests use it as an independent witness.
But it forks to enter a namespace (12 ms, and never fork beside gRPC), and
spends milliseconds of Python where the kernel needs half of one.
"""
