# SPDX-License-Identifier: Apache-2.0
"""How attachments are made in the kernel, behind one interface."""
