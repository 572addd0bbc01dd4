# SPDX-License-Identifier: Apache-2.0
"""The service's logic: ownership, and the order of steps.

    engine         the public face: start, close, settings, calls
      ├─ attach    reserve, create, settle
      ├─ detach    leave, remove, drop
      ├─ collect   many removals
      ├─ check     compare, repair
      │     │  └──────────> datapath.interface    the kernel
      │     └─────────────> ledger                the mutex
      │                       ├─ entries    attachments, and how to find them
      │                       ├─ pool       addresses
      │                       ├─ resources  what parts reserve: host ports
      │                       ├─ held       links that are left alone
      │                       ├─ protected  what Collect leaves alone
      │                       └─ watchers   who hears of every change
      └─ left_alone, readiness, locks, settings, numbers

`attach`, `detach`, `collect` and `check` are the only modules that call both
the ledger, which holds the mutex, and the datapath, which calls the kernel. So
the mutex is never held across kernel work: build/lint checks that the ledger
reaches no kernel. Nothing here knows a veth, netlink, or an implementation of
the datapath.

    locks       who waits for whom; one lock per workload and per namespace
"""
