# SPDX-License-Identifier: Apache-2.0
"""Why policies are refused as a whole, and the limits. Pure."""

from __future__ import annotations

from typing import Final

PAIRS_MAX: Final = 200_000
"""For `pairs` and `pair_ports` of the tables together. Filling the kernel with
50,000 took a quarter of a second.
"""
RANGES_MAX: Final = 20_000
"""For `world_egress` and `world_ingress` together. The kernel's time to load
address ranges grows with the square of their number.
"""


class PolicyError(Exception):
    """The policies, or the workloads that they are about, do not fit."""
