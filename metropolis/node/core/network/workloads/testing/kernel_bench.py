# SPDX-License-Identifier: Apache-2.0
"""The kernel's datapath as the contract's tests use it."""

import json
import os
import queue
import socket
import subprocess
from collections.abc import Sequence

from pyroute2 import IPRoute

from metropolis.node import allocs
from metropolis.node.core.network.workloads.datapath import names
from metropolis.node.core.network.workloads.datapath.interface import Datapath, Record
from metropolis.node.core.network.workloads.datapath.parts import LinkPart
from metropolis.node.core.network.workloads.datapath.veth import KernelDatapath
from metropolis.node.core.network.workloads.testing.lab import Pod
from metropolis.node.core.network.workloads.testing.toy_part import RESERVED
from osbase.netlink.altnames import add_link_altnames
from osbase.netlink.link import set_link_alias, set_link_up
from osbase.netlink.transport import NetlinkSocket
from osbase.netlink.veth import VethEnd, new_veth


class KernelBench:
    """See contract.Bench, and parts_contract.PartsBench."""

    not_netns = "/proc/self/ns/mnt"
    home = f"/proc/{os.getpid()}/ns/net"

    def __init__(self, parts: Sequence[LinkPart] = ()) -> None:
        self.parts = parts
        self.removed: queue.SimpleQueue[int] = queue.SimpleQueue()
        self.pods: dict[str, Pod] = {}
        self.opened: list[KernelDatapath] = []
        self.datapath: Datapath = self.again()

    def add_netns(self) -> str:
        pod = Pod()
        self.pods[pod.path] = pod
        return pod.path

    def kill_netns(self, path: str) -> None:
        self.pods.pop(path).close()

    def again(self) -> Datapath:
        datapath = KernelDatapath(self.parts)
        datapath.open(self.removed.put, lambda: None)
        datapath.watch()
        self.opened.append(datapath)
        return datapath

    def take_name(self, path: str, name: str) -> None:
        def add() -> None:
            with IPRoute() as other:
                other.link("add", ifname=name, kind="veth")

        self.pods[path].inside(add)

    def set_mtu(self, record: Record, mtu: int) -> None:
        with IPRoute() as other:
            other.link("set", index=record.host_ifindex, mtu=mtu)

    def take_host_route(self, record: Record) -> None:
        with IPRoute() as other:
            other.route("del", dst=f"{record.ips[0]}/32", oif=record.host_ifindex, scope=253)

    def take_route(self, path: str, record: Record) -> None:
        def take() -> None:
            with IPRoute() as other:
                other.route("del", dst="0.0.0.0/0", oif=record.peer_ifindex)

        self.pods[path].inside(take)

    def forge(self, path: str, record: Record) -> None:
        index, name = record.host_ifindex, record.host_interface
        host = VethEnd(name, index, allocs.FIRST_HOP_MAC)
        peer = VethEnd(record.if_name, record.peer_ifindex, record.mac)
        pod, group = self.pods[path], allocs.LINK_GROUP_WORKLOAD
        with NetlinkSocket() as sock:
            sock.batch(
                [
                    new_veth(host, peer, netns_fd=pod.fd, mtu=record.mtu, group=group),
                    set_link_alias(index, name, record.workload_id, ipv6=True),
                    add_link_altnames(index, name, *names.altnames_of(record)),
                    set_link_up(index, name),
                ]
            )

    def keys(self) -> set[str]:
        listed = subprocess.run(
            ["nft", "--json", "list", "map", "inet", "toy", "colours"],
            check=True,
            capture_output=True,
            text=True,
        )
        (found,) = (one["map"] for one in json.loads(listed.stdout)["nftables"] if "map" in one)
        keys = (key for key, _ in found.get("elem", ()))
        return {str(key["elem"]["val"] if isinstance(key, dict) else key) for key in keys}

    def take_key(self, key: str) -> None:
        subprocess.run(["nft", f"delete element inet toy colours {{ {key} }}"], check=True)

    def add_key(self, key: str) -> None:
        subprocess.run(["nft", f"add element inet toy colours {{ {key} : 10.9.9.9 }}"], check=True)

    def listen(self, address: str) -> socket.socket:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        return socket.create_server((address, RESERVED), family=family)

    def close(self) -> None:
        scan = self.opened[0].scan()
        self.opened[0].remove(scan.complete + scan.leaving)
        for datapath in self.opened:
            datapath.close()
        for pod in self.pods.values():
            pod.close()
