# SPDX-License-Identifier: Apache-2.0
"""The host of our subjects: the node's settings, the table of host ports."""

from metropolis.node.core.network.host import prepare_host
from metropolis.node.core.network.rules import host_ports
from osbase.nftables import Nftables


def prepare() -> None:
    """Prepare the namespace of this process."""
    prepare_host()
    with Nftables() as nftables:
        nftables.apply(host_ports.render())
