# SPDX-License-Identifier: Apache-2.0
"""Attach and detach, measured beside the kernel's own cost and beside peers.

    ./bazelw run //metropolis/test/bench/attach -- --json --plot out.png
    ./bazelw run //metropolis/test/bench/attach:breakdown

    driver (attach)          user, mount and network namespace of its own
      │ asks, by pipe                          │ executes, as a runtime does
      ├─ client ──gRPC──> node   host netns    ├─ cniproxy shim ──> node
      ├─ inner: the engine       host netns    ├─ CNI plugins, chained as libcni
      └─ floor: encoded messages host netns    └─ netavark
      and pods: network namespaces, bind-mounted, new for each operation

    model, results, messages, targets, report  pure: values, ratios of rounds,
                                               netlink, what is printed
    timing, commands, processes                the clock; programs and pipes
    node, client, inner, floor, recording      programs that are measured
    subjects, plugins, peers, catalogue        all that can be measured
    pods, measure, counting                    namespaces; phases; strace
    plot                                       the picture
    breakdown                                  a command of its own: the stages
                                               of one Attach

Method. Each subject has a host, a network namespace with nothing in it, and
its own files. Operations go round the subjects in turns of ten, in another
order each time, so that whatever else the machine does hits all alike. With
turns of one (--burst 1) each is the first after a second of others' work, with
cold caches: that is worse for what is quick. ADDs of a round come first, then
its DELs. The clock is where the work is called: in the
client's process for gRPC, around vfork, exec and wait for programs. A figure is
the median of the rounds' percentiles, a ratio the median of the rounds' ratios.
Every ADD must give its addresses; that the interface is there is looked up now
and then. Beside 2,000 attached, subjects are measured one after the other.

The floor is what an attach costs when nothing but the kernel's work is done: a
fixed one, in two sends (see messages), and the messages of our own datapath
without all that is around them.

Limits
- One machine, two families of figures: what a packet costs is not measured.
- Processor time is that of processes: what the kernel does later (grace
  periods, namespaces that end) is nobody's.
- netavark gets its address from us, since Podman allocates it; and has one
  container more than is measured, since it removes the bridge with the last.
- Peers are unpacked into memory: their files are always in the page cache.
- Our service forwards and masquerades by rules that are there once (see
  network.rules), so "without ipMasq" is no advantage of a peer.

Why not a benchmark framework: none interleaves, and what there is to do
between two samples is most of the work here.
"""
