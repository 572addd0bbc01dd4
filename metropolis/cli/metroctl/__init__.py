# SPDX-License-Identifier: Apache-2.0
"""metroctl, the operator's command: what a cluster is, and who is in it.

    main       arguments, errors, exit status
    commands   what each command does, by the curator's administration
    output     what it prints: tables for people, JSON for programs

Why not etcdctl: values are protobuf, and a node is removed in one transaction
or not at all.
"""
