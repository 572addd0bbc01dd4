# SPDX-License-Identifier: Apache-2.0
"""The API's names in errors, by CNI's; pure.

The engine's errors name fields of workload.proto, which somebody who wrote a
configuration of CNI, or a pod, has never seen.
"""

import re
from typing import Final

from metropolis.node.core.network.workloads import bandwidth, host_ports

_NAMES: Final = {
    host_ports.FIELD: "runtimeConfig.portMappings",
    "host_port": "hostPort",
    "container_port": "containerPort",
    "host_ip": "hostIP",
    bandwidth.FIELD: "runtimeConfig.bandwidth",
    "ingress_rate": "ingressRate",
    "ingress_burst": "ingressBurst",
    "egress_rate": "egressRate",
    "egress_burst": "egressBurst",
    # By runtimeConfig, args.cni or CNI_ARGS.
    "requested_ip": "ips",
    "requested_mac": "mac",
    "workload_id": "CNI_CONTAINERID",
    "netns.netns_path": "CNI_NETNS",
    "if_name": "CNI_IFNAME",
}
# A name and its value, or what is said of it; values themselves are in quotes.
_NAME: Final = re.compile(
    rf"(?<![\w.'\"/-])(?:{'|'.join(map(re.escape, _NAMES))})(?=:? |$)", re.ASCII
)


def in_words_of_cni(text: str) -> str:
    """Return the text of an error with CNI's names."""
    return _NAME.sub(lambda found: _NAMES[found[0]], text)
