# SPDX-License-Identifier: Apache-2.0
"""The node's part in its cluster, by etcd; see README.md.

    curator       what runs: connects, watches, commits
    place         what follows from what was read, and who is told
    membership    pure: what a node does, given what it knows
    directory     pure: what the store says, as peers
    records, keys pure: values and keys of the store, checked
    renewal       credentials that change while they are used
    transaction, etcd, credentials   the calls

Not for what is done with peers and prefixes: that is the overlay and the
workloads. Why not one of the frameworks around etcd (leader election, locks,
service discovery): a claim is one transaction, and nobody has to lead.
"""
