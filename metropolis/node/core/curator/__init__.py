# SPDX-License-Identifier: Apache-2.0
"""The node's part in its cluster, through etcd; see README.md.

    curator       what runs: connects, watches, commits
    place         what follows from what was read, and who is informed
    membership    pure: what a node does, given what it knows
    directory     pure: what the store says, as peers
    records, keys pure: values and keys of the store, checked
    renewal       credentials that change while they are used
    transaction, etcd, credentials   the calls

This package does nothing with peers and prefixes: that is the overlay's and the
workloads' work. Why not one of the frameworks around etcd (leader election,
locks, service discovery): a claim is one transaction; no node has to lead.
"""
