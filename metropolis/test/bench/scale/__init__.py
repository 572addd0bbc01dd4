# SPDX-License-Identifier: Apache-2.0
"""One real node in a cluster of thousands of simulated ones.

    ./bazelw run //metropolis/test/bench/scale [-- --nodes 2000 --json]

The node runs in a machine; the others are records in etcd. The state of the
node's kernel is compared with etcd's, and its work is counted and timed in the
kernel. There is no peer to compare with: the targets are ratios between a small
and a large cluster. The command's docstring has the limits of the figures.

    scale                           the command
    experiment                      its steps
      ├─ simulated                  records of simulated nodes          pure
      ├─ store                      writes them to etcd
      ├─ oracle                     the expected state of the kernel    pure
      └─ probe                      queries the node; knows its clock
           ├─ guest                 the program on the node
           └─ trace                 events of its kernel                pure
    report                          table, JSON, targets                pure

    model                           values                              pure
"""
