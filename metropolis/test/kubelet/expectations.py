# SPDX-License-Identifier: Apache-2.0
"""What critest expects from a runtime's network, asked of a node.

critest (cri-tools) is the conformance suite of runtimes. Its expectations of
networks, and of port forwarding, are these, in other words; each is a Check.
Where critest asks one family and one client, all that the node has are asked.
"""

from __future__ import annotations

import asyncio
import shlex
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address

from metropolis.test.kubelet import configs
from metropolis.test.kubelet.kubelet import Kubelet, KubeletError, Status
from metropolis.test.kubelet.manifest import Container, ContainerPort, DnsConfig, Pod
from metropolis.test.kubelet.on_node import forwarded, kubelet_of
from metropolis.test.launch import outside
from metropolis.test.launch.checks import Check
from metropolis.test.launch.cri import IMAGE, CriError
from metropolis.test.launch.node import Node
from metropolis.test.launch.report import grid
from osbase.test.agent.client import AgentError

PORT, HOST_PORT, NODE_PORT = 8080, 18081, 18082
_TRIES_S = 30.0

type Ask = Callable[[Node, Kubelet], Awaitable[str]]


class UnmetError(Exception):
    """The node does not do what is expected; the text says what it did."""


def server(name: str, port: int = PORT, *, host_port: int = 0) -> Pod:
    """Return a pod that serves its name by HTTP."""
    script = (
        f"mkdir -p /tmp/www && echo {name} >/tmp/www/name && exec httpd -f -p {port} -h /tmp/www"
    )
    ports = (ContainerPort(port, host_port),)
    container = Container("main", IMAGE, ("sh", "-c", script), ports=ports)
    return Pod(name, (container,), grace_s=0)


@asynccontextmanager
async def running(kubelet: Kubelet, pod: Pod) -> AsyncIterator[Status]:
    """Run a pod until the block is left; then nothing of it is left."""
    try:
        found = await kubelet.sync(pod)
        if not found.running:
            raise UnmetError(f"{pod.name} does not run: {found.ended}")
        yield found
    finally:
        await kubelet.kill(pod)
        await kubelet.collect([])


async def output(node: Node, status: Status, *command: str) -> str:
    """Return the output of a command in a pod."""
    done = await node.cri.exec(status.containers[0][1], command)
    if done.status != 0:
        raise UnmetError(f"{shlex.join(command)}: status {done.status}: {done.stderr.strip()}")
    return done.stdout


def same(what: str, got: str, want: str) -> str:
    """Return a detail. Raises UnmetError when they differ."""
    if got != want:
        raise UnmetError(f"{what}: got {got!r}, want {want!r}")
    return what


async def from_node(
    node: Node, name: str, addresses: Sequence[IPv4Address | IPv6Address | str], port: int
) -> str:
    """Check that the node reaches a pod that serves `name`; return a detail."""
    for address in addresses:
        host = f"[{address}]" if ":" in str(address) else str(address)
        url = f"http://{host}:{port}/name"
        # A server that has just started may not listen yet.
        get = f"busybox wget -q -T 10 -O - {url}"
        ask = f"for i in 1 2 3 4 5; do {get} && exit; sleep 1; done; exit 1"
        done = await node.agent.run(["sh", "-c", ask], check=False)
        same(
            f"the node asks {url} ({done.stderr.decode(errors='replace')[-200:]})",
            done.text,
            name,
        )
    return f"from the node at {', '.join(map(str, addresses))}"


async def from_outside(node: Node, name: str, port: int) -> str:
    """Check that the outside host reaches a pod at the node's addresses."""
    addresses = [ip for ip in (node.ipv4, node.ipv6) if ip is not None]
    for address in addresses:
        loop = asyncio.get_running_loop()
        end = loop.time() + _TRIES_S
        while True:
            try:
                got = await outside.fetch(address, port, "/name")
            except outside.OutsideError as error:
                if loop.time() > end:
                    raise UnmetError(f"the outside asks {error}") from error
                await asyncio.sleep(0.5)
                continue
            same(f"the outside asks {outside.place(address, port)}", got, f"{name}\n")
            break
    return f"from outside at {', '.join(map(str, addresses))}"


async def _container_port(node: Node, kubelet: Kubelet) -> str:
    async with running(kubelet, server("container-port")) as found:
        if len(found.ips) != 2:
            raise UnmetError(f"the pod has {found.ips}")
        detail = await from_node(node, "container-port", found.ips, PORT)
        # A port that is only declared is not the node's.
        try:
            _, writer = await outside.connect(node.ipv4, PORT)
        except outside.OutsideError:
            return detail
        writer.close()
        raise UnmetError(f"port {PORT} of the node is open, too")


async def _host_port(node: Node, kubelet: Kubelet) -> str:
    async with running(kubelet, server("host-port", host_port=HOST_PORT)) as found:
        own = [ip for ip in (node.ipv4, node.ipv6) if ip is not None]
        details = [
            await from_node(node, "host-port", ["127.0.0.1", *own], HOST_PORT),
            await from_node(node, "host-port", found.ips, PORT),
            await from_outside(node, "host-port", HOST_PORT),
        ]
    try:
        _, writer = await outside.connect(node.ipv4, HOST_PORT)
    except outside.OutsideError:
        return "; ".join(details)
    writer.close()
    raise UnmetError(f"port {HOST_PORT} of the node is open when the pod is gone")


async def _host_network(node: Node, kubelet: Kubelet) -> str:
    pod = replace(server("host-network", NODE_PORT, host_port=NODE_PORT), host_network=True)
    async with running(kubelet, pod) as found:
        links = f"{await node.shell('ls /sys/class/net')}\n"
        same("its links are the node's", await output(node, found, "ls", "/sys/class/net"), links)
        shown = await output(node, found, "ip", "addr")
        for address in (node.ipv4, node.ipv6):
            if f"inet{'' if address and address.version == 4 else '6'} {address}/" not in shown:
                raise UnmetError(f"{address} is not among the pod's: {shown}")
        return await from_outside(node, "host-network", NODE_PORT)


async def _host_names(node: Node, kubelet: Kubelet) -> str:
    pod = replace(server("name-of-pod"), given_hostname="front", subdomain="shop")
    full = "front.shop.default.svc.cluster.local"
    async with running(kubelet, pod) as found:
        same("hostname", await output(node, found, "hostname"), "front\n")
        same("/etc/hostname", await output(node, found, "cat", "/etc/hostname"), "front\n")
        hosts = await output(node, found, "cat", "/etc/hosts")
        same("/etc/hosts", hosts, configs.hosts(pod, found.ips))
        return f"front, {full} in /etc/hosts" if full in hosts else hosts


async def _default_host_name(node: Node, kubelet: Kubelet) -> str:
    async with running(kubelet, server("name-of-pod")) as found:
        return same("the pod's name", await output(node, found, "hostname"), "name-of-pod\n")


async def _host_name_of_node(node: Node, kubelet: Kubelet) -> str:
    pod = replace(server("name-of-node", NODE_PORT, host_port=NODE_PORT), host_network=True)
    async with running(kubelet, pod) as found:
        own = f"{await node.shell('hostname')}\n"
        return same("the node's name", await output(node, found, "hostname"), own)


async def _dns(node: Node, kubelet: Kubelet) -> str:
    wanted = DnsConfig(("192.0.2.53", "2001:db8::53"), ("shop.test", "test"), ("ndots:2", "edns0"))
    pod = replace(server("dns"), dns_policy="None", dns=wanted)
    async with running(kubelet, pod) as found:
        text = await output(node, found, "cat", "/etc/resolv.conf")
    want = (
        "search shop.test test\nnameserver 192.0.2.53\nnameserver 2001:db8::53\n"
        "options ndots:2 edns0\n"
    )
    return same("each byte of /etc/resolv.conf", text, want)


async def _default_dns(node: Node, kubelet: Kubelet) -> str:
    own = configs.parse_resolv_conf(await node.shell("cat /etc/resolv.conf"))
    if not own.nameservers:
        raise UnmetError("the node has no nameserver")
    pod = replace(server("default-dns"), dns=DnsConfig(searches=("more.test",)))
    want = replace(own, searches=(*own.searches, "more.test"))
    async with running(kubelet, pod) as found:
        text = await output(node, found, "cat", "/etc/resolv.conf")
    same("/etc/resolv.conf", text, configs.resolv_conf(want))
    return f"the node's {', '.join(own.nameservers)}, and more.test"


async def _forward(node: Node, found: Status, name: str, port: int) -> str:
    request = b"GET /name HTTP/1.0\r\n\r\n"
    text = await forwarded(node, found.sandbox, port, request)
    same("the body", text.partition("\r\n\r\n")[2], f"{name}\n")
    return f"port {port}, over v4.channel.k8s.io"


async def _port_forward(node: Node, kubelet: Kubelet) -> str:
    async with running(kubelet, server("forward")) as found:
        await from_node(node, "forward", found.ips, PORT)
        return await _forward(node, found, "forward", PORT)


async def _port_forward_of_node(node: Node, kubelet: Kubelet) -> str:
    pod = replace(server("forward", NODE_PORT, host_port=NODE_PORT), host_network=True)
    async with running(kubelet, pod) as found:
        await from_node(node, "forward", ["127.0.0.1"], NODE_PORT)
        return await _forward(node, found, "forward", NODE_PORT)


async def _port_forward_without_server(node: Node, kubelet: Kubelet) -> str:
    async with running(kubelet, server("forward")) as found:
        try:
            text = await forwarded(node, found.sandbox, PORT + 1, b"x")
        except AgentError as error:
            if f"failed to connect to localhost:{PORT + 1}" in str(error):
                return "the reason is returned"
            raise
        raise UnmetError(f"there is an answer: {text!r}")


EXPECTATIONS: dict[str, Ask] = {
    "a port of a container is reached at the pod's address": _container_port,
    "a host port is reached at the node's addresses": _host_port,
    "a pod on the node's network sees and has what the node has": _host_network,
    "a pod has the hostname that it wants": _host_names,
    "a pod has its name as hostname by default": _default_host_name,
    "a pod on the node's network has the node's hostname": _host_name_of_node,
    "a pod's DNS configuration is what it asks for, exactly": _dns,
    "a pod has the node's DNS by default, and what it adds": _default_dns,
    "a port of a pod is forwarded": _port_forward,
    "a port of a pod on the node's network is forwarded": _port_forward_of_node,
    "a forwarded port without a server is an error": _port_forward_without_server,
}


async def check(node: Node, name: str) -> Check:
    """Ask one expectation of a node."""
    try:
        detail = await EXPECTATIONS[name](node, await kubelet_of(node))
    except (AgentError, CriError, KubeletError, UnmetError) as error:
        return Check(name, False, str(error))
    return Check(name, True, detail)


def to_table(found: Sequence[Check]) -> str:
    """Return the verdicts for people."""
    rows = [["EXPECTATION", "VERDICT", "DETAIL"]]
    rows += [[one.name, "ok" if one.ok else "FAILED", one.detail] for one in found]
    return "\n".join(grid(rows))
