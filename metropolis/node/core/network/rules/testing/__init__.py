# SPDX-License-Identifier: Apache-2.0
"""Parts that the rule set's tests share: packets, and links to send them."""
