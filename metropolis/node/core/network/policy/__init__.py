# SPDX-License-Identifier: Apache-2.0
"""Network policy: which new connections pass between workloads, and between
workloads and the world. All of it here is pure.

    model       policies, workloads and verdicts, as values
    selectors   whether labels match
    evaluate    the verdict of one connection, and its reason; naive
    compiler    all verdicts, as tables for the kernel
    tables      these tables, as values
    difference  the step from tables to others, for one transaction

The compiler is made of `intervals` (sets of ports and of addresses), `programs`
(what the policies of a subject say), `index` (the selectors that match a
workload), `classes` (workloads that no policy tells apart) and `pairs`. It does
not share code with `evaluate`, except for selectors: tests compare both.
"""
