# SPDX-License-Identifier: Apache-2.0
"""Tests of clusters: nodes in machines, the real etcd, a network that fails.

Files that want the same cluster have one after the other, and their tests run
in their order: each leaves the cluster whole for the next. After a test that
failed, there is another cluster. Logs, captures and consoles are among the
test's outputs (bazel-testlogs/.../test.outputs).

Together, and with that of metropolis/test/security, they are the target
//metropolis/test:three_nodes_test; that of one file is for whoever works on it.
"""
