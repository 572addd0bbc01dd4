# SPDX-License-Identifier: Apache-2.0
"""Flows that exist while policies change: which are cut, and which go on.

The workloads have the identities 5 (pod), 7 (pod-b) and 9 (overlay).
"""

from __future__ import annotations

import contextlib
import select
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_address
from typing import Final

import pytest

from metropolis.node import allocs
from metropolis.node.core.network.policy.kernel import PolicyKernel
from metropolis.node.core.network.policy.revoke import Judge, Revoked, revoke
from metropolis.node.core.network.policy.tables import Tables
from metropolis.node.core.network.rules import host_ports
from metropolis.node.core.network.rules.settings import Settings
from metropolis.node.core.network.rules.testing.ends import (
    ADDRESSES,
    NODE,
    address,
    at,
    bulk,
    connect,
    marks,
    server,
    try_tcp,
    try_udp,
)
from metropolis.node.core.network.rules.testing.lab import ALL, FAMILY, NETWORKS, apply
from metropolis.node.core.network.workloads.model import IPAddress
from osbase import conntrack
from osbase.nftables import Nftables
from osbase.test.namespaces import sh

pytestmark = pytest.mark.usefixtures("links")

FAMILIES: Final = pytest.mark.parametrize("version", [4, 6])
TABLE: Final = f"inet {allocs.NFTABLES_WORKLOADS}"
IDENTITIES: Final = {
    ip_address(ADDRESSES[place][version]): identity
    for place, identity in (("pod", 5), ("pod-b", 7), ("overlay", 9))
    for version in (4, 6)
}
FREE: Final = Tables(IDENTITIES, pairs=frozenset({(5, 7)}))
OPEN: Final = replace(FREE, isolated_ingress=frozenset({7}))
CLOSED: Final = replace(OPEN, pairs=frozenset())
CUT_S: Final = 1.0
"""Within which a flow is cut."""


@pytest.fixture(scope="module", autouse=True)
def addressed(links: None) -> None:
    address()


@pytest.fixture(autouse=True)
def table(addressed: None) -> Iterator[None]:
    """Host port 8081 leads to port 80 of pod-b."""
    apply(Settings(NETWORKS, node_access=ALL, overlay=True))
    with Nftables() as nft:
        nft.apply(host_ports.render_whole())
        for version in (4, 6):
            to = f"{ADDRESSES['pod-b'][version]} . 80"
            nft.apply(f"add element {TABLE} any{version} {{ tcp . 8081 : {to} }}")
    conntrack.flush()
    yield
    sh("nft flush ruleset")


def load(tables: Tables, *, policed: bool = True) -> None:
    PolicyKernel().replace(tables, policed=policed)


def cut(tables: Tables, *changed: int, every: bool = False) -> Revoked:
    """Judge as the tables say."""

    def identity(ip: IPAddress) -> int:
        return tables.identities.get(ip, 0)

    def allowed(source: IPAddress, destination: IPAddress, protocol: int, port: int) -> bool:
        a, b = identity(source), identity(destination)
        isolated = a in tables.isolated_egress or b in tables.isolated_ingress
        return not isolated or (a, b) in tables.pairs

    own = {ip_address(one) for one in ADDRESSES[NODE].values()}
    own |= {allocs.FIRST_HOP_IPV4, allocs.FIRST_HOP_IPV6}
    return revoke(changed, Judge(allowed, identity, own.__contains__), every=every)


@contextlib.contextmanager
def connected(
    version: int, source: str, to: str, *, by_host_port: bool = False
) -> Iterator[tuple[socket.socket, socket.socket]]:
    """Yield both ends of a connection."""
    with server(version, to, 80) as listener:
        target = (NODE, 8081) if by_host_port else (to, 80)
        client = connect(source, ADDRESSES[target[0]][version], target[1])
        with client, listener.accept()[0] as peer:
            yield client, peer


def goes_on(one: socket.socket, other: socket.socket) -> bool:
    one.settimeout(CUT_S)
    other.settimeout(CUT_S)
    try:
        one.sendall(b"on")
        return other.recv(10) == b"on"
    except OSError:
        return False


@FAMILIES
@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("by_host_port", [False, True])
def test_bulk_is_cut(version: int, backwards: bool, by_host_port: bool) -> None:
    """In both directions: answers of a flow that was cut are no flow."""
    load(OPEN if not by_host_port else FREE)
    source = "up0" if by_host_port else "pod"
    with connected(version, source, "pod-b", by_host_port=by_host_port) as (client, peer):
        ends = (peer, client) if backwards else (client, peer)
        assert bulk(*ends, time.monotonic() + 0.3)
        load(CLOSED)
        assert len(cut(CLOSED, 7).cut) == 1
        assert not bulk(*ends, time.monotonic() + CUT_S)


@FAMILIES
@pytest.mark.parametrize("speaks", [0, 1])
def test_an_idle_connection_is_cut(version: int, speaks: int) -> None:
    """By a reset, whichever end speaks first."""
    load(OPEN)
    with connected(version, "pod", "pod-b") as ends:
        load(CLOSED)
        cut(CLOSED, 7)
        end = ends[speaks]
        end.settimeout(CUT_S)
        end.sendall(b"x")
        with pytest.raises(ConnectionResetError):
            end.recv(1)


@FAMILIES
def test_what_is_allowed_goes_on(version: int) -> None:
    """Beside flows that are cut; the node's own, too."""
    load(replace(OPEN, pairs=frozenset({(5, 7), (9, 7)})))
    now = replace(OPEN, pairs=frozenset({(9, 7)}))
    with connected(version, "overlay", "pod-b") as kept, connected(version, NODE, "pod") as own:
        with server(version, "pod-b", 81) as listener:
            client = connect("pod", ADDRESSES["pod-b"][version], 81)
            with client, listener.accept()[0] as peer:
                load(now)
                found = cut(now, 5, 7, every=True)
                assert [one.port for one in found.cut] == [81]
                assert goes_on(*kept)
                assert goes_on(*reversed(kept))
                assert goes_on(*own)
                assert not goes_on(client, peer)


@FAMILIES
@pytest.mark.parametrize("many", [False, True])
def test_flows_older_than_the_first_policy(version: int, many: bool) -> None:
    """They have no mark until they are judged, and then that of their ends."""
    changed = range(100, 200) if many else ()
    load(FREE, policed=False)
    with connected(version, "pod", "pod-b") as denied, connected(version, "pod", "overlay") as kept:
        assert {mark for _, mark in marks()} == {0}
        load(CLOSED)
        found = cut(CLOSED, *changed, every=True)
        assert (len(found.cut), found.marked) == (1, 1)
        assert not goes_on(*denied)
        assert goes_on(*kept)
        assert 5 << 16 | 9 in {mark for _, mark in marks()}
        assert not cut(CLOSED, *changed, every=True).cut


@FAMILIES
def test_an_address_with_another_identity(version: int) -> None:
    """Its flow is found by the new one afterwards."""
    load(OPEN)
    own = ip_address(ADDRESSES["pod"][version])
    renamed = replace(OPEN, identities={**IDENTITIES, own: 50}, pairs=frozenset({(5, 7), (50, 7)}))
    with connected(version, "pod", "pod-b") as ends:
        load(renamed)
        found = cut(renamed, 5)
        assert (found.cut, found.marked) == ((), 1)
        assert goes_on(*ends)
        closed = replace(renamed, pairs=frozenset())
        load(closed)
        assert len(cut(closed, 50).cut) == 1
        assert not goes_on(*ends)


@FAMILIES
def test_datagrams_of_the_client_are_cut(version: int) -> None:
    """Answered or not."""
    load(OPEN)
    to = (ADDRESSES["pod-b"][version], 80)
    with server(version, "pod-b", 80, "udp") as answers:
        with at("pod"):
            made = [socket.socket(FAMILY[version], socket.SOCK_DGRAM) for _ in range(2)]
        with made[0] as asked, made[1] as stream:
            asked.sendto(b"ask", to)
            answers.sendto(b"answer", answers.recvfrom(100)[1])
            stream.sendto(b"stream", to)
            assert answers.recv(100) == b"stream"
            load(CLOSED)
            assert len(cut(CLOSED, 7).cut) == 2
            for one in made:
                with contextlib.suppress(OSError):
                    one.sendto(b"after", to)
            assert not select.select([answers], [], [], 0.3)[0]
        load(OPEN)
        assert try_udp("pod", *to, answers) == "passes"


@FAMILIES
def test_associations(version: int) -> None:
    """SCTP, if this kernel has it."""
    try:
        with at("pod-b"):
            listener = socket.socket(FAMILY[version], socket.SOCK_STREAM, socket.IPPROTO_SCTP)
    except OSError as error:
        pytest.skip(f"SCTP: {error}")
    with listener:
        listener.bind((ADDRESSES["pod-b"][version], 80))
        listener.listen()
        with at("pod"):
            client = socket.socket(FAMILY[version], socket.SOCK_STREAM, socket.IPPROTO_SCTP)
        with client:
            client.settimeout(2)
            load(CLOSED)
            with pytest.raises(OSError, match=r"."):
                client.connect((ADDRESSES["pod-b"][version], 80))


def _difference(before: Tables, after: Tables) -> tuple[Tables, Tables]:
    def less(one: Tables, other: Tables) -> Tables:
        return Tables(
            dict(one.identities.items() - other.identities.items()),
            isolated_egress=one.isolated_egress - other.isolated_egress,
            pairs=one.pairs - other.pairs,
        )

    return less(before, after), less(after, before)


@FAMILIES
def test_a_change_is_one_moment(version: int) -> None:
    """While tables change again and again between two that both allow a pair,
    no connection is refused; nor does one pass that neither allows.
    """
    kernel = PolicyKernel()
    one = replace(OPEN, isolated_egress=frozenset({5}))
    own = ip_address(ADDRESSES["pod"][version])
    two = replace(one, identities={**IDENTITIES, own: 50}, pairs=frozenset({(50, 7)}))
    two = replace(two, isolated_egress=frozenset({50}))
    kernel.replace(one, policed=True)
    deadline = time.monotonic() + 1.0

    def change() -> None:
        while time.monotonic() < deadline:
            kernel.apply(*_difference(one, two), policed=True, present={50, 7, 9})
            kernel.apply(*_difference(two, one), policed=True, present={5, 7, 9})

    thread = threading.Thread(target=change)
    with server(version, "pod-b", 80) as listener, server(version, "overlay", 80):
        thread.start()
        tried = 0
        while time.monotonic() < deadline:
            assert try_tcp("pod", ADDRESSES["pod-b"][version], 80) == "passes"
            listener.accept()[0].close()
            assert try_tcp("pod", ADDRESSES["overlay"][version], 80) == "reset"
            tried += 1
        thread.join()
    assert tried > 10
