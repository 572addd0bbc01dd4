# SPDX-License-Identifier: Apache-2.0
"""The first packet after an attach is not lost.

A veth end drops what it is to send until the kernel has looked at its carrier,
and the host does not answer a question for the IPv6 first hop until it has
joined that one's group: workers of the kernel's do both, some time after the
link is up. A question that is lost is asked again after a second. On a busy
machine that was the fate of a fifth of the workloads that sent at once.

What is sent to a new workload by IPv6 may still be lost: the kernel gives it
its own address by such a worker.
"""

import socket
from collections.abc import Iterator

import pytest

from metropolis.node.core.network.workloads.testing.contract import create
from metropolis.node.core.network.workloads.testing.kernel_bench import KernelBench
from metropolis.node.core.network.workloads.testing.lab import udp_round_trip
from osbase.test.namespaces import sh

TIMES = 40  # each
WAIT_S = 0.9  # less than the second after which a question is repeated
FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}


@pytest.fixture
def bench() -> Iterator[KernelBench]:
    sh("sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1")
    made = KernelBench()
    yield made
    made.close()


@pytest.mark.parametrize(("version", "sends"), [(4, True), (4, False), (6, True)])
def test_it_arrives(bench: KernelBench, version: int, sends: bool) -> None:
    """Between two workloads, of which one is new."""
    known = bench.add_netns()
    there = create(bench, known)
    with (
        bench.pods[known].socket(FAMILIES[version], socket.SOCK_DGRAM) as server,
        socket.socket(FAMILIES[version], socket.SOCK_DGRAM) as client,
    ):
        client.settimeout(10)
        udp_round_trip(server, client, str(there.ips[version == 6]))  # is known
    for number in range(TIMES):
        path = bench.add_netns()
        with (
            bench.pods[known].socket(FAMILIES[version], socket.SOCK_DGRAM) as known_socket,
            bench.pods[path].socket(FAMILIES[version], socket.SOCK_DGRAM) as new_socket,
        ):
            client, server = known_socket, new_socket
            if sends:
                client, server = server, client
            server.bind(("", 0))
            server.settimeout(WAIT_S)
            record = create(bench, path, workload_id="w2", number=2)
            ips = (there if sends else record).ips
            client.sendto(b"first", (str(ips[version == 6]), server.getsockname()[1]))
            assert server.recv(100) == b"first", number
        bench.datapath.remove([record])
