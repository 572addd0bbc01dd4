# SPDX-License-Identifier: Apache-2.0
"""What tests of and around the workload service share.

    fake      a datapath without a kernel: same contract, failures on demand
    world     an engine over the fake
    contract  the tests that both datapaths must pass
    lab       network namespaces, sockets in them, and what is in them

Not for the node's image.
"""
