# SPDX-License-Identifier: Apache-2.0
"""Puts back what others change of the node's network, and says so.

ward   what is watched: one interface
"""
