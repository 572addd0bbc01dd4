# SPDX-License-Identifier: Apache-2.0
"""What the rule set costs a packet, beside no rules and beside a baseline.

    ./bazelw run //metropolis/test/bench/packets [-- --json]

Everything runs in namespaces of the command. The rule sets take turns within a
second, in another order each time. The command lists its arguments and what the
figures do not show.

    packets                         the command: rule sets, hosts, turns
      ├─ baseline.nft               rules to compare with
      └─ traffic                    both ends of the traffic
    report                          figures from rounds; table, JSON    pure
"""
