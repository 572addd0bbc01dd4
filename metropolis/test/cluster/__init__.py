# SPDX-License-Identifier: Apache-2.0
"""Tests of clusters: nodes in machines, the real etcd, a network that fails.

Files that need the same cluster share it, one after the other, and their tests
run in order: each leaves the cluster whole for the next. A failed test is
followed by a new cluster. Logs, captures and consoles are among the test's
outputs (bazel-testlogs/.../test.outputs).

Together with metropolis/test/security they are the target
//metropolis/test:three_nodes_test; the target of a single file is for work on
that file.
"""
