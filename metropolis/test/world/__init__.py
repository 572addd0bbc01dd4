# SPDX-License-Identifier: Apache-2.0
"""A world of its own for programs that try the service on real kernels.

    namespaces   user, mount and network namespaces that end with the program

All that such a program makes is in them, so nothing is left of it, however it
ends, and it needs no privileges. Not for tests under py_pytest(netns = True),
which have such a world already.
"""
