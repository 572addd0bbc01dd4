# SPDX-License-Identifier: Apache-2.0
"""The node as its users meet it: real image, real machine, real containers.

Each file boots one node and uses it for all its tests, which therefore clean
up after themselves. Whatever can be shown without a machine is shown in tests
beside the code; here is what only the whole shows.
"""
