# SPDX-License-Identifier: Apache-2.0
"""An agent in a guest: run commands, copy files, reach unix sockets.

    host                                        guest
    client.Agent  <- unix socket -> QEMU <- virtio-serial ->  guest.py
       exec, read_file, write_file, dial, forward              (stdlib only)

Both ends run the same pure state machine (`mux` over `frame`): many streams,
each with its own flow control, over one byte pipe that outlives either end.
The pipe may carry leftovers of an earlier peer; see `frame`.

Limits: one host at a time; no terminals; the guest end is root and checks no
permissions, so this is only for machines that a test owns.

Why not ssh or qemu-guest-agent: ssh needs a network, keys and a server in the
image under test; QEMU's agent polls for output, one JSON line at a time, and
cannot reach a socket. Why not vsock: it needs a host kernel module.
"""
