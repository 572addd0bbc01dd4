# SPDX-License-Identifier: Apache-2.0
"""Parts that tests of and around the overlay share.

    fake      a fake kernel
    contract  the tests that both kernels must pass

Not for the node's image.
"""
