# SPDX-License-Identifier: Apache-2.0
"""What tests of and around the overlay share.

    fake      a kernel without a kernel
    contract  the tests that both must pass

Not for the node's image.
"""
