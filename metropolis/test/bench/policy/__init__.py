# SPDX-License-Identifier: Apache-2.0
"""What network policy costs: a packet, an attach, a change.

    ./bazelw run //metropolis/test/bench/policy [-- --json]

Everything runs in namespaces of the command, without a cluster. Policies and
most workloads are synthetic: the kernel has their elements, but no links.

    policy      the command, and its parts in turn
      ├─ packets     new connections and established flows, by rule set
      │    └─ chains     a table with a chain per policy, to compare with
      ├─ changes     a change of one policy, seen by those who connect
      ├─ direct      attaches as policies see them, without links
      └─ attaches    attaches by gRPC
           └─ node       the service, a process
    synthetic   policies and labels of any number               pure
    report      figures; table, JSON                            pure
"""
