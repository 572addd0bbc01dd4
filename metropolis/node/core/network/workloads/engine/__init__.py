# SPDX-License-Identifier: Apache-2.0
"""The service's logic: ownership, and the order of steps.

    engine         the public face: start, close, settings, calls
      ├─ attach    reserve, create, settle
      ├─ change    another text of a part, while the attachment lives
      ├─ detach    leave, cut off; then removals: remove, drop
      ├─ losses    what is left of those whose namespaces have ended
      ├─ collect   many removals
      ├─ check     compare, repair
      │     │  └──────────> datapath.interface    the kernel
      │     └─────────────> ledger                the mutex
      │                       ├─ entries    attachments, and how to find them
      │                       ├─ pool       addresses
      │                       ├─ resources  what parts reserve: host ports
      │                       ├─ held       links that are left alone
      │                       ├─ protected  what Collect leaves alone
      │                       └─ watchers   queues of changes, for Watch
      └─ left_alone, readiness, locks, settings, numbers

The ledger holds the mutex, and the datapath calls the kernel. They do not know
each other: `attach`, `change`, `detach`, `collect` and `check`, and `engine` at
a start and at events, call first one and then the other. So the mutex is never
held across kernel work: build/lint checks that the ledger imports no netlink.
Nothing here knows a veth, netlink, or an implementation of the datapath.

    locks       one lock per workload and per namespace, with a deadline
    journal     a line of the log for each call, written after its answer
"""
