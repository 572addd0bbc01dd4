# SPDX-License-Identifier: Apache-2.0
"""The node as its users meet it: real image, real machine, real containers.

Files share one node, as far as they want the same, so all tests clean up after
themselves. After a test that failed, there is another node. Whatever can be
shown without a machine is shown in tests beside the code; here is what only the
whole shows.

Together they run as //metropolis/test:one_node_test; the target of one file is
for whoever works on it.
"""
