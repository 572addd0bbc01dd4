# SPDX-License-Identifier: Apache-2.0
"""Attach and detach, measured beside the kernel's own cost and beside peers.

    ./bazelw run //metropolis/test/bench/attach -- --json --plot out.png
    ./bazelw run //metropolis/test/bench/attach:breakdown

    driver (attach)          own user, mount and network namespace
      │ asks, by pipe                          │ executes, like a runtime
      ├─ client ──gRPC──> node   host netns    ├─ cniproxy shim ──> node
      ├─ inner: the engine       host netns    ├─ CNI plugins, chained as libcni
      └─ floor: encoded messages host netns    └─ netavark
      and pods: network namespaces, bind-mounted, new for each operation

    model, results, messages, targets, report  pure: values, ratios of rounds,
                                               netlink, output
    timing, commands, processes                the clock; programs and pipes
    node, client, inner, floor, recording      the measured programs; host: what
                                               ours have prepared
    subjects, plugins, peers, catalogue        the measured subjects
    pods, measure, counting                    namespaces; phases; strace
    plot                                       the picture
    breakdown                                  a separate command: the stages
                                               of one Attach

Method. Each subject has a host, which is an empty network namespace, and its
own files. Subjects alternate after ten operations, in another order each time,
so that other work of the machine affects all equally. With --burst 1 they
alternate after each operation: then each runs with cold caches, after a second
of others' work, which is worse for fast subjects. A round does its ADDs first,
then its DELs. The clock is at the caller: in the client's process for gRPC,
around vfork, exec and wait for programs. A figure is the median of the rounds'
percentiles, a ratio the median of the rounds' ratios. Every ADD must return its
addresses; a sample of the interfaces is checked. Beside 2,000 attached,
subjects are measured one after the other.

The floor is the cost of an attach with the kernel's work only: a fixed one, in
two sends (see messages), and the messages of our own datapath without the rest
of the service.

Limits
- One machine, two families of figures: the cost of a packet is not measured.
- Processor time is that of processes: later work of the kernel (grace periods,
  namespaces that end) is not attributed.
- netavark gets its address from us, since Podman allocates it; and has one
  container more than is measured, since it removes the bridge with the last.
- Peers are unpacked into memory: their files are always in the page cache.
- Our service forwards and masquerades by rules that exist once (see
  network.rules), so "without ipMasq" is no advantage of a peer.

Why not a benchmark framework: none interleaves, and most of the work here is
between two samples.
"""
