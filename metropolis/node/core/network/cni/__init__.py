# SPDX-License-Identifier: Apache-2.0
"""CNI, spoken by the network service: how stock runtimes reach it.

    containerd, CRI-O, Podman, nerdctl
        | exec, per operation
    cniproxy (static C, knows no CNI)         containerd/cniproxy/shim
        | frame: argv, CNI_ environment, stdin        -> wire
    /run/metropolis/network/cni.sock                  -> server
        | command object                              -> protocol
    engine.attach, detach, check, collect, status     -> adapter
        | result or error object                      -> result, protocol
    stdout and exit code, back through cniproxy

`wire`, `capabilities`, `protocol` and `result` are pure; `adapter` calls the
engine and owns what must hold between calls; `server` moves bytes. CNI 0.3.1,
0.4.0, 1.0.0 and 1.1.0 are spoken. One network exists, whatever a configuration
calls it; the name decides only what a garbage collection looks at.

Access: the socket is 0600 in a 0700 directory, so its caller is root, as the
runtime that executes plugins is. No peer credentials are looked at.

Limits: see the table in `capabilities`. A configuration's name is its owner's
in the records, so a network that is renamed leaves what it attached before to
DEL, or to the end of the namespace.

Why not a plugin that does the work itself: it would start an interpreter per
operation, and keep what it knows in files. Why not gRPC from C: this frame is
ten lines on either side.
"""
