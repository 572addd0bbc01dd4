# SPDX-License-Identifier: Apache-2.0
"""Network policy: which new connections pass between workloads, and between
workloads and the world.

    YAML of a directory          callers
      files, kubernetes            api, wire, messages
                 |                   |
                 +---> manager <-----+---- the engine, for each attachment
                         |     store: what the kernel cannot hold
        compiler, difference
                         |
                       live: kernel (elements), revoke (tracked flows)

    model       policies, workloads and verdicts, as values
    selectors   whether labels match
    evaluate    the verdict of one connection, and its reason; naive
    compiler    all verdicts, as tables for the kernel
    tables      these tables, as values
    lookup      what tables say about a connection
    difference  the step from tables to others, for one transaction
    attachments, sources   what the manager knows, of workloads and policies
    ward        puts back elements that others take

An identity is a number for a class of workloads that no policy tells apart. The
kernel knows the identity of each address, and which pairs of identities may
talk; the rules are static (network.rules.policy). So a packet costs the same
however many policies there are, an attach adds two elements, and a change of
policies is a transaction of elements.

The compiler is made of `intervals` (sets of ports and of addresses), `programs`
(what the policies of a subject say), `index` (the selectors that match a
workload), `classes` (workloads that no policy tells apart) and `pairs`. It does
not share code with `evaluate`, except for selectors: tests compare both.

Why not rules or chains for each policy: each packet would pass them, each
change replace them, and libnftables slows down with each set. Why not in user
space, by a queue: a process would be between a pod and its first packet.
"""
