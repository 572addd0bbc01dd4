# SPDX-License-Identifier: Apache-2.0
"""The node's packet rules: what may go where, and what is refused.

settings      what decides the rules, one value
drops         why packets are dropped: the list
metadata      destinations that are not forwarded
reverse_path  where the reverse path may be strict: asks the kernel
syntax        words that several of its parts use      pure
workloads     what workloads may send                  pure
base          settings -> the transaction, as text     pure
ruleset       the loaded rules, kept as the settings say
"""
