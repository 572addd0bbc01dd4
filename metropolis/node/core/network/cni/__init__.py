# SPDX-License-Identifier: Apache-2.0
"""CNI, served by the network service: how stock runtimes use it.

    containerd, CRI-O, Podman, nerdctl
        | exec, per operation
    cniproxy (static C, knows no CNI)         containerd/cniproxy/shim
        | frame: argv, CNI_ environment, stdin        -> wire
    /run/metropolis/network/cni.sock                  -> server
        | command object                              -> protocol
        | the parts of a request                      -> ports, limits, routes
    engine.attach, detach, check, collect, status     -> adapter
        | result or error object                      -> result, names, protocol
    stdout and exit code, back through cniproxy

`adapter` calls the engine and has the rules between calls, `server` moves
bytes; all else is pure. The versions are CNI 0.3.1, 0.4.0, 1.0.0, 1.1.0. There
is one network, whatever a configuration calls it; only garbage collection uses
the name.

Access: the socket is 0600 in a 0700 directory, so its caller is root, as is the
runtime that executes plugins. Peer credentials are not checked.

A configuration's own keys are done, accepted since nothing is lost, refused by
name, or, if they are of no plugin that is known, ignored with a warning in the
log: see `keys`.

Limits: see the tables in `capabilities` and `keys`, and `routes`. The name of a
configuration is the owner in the records, so after a network is renamed its
former attachments are left to DEL, or to the end of the namespace.

Why not a plugin that does the work itself: it would start an interpreter per
operation, and keep its state in files. Why not gRPC from C: this frame is ten
lines on either side.
"""
