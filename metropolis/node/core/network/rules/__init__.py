# SPDX-License-Identifier: Apache-2.0
"""The node's packet rules: which traffic may pass, and which is dropped.

settings      all inputs of the rules, one value
drops         the list of reasons for drops
metadata      destinations that are not forwarded
reverse_path  where the reverse path may be strict: asks the kernel
syntax        expressions that several parts share     pure
workloads     what workloads may send                  pure
base          settings -> the transaction, as text     pure
host_ports    the table of host ports                  pure
policy        network policy, a part of that table     pure
ruleset       the loaded rules, kept as the settings say
"""
