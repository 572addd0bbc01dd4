# SPDX-License-Identifier: Apache-2.0
"""Node core as a process in namespaces, for tests."""
