# SPDX-License-Identifier: Apache-2.0
"""The service's logic: who has what, and in which order things happen.

    engine ──┬──> attach    reserve, create, settle
             ├──> detach    leave, remove, drop ──────┬──> ledger ──> entries
             ├──> collect   many removals             │      │ └────> pool
             ├──> check     compare, repair           │      └──────> watchers
             ├──> left_alone, readiness ──────────────┘
             └──> locks, settings, numbers            └──> datapath.interface

`attach`, `detach`, `collect` and `check` are the only modules that call both
the ledger, which holds the mutex, and the datapath, which calls the kernel. So
the mutex is never held across kernel work: build/lint checks that the ledger
reaches no kernel. Nothing here knows a veth, netlink, or an implementation of
the datapath.

    locks       who waits for whom; one lock per workload and per namespace
    ward        lets the reconciler look at the attachments
"""
