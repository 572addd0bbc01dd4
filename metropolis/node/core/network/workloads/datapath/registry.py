# SPDX-License-Identifier: Apache-2.0
"""The parts of attachments that the product has: add a new one to PARTS."""

from typing import Final

from metropolis.node.core.network.workloads.datapath import bandwidth, host_ports
from metropolis.node.core.network.workloads.datapath.parts import LinkPart

PARTS: Final[tuple[LinkPart, ...]] = (bandwidth.PART, host_ports.PART)
