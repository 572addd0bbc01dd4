# SPDX-License-Identifier: Apache-2.0
"""One real node in a cluster of thousands of simulated ones.

    ./bazelw run //metropolis/test/bench/scale [-- --nodes 2000 --json]

The node runs in a machine; the others are records in etcd. What the node does
with them is compared with what etcd says, and counted and timed in its kernel.
There is no peer to compare with: the targets are ratios between a small and a
large cluster. The command says what the figures do not show.

    scale                           the command
    experiment                      its steps
      ├─ simulated                  what simulated nodes write          pure
      ├─ store                      ... into etcd
      ├─ oracle                     what the kernel should have         pure
      └─ probe                      asks the node; knows its clock
           ├─ guest                 the program on the node
           └─ trace                 what its kernel traced              pure
    report                          table, JSON, targets                pure

    model                           values                              pure
"""
