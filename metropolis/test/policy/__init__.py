# SPDX-License-Identifier: Apache-2.0
"""Network policy, judged from outside: an oracle, cases and random worlds.

    oracle      the verdict on a connection, from the text of the two APIs; pure
    fields      fields and selectors, for the oracle
    scene       nine pods and an outside; what a case and its steps are
    manifests   short ways to write policies
    cases       all cases by category, of NetworkPolicy
    sequences   cases of several steps: policies, labels and pods that change
    tiers       cases of ClusterNetworkPolicy
    worlds      random clusters, policies and questions, by seed
    play        plays cases with pods on a node
    matrix      all cases, and the command; compare: random worlds, the same

    cases ----> scene ----> oracle <---- worlds
    (what to ask)           (the answer)  (what to ask, without packets)

But for `play` and `compare` nothing imports the product: a comparison gives the
same manifests to both, and the differences are findings. The oracle itself is
compared with tables that are written by hand (`oracle_test`).
"""
