# SPDX-License-Identifier: Apache-2.0
"""The node's part in its cluster, through etcd; see README.md.

    curator       what runs: connects, watches, commits
    place         calls membership when an input changes, and sets the values
    membership    pure: decides the next step of a node
    directory     pure: the content of the store, as peers
    records, keys pure: values and keys of the store, checked
    administration  an operator's changes, for metroctl
    renewal       credentials that change while they are used
    transaction, etcd, credentials   the calls

This package does nothing with peers and prefixes: that is the overlay's and the
workloads' work. Why not one of the frameworks around etcd (leader election,
locks, service discovery): a claim is one transaction; no node has to lead.
"""
