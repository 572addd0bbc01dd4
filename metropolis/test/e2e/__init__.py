# SPDX-License-Identifier: Apache-2.0
"""The node as its users see it: real image, real machine, real containers.

Files with the same settings share one node, so all tests clean up after
themselves. A failed test is followed by a new node. Tests beside the code cover
everything that needs no machine; the tests here need the whole node.

Together they run as //metropolis/test:one_node_test; the target of a single
file is for work on that file.
"""
