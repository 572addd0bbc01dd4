# SPDX-License-Identifier: Apache-2.0
"""What tests of and around the workload service share.

    fake            a datapath without a kernel: fails on demand
    world           an engine over the fake
    contract        the tests that both datapaths must pass
    parts_contract  the tests of attachments with parts, for both
    parts_host      an engine over either datapath, with a part
    toy_part        that part
    points          what happens at a chosen send to the kernel
    fake_bench      the bench of the contracts, over the fake
    kernel_bench    the bench of the contracts, over the kernel
    lab             network namespaces, sockets in them, lists of their objects
    served          the service as a process of its own, and a client
    killed          `serve`, killed at a chosen system call
    trace           system calls of a process, by strace
    dump            kernel objects of attachments, read by pyroute2
    version1        links as version 1 of the records made them

Not for the node's image.
"""
