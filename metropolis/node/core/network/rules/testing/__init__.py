# SPDX-License-Identifier: Apache-2.0
"""What the tests of the rule set share: packets, and links to send them by."""
