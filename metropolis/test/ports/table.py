# SPDX-License-Identifier: Apache-2.0
"""All cells of a setting: asked, and compared with the oracle."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

from metropolis.test.ports import kernel, oracle
from metropolis.test.ports.oracle import At, By, Cell, Client, Expected, Mapping, Setting, Source
from metropolis.test.ports.world import ADDRESSES, OTHER, OUTSIDE, World, host_ip, port

SERVER: Final = "pod-a"
NEIGHBOUR: Final = "pod-b"
_HOST_PORT, _CONTAINER_PORT = 20_001, 7_001
_ANSWER_S, _SILENCE_S = 5.0, 0.6
_REFUSED_MS: Final = 2_000  # a timeout is no refusal


@dataclass(frozen=True)
class Result:
    """A cell or a case. Wrong unless `ok`."""

    cell: str
    expected: str
    got: str
    why: str
    ok: bool


def ports(mapping: Mapping) -> tuple[int, int]:
    """Return host port and container port of a mapping, the same for all
    protocols.
    """
    number = oracle.MAPPINGS.index(mapping)
    return _HOST_PORT + number, _CONTAINER_PORT + number


def mapped(setting: Setting) -> list[oracle.Port]:
    """Return all mappings of the pod."""
    return [
        oracle.Port(host_ip(mapping), protocol, *ports(mapping))
        for mapping in oracle.mappings(setting)
        for protocol in oracle.PROTOCOLS
    ]


def request(found: Iterable[oracle.Port]) -> list[Any]:
    """Return mappings as messages."""
    return [port(one.host_port, one.container_port, one.protocol, one.host) for one in found]


def describe(answer: dict[str, Any]) -> str:
    """Return an answer of a probe in words."""
    match answer["by"]:
        case "answered":
            return f"{answer['name']} port {answer['port']}, which sees {answer['source']}"
        case "error":
            return f"error: {answer['error']}"
        case "refused" if answer["ms"] > _REFUSED_MS:
            return f"refused after {answer['ms']:.0f} ms"
        case other:
            return str(other)


class Table:
    """The cells of a setting in a world that runs with it."""

    def __init__(self, world: World, setting: Setting, answer_s: float = _ANSWER_S) -> None:
        """answer_s: how long to wait for an answer that must come."""
        self._world = world
        self._answer_s = answer_s
        self._setting = setting
        self._link_local = world.link_local()
        self._chosen: dict[str, str] = {}

    def prepare(self) -> None:
        """Attach the pods; begin the listeners. The node's begin last: before
        the attach the service would refuse the ports.
        """
        world, setting = self._world, self._setting
        found = mapped(setting)
        if setting.further:
            world.attach(SERVER)
        world.attach(SERVER, request(found), if_name=self._interface(Client.SELF))
        world.attach(NEIGHBOUR)
        every = {4: "0.0.0.0", 6: "::"}
        # A datagram's answer has the address of the socket, or else that of the
        # interface with the default route.
        addresses = world.attached[SERVER] if setting.further else every
        world.pod(SERVER).listen(
            (one.protocol, addresses[version], one.container_port)
            for one in found
            for version in setting.versions
        )
        if setting.listening:
            world.node.listen(
                (one.protocol, address, one.host_port)
                for one in found
                for address in self._own_addresses()
            )

    def finish(self) -> None:
        """End the listeners; detach the pods."""
        self._world.node.forget()
        self._world.pod(SERVER).forget()
        self._world.detach_all()

    def elements(self) -> Result:
        """Return whether the kernel has the pod's elements, and no more."""
        wanted = oracle.elements([(self._world.attached[SERVER], mapped(self._setting))])
        found = kernel.differences(self._world.node, wanted)
        count = sum(map(len, wanted.values()))
        return Result(
            f"{self._setting}/elements",
            f"{count} elements, those of the pod",
            "; ".join(found[:4]) or "these",
            "nothing per pod but elements",
            not found,
        )

    def run(self, cells: Sequence[Cell]) -> Iterator[Result]:
        """Ask all cells, each client's at once, and yield the results."""
        by_client = {
            client: mine for client in Client if (mine := [c for c in cells if c.client is client])
        }

        def asked(client: Client) -> list[dict[str, Any]]:
            asks = [self._ask(cell) for cell in by_client[client]]
            return self._world.client(client).ask(asks)

        # The pod answers itself, so it asks when the others are done.
        others = [client for client in by_client if client is not Client.SELF]
        with ThreadPoolExecutor(len(Client)) as pool:
            answers = dict(zip(others, pool.map(asked, others), strict=True))
        if Client.SELF in by_client:
            answers[Client.SELF] = asked(Client.SELF)
        for client, mine in by_client.items():
            for cell, answer in zip(mine, answers[client], strict=True):
                yield self._compared(cell, oracle.expected(cell), answer)

    def _ask(self, cell: Cell) -> dict[str, Any]:
        silent = oracle.expected(cell).by is By.SILENT
        # From its link-local address, which the kernel may choose for this, a
        # pod reaches neighbour discovery alone.
        chosen = cell.at is At.HOP and cell.version == 6
        name = SERVER if cell.client is Client.SELF else NEIGHBOUR
        if cell.client is Client.SELF and self._setting.further:
            chosen = True
        return {
            "source": self._world.attached[name][cell.version] if chosen else "",
            "protocol": cell.protocol,
            "address": self._address(cell.client, cell.at, cell.version),
            "port": ports(cell.mapping)[0],
            "timeout": _SILENCE_S if silent else self._answer_s,
        }

    def _address(self, client: Client, at: At, version: int) -> str:
        if at is At.LINK_LOCAL:
            return f"{self._link_local}%{'up0' if client is Client.NODE else 'eth0'}"
        address = ADDRESSES[at, version]
        return f"{address}%{self._interface(client)}" if address.startswith("fe80:") else address

    def _interface(self, client: Client) -> str:
        """Return a pod's interface: the one with the mappings, of their pod."""
        return "eth1" if client is Client.SELF and self._setting.further else "eth0"

    def _own_addresses(self) -> list[str]:
        """Return all addresses that the node's own programs listen on."""
        found = [one for one in ADDRESSES.values() if not one.startswith("fe80:")]
        hops = [f"{ADDRESSES[At.HOP, 6]}%{self._world.links[one]}" for one in (SERVER, NEIGHBOUR)]
        six = 6 in self._setting.versions
        return [*found, f"{self._link_local}%up0", *(hops if six else ())]

    def _compared(self, cell: Cell, expected: Expected, answer: dict[str, Any]) -> Result:
        host_port, container_port = ports(cell.mapping)
        got = describe(answer)
        if expected.by in (By.REFUSED, By.SILENT):
            return Result(str(cell), expected.by, got, expected.why, got == expected.by)
        name, number = (
            (SERVER, container_port)
            if expected.by is By.POD
            else (self._world.node.name, host_port)
        )
        sources = self._sources(cell, expected.source)
        seen = " or ".join(sorted(sources)) if sources else "any address"
        ok = (answer["by"], answer["name"], answer["port"]) == ("answered", name, number)
        ok = ok and (not sources or answer["source"] in sources)
        return Result(str(cell), f"{name} port {number}, which sees {seen}", got, expected.why, ok)

    def _sources(self, cell: Cell, source: Source) -> set[str]:
        """Return the addresses that are all right; none: any is."""
        version = cell.version
        match source:
            case Source.UNKNOWN:
                return set()
            case Source.HOP:
                return {ADDRESSES[At.HOP, version]}
            case Source.REWRITTEN:
                return {ADDRESSES[at, version] for at in (At.NODE, At.SECOND, At.HOP)}
        match cell.client:
            case Client.OUTSIDE:
                return {OUTSIDE[version]}
            case Client.OTHER:
                return {OTHER[version]}
            case Client.NEIGHBOUR:
                return {self._world.attached[NEIGHBOUR][version]}
            case Client.SELF:
                return {self._world.attached[SERVER][version]}
            case Client.NODE:
                return {self._chosen_by_kernel(ADDRESSES[cell.at, version])}

    def _chosen_by_kernel(self, address: str) -> str:
        """Return the source that the node itself has towards an address."""
        if address not in self._chosen:
            found = json.loads(self._world.node.run(["ip", "-json", "route", "get", address]))
            self._chosen[address] = str(found[0]["prefsrc"])
        return self._chosen[address]
