# SPDX-License-Identifier: Apache-2.0
"""Batched rtnetlink, and network namespaces without fork.

    attrs     attribute encoding and parsing           pure
    message   message headers, acknowledgements        pure
    ifla      numbers of link messages                 pure
    link      links; veth, altnames: special kinds     pure
    address   addresses of links                       pure
    route     routes; fibrules, neighbours             pure
    qdisc     links that no packet passes any more     pure
    shaping   rate limits                              pure
    tcx       programs that come before filters
    template  batches encoded once, filled often       pure
    errors    the one error family
    genl      families of generic netlink              pure
    bpf       socket filters in the kernel             pure, but for the attach
    transport a netlink socket: batch() and dump()
    netns     network namespaces: open safely, open sockets inside
    events    events of links, overruns reported
    sock_diag sockets that listen

The package is for a service that configures one namespace in a few system
calls. One send carries many requests. The kernel executes them in order before
the send returns, so only the last one asks for an acknowledgement (the kernel
always reports failures). A batch without failures takes two system calls.

Limits: only the messages that our datapath and the uplink need.

Why not pyroute2 (0.9.7): it is too slow for an Attach, and recovery and the
uplink need the same messages while the service starts, so its cost would be
additional. Measured in the development root, after `import asyncio`:

    import                                         CPU time  memory  modules
      pyroute2                                       142 ms   13.9 MB    238
      its ifaddrmsg and rtmsg, without __init__       10 ms    1.3 MB     11
      and its ifinfmsg                                20 ms    2.4 MB     41
      our link, address, route and transport          13 ms    1.5 MB     14

    microseconds a message                           here   pyroute2
      parse a link (veth, all attributes)              18        170
      parse a route                                     6         19
      parse an address                                  4         23
      build an address                                  2         89
      build a link's MTU                                1         37

The uplink's parts list all links when one changes: with 2,000 attached that is
a third of a second of Python with pyroute2, and 40 ms here. Its sockets are not
usable either: with netns= they fork (12 ms; a process with gRPC must not fork).
Tests use it: pyroute2_test decodes our messages with it, and others read the
kernel's state with it.
"""
