# SPDX-License-Identifier: Apache-2.0
"""The parts of attachments that the product has: here a new one is entered."""

from typing import Final

from metropolis.node.core.network.workloads.datapath.parts import LinkPart

PARTS: Final[tuple[LinkPart, ...]] = ()
