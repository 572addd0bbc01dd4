# SPDX-License-Identifier: Apache-2.0
"""Tests of clusters: nodes in machines, the real etcd, a network that fails.

Each file has one cluster for all its tests, which run in their order: one test
leaves the cluster whole for the next. Logs, captures and consoles are among the
test's outputs (bazel-testlogs/.../test.outputs).
"""
