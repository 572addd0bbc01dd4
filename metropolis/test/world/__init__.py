# SPDX-License-Identifier: Apache-2.0
"""Separate namespaces for programs that test the service on real kernels.

    namespaces   user, mount and network namespaces that end with the program

All objects of such a program are in them, so nothing is left after any end of
it, and it needs no privileges. Not for tests under py_pytest(netns = True),
which have such namespaces already.
"""
