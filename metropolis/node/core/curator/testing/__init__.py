# SPDX-License-Identifier: Apache-2.0
"""Clusters of curators on a real etcd, for tests."""

from metropolis.node.core.curator.testing.cluster import Cluster, Machine, claims, eventually, start

__all__ = ["Cluster", "Machine", "claims", "eventually", "start"]
