# SPDX-License-Identifier: Apache-2.0
"""What tests of and around the workload service share.

    fake            a datapath without a kernel: fails on demand
    world           an engine over the fake
    contract        the tests that both datapaths must pass
    parts_contract  those of attachments with parts
    parts_host      an engine over either, with a part
    toy_part        the part that these have
    fake_bench      what the contracts need, of the fake
    kernel_bench    the same of the kernel
    lab             network namespaces, sockets in them, and what is in them

Not for the node's image.
"""
