# SPDX-License-Identifier: Apache-2.0
"""The cost of the rule set for a packet, beside no rules and a baseline.

    ./bazelw run //metropolis/test/bench/packets [-- --json]

Everything runs in namespaces of the command. The rule sets alternate within a
second, in another order each time. The command's docstring has its arguments
and the limits of the figures.

    packets                         the command: rule sets, hosts, turns
      ├─ baseline.nft               rules to compare with
      └─ traffic                    both ends of the traffic
    report                          figures from rounds; table, JSON    pure
"""
