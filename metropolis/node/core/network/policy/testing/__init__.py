# SPDX-License-Identifier: Apache-2.0
"""Worlds for tests of policies, and what a packet meets in the tables."""
