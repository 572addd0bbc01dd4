# SPDX-License-Identifier: Apache-2.0
"""Settings of new attachments, which may change at any time."""

from dataclasses import dataclass

from metropolis.node.core.network.workloads.errors import InvalidArgument
from metropolis.node.core.network.workloads.model import MTU_MIN

DEFAULT_MTU = 1500  # bytes
MTU_MAX = 65535  # the largest that a veth takes


@dataclass(slots=True)
class Settings:
    """mtu: in bytes. ipv6_optional: whether a workload gets IPv4 alone where
    IPv6 is switched off, instead of an error.
    """

    mtu: int = DEFAULT_MTU
    ipv6_optional: bool = False

    def set_mtu(self, mtu: int) -> None:
        """Raise InvalidArgument for an MTU that no link can have."""
        if not MTU_MIN <= mtu <= MTU_MAX:
            raise InvalidArgument(f"mtu {mtu}: must be {MTU_MIN} to {MTU_MAX}")
        self.mtu = mtu
