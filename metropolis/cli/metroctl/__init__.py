# SPDX-License-Identifier: Apache-2.0
"""metroctl, the operator's command: shows and changes a cluster.

    main       arguments, errors, exit status
    commands   the work of each command, by the curator's administration
    output     its output: tables for people, JSON for programs

Why not etcdctl: values are protobuf, and a node is removed in one transaction
or not at all.
"""
