# SPDX-License-Identifier: Apache-2.0
"""What bandwidth limits let through, and how long packets wait under load.

    ./bazelw run //metropolis/test/bench/limits [-- --json]

The service's engine attaches a workload with a limit, in namespaces of the
command, and a TCP connection sends through it as fast as it can, from its first
byte on. Each cell is a new attachment. The command's docstring says what the
figures are.

    limits      the command: the node, its workload, cells
      └─ traffic    a stream through the limit, and questions beside it
    report      figures from rounds; table, JSON                   pure
"""
