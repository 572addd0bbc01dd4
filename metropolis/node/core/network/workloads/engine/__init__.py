# SPDX-License-Identifier: Apache-2.0
"""What is whose, and in which order things happen. No netlink here."""
