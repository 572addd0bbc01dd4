# SPDX-License-Identifier: Apache-2.0
"""One pod floods; its neighbour and the node go on making connections.

    flooder -- (group 8) this namespace up0 -- world
    quiet   -- (group 8)

The table's limit is the machine's, so the guard is given a smaller one.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import socket
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from ipaddress import ip_address

import pytest

from metropolis.node import allocs
from metropolis.node.core.config import NEW_FLOWS_MAX
from metropolis.node.core.network import conntrack as guarding
from metropolis.node.core.network.conntrack import Guard, Load
from metropolis.node.core.network.rules.base import render
from metropolis.node.core.network.rules.settings import Settings
from metropolis.node.core.network.testing.farends import FAMILY, address, connect, far
from metropolis.node.core.network.workloads.conditions import Conditions
from metropolis.node.core.network.workloads.model import Attachment
from osbase import conntrack
from osbase.conntrack import Census
from osbase.nftables import Nftables
from osbase.supervisor import Context, Supervisor
from osbase.test.namespaces import LIMIT_S, sh

LIMIT = 2000
NAMES = ("flooder", "quiet", "up0")

# The guard is what is tried here: the rate of new flows is out of reach.
RULES = render(Settings(new_flows_per_second=NEW_FLOWS_MAX))


@pytest.fixture(scope="module", autouse=True)
def links() -> None:
    """A namespace behind each link; this one forwards."""
    connect(NAMES)
    # The far end of up0 is silent to floods: an RST would end the flow.
    with far("up0"), Nftables() as nft:
        nft.apply("""
            table inet t { chain c {
                type filter hook input priority 0; tcp dport < 20000 drop
            }; }
        """)


@pytest.fixture
def rules() -> Iterator[None]:
    """The node's rules; the table of flows is empty before."""
    with Nftables() as nft:
        nft.apply(RULES)
        conntrack.flush()
        yield
        nft.apply("flush ruleset")


def pod(name: str, workload_id: str = "") -> Attachment:
    """As the engine lists it."""
    return Attachment(
        workload_id or name,
        "eth0",
        tuple(ip_address(address(version, name)) for version in (4, 6)),
        bytes(6),
        name,
        socket.if_nametoindex(name),
        1500,
        (),
        (),
    )


def pods() -> list[Attachment]:
    return [pod("flooder"), pod("quiet")]


def udp(name: str, version: int, count: int, first: int = 1) -> None:
    """Send a packet to each of so many outside ports."""
    with far(name):
        sock = socket.socket(FAMILY[version], socket.SOCK_DGRAM)
    with sock:
        sock.bind(("", 5000))
        for port in range(first, first + count):
            sock.sendto(b"x", (address(version, "up0"), port))


def checksum(data: bytes) -> int:
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def syn(name: str, version: int, count: int, first: int = 1) -> None:
    """Send a SYN to each of so many outside ports."""
    with far(name):
        sock = socket.socket(FAMILY[version], socket.SOCK_RAW, socket.IPPROTO_TCP)
    to = address(version, "up0")
    ends = ip_address(address(version, name)).packed + ip_address(to).packed
    with sock:
        for port in range(first, first + count):
            head = struct.pack("!HHIIBBHHH", 5000, port, 1, 0, 5 << 4, 2, 1024, 0, 0)
            pseudo = ends + struct.pack("!II", len(head), socket.IPPROTO_TCP)
            head = head[:16] + struct.pack("!H", checksum(pseudo + head)) + head[18:]
            sock.sendto(head, (to, 0))


def echo(source: str | None, version: int) -> bool:
    """Return whether a far end, or this one, can connect to the outside."""
    with far("up0"):
        server = socket.create_server((address(version, "up0"), 0), family=FAMILY[version])
    with contextlib.ExitStack() as stack:
        stack.enter_context(server)
        if source is None:
            client = socket.socket(FAMILY[version])
        else:
            with far(source):
                client = socket.socket(FAMILY[version])
        stack.enter_context(client)
        # The refused one is known by silence: a SYN each second.
        client.settimeout(LIMIT_S if source != "flooder" else 1.0)
        try:
            client.connect(server.getsockname())
        except TimeoutError:
            return False
        return True


def refused() -> dict[int, float]:
    """Return the links whose new flows are refused, and the seconds left."""
    listing = json.loads(sh(f"nft -j list set inet {allocs.NFTABLES_TABLE} {allocs.REFUSED_LINKS}"))
    elements = listing["nftables"][1]["set"].get("elem", [])
    names = {one["elem"]["val"]: one["elem"]["expires"] for one in elements}
    return {
        key if isinstance(key, int) else socket.if_nametoindex(key): value
        for key, value in names.items()
    }


def guard(conditions: Conditions | None = None, **more: object) -> Guard:
    given = {"limit": lambda: LIMIT, **more}
    return Guard(pods, conditions or Conditions(), **given)  # type: ignore[arg-type]


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("flood", [udp, syn])
def test_one_pod_floods(
    rules: None,
    flood: Callable[..., None],
    version: int,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It is refused by name; others, and its old flows, go on."""
    caplog.set_level(logging.INFO)
    conditions = Conditions()
    watch = guard(conditions)
    with far("up0"):
        old_server = socket.socket(FAMILY[version], socket.SOCK_DGRAM)
        old_server.bind((address(version, "up0"), 0))
    with far("flooder"):
        old = socket.socket(FAMILY[version], socket.SOCK_DGRAM)
    with old_server, old:
        old_server.settimeout(LIMIT_S)
        old.connect(old_server.getsockname())
        old.send(b"before")
        assert old_server.recv(100) == b"before"
        watch.look()
        assert not refused()
        flood("flooder", version, LIMIT)
        assert conntrack.count() > LIMIT * guarding.GUARDED
        watch.look()
        assert refused().keys() == {socket.if_nametoindex("flooder")}
        filled = conntrack.count()
        flood("flooder", version, 1000, first=LIMIT + 1)
        assert conntrack.count() <= filled
        for other in ("quiet", None):
            for family in (4, 6):
                assert echo(other, family), (other, family)
        assert not echo("flooder", version)
        old.send(b"after")
        assert old_server.recv(100) == b"after"
    assert watch.refusals == 1
    assert "new flows refused, too many tracked: flooder (2,0" in caplog.text
    assert "new flows refused of flooder" in conditions.notes()["conntrack"]
    assert not conditions.problems()


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("kind", [socket.SOCK_DGRAM, socket.SOCK_STREAM])
def test_one_pod_takes_the_ports_of_a_destination(rules: None, version: int, kind: int) -> None:
    """Masquerading has few, though the table is far from full. As many flows
    to many destinations are no offence.
    """
    most = 100
    watch = guard(crowd=most, limit=lambda: 1_000_000)
    udp("quiet", version, 2 * most)
    watch.look()
    assert not refused()
    with far("flooder"), contextlib.ExitStack() as stack:
        for _ in range(most + 1):
            one = stack.enter_context(socket.socket(FAMILY[version], kind))
            one.setblocking(False)
            one.connect_ex((address(version, "up0"), 7))
            if kind == socket.SOCK_DGRAM:
                one.send(b"x")
    guard(crowd=most, limit=lambda: 1_000_000).look()
    assert refused().keys() == {socket.if_nametoindex("flooder")}
    assert echo("quiet", version)


def test_a_refusal_is_renewed_and_ends(rules: None, caplog: pytest.LogCaptureFixture) -> None:
    """By each census while it lasts; after it by its timeout alone."""
    caplog.set_level(logging.INFO)
    now = [0.0]
    conditions = Conditions()
    watch = guard(conditions, clock=lambda: now[0])
    udp("flooder", 4, LIMIT)
    watch.look()
    flooder = socket.if_nametoindex("flooder")
    # As a census some seconds later finds it.
    with Nftables() as nft:
        nft.apply(
            f"destroy element inet metropolis refused_links {{ {flooder} }}\n"
            f"add element inet metropolis refused_links {{ {flooder} timeout 10s expires 3s }}"
        )
    watch.look()
    assert refused()[flooder] <= 3  # no census yet
    now[0] += guarding.CENSUS_EVERY_S
    watch.look()
    assert refused()[flooder] > 8
    assert watch.refusals == 1
    conntrack.flush()
    watch.look()
    assert "conntrack" not in conditions.notes()
    assert caplog.text.count("new flows refused") == 1
    assert "no longer refused: flooder" in caplog.text


def test_full_by_nobody_in_particular(
    rules: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Flows of an outsider and of the node: nobody to refuse; said once."""
    now = [0.0]
    conditions = Conditions()
    watch = guard(conditions, clock=lambda: now[0])
    udp("quiet", 4, 100)
    with far("up0"):
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with sock:
        for port in range(1, LIMIT):
            sock.sendto(b"x", (address(4, "up0", 1), port))
    for _ in range(3):
        watch.look()
        now[0] += guarding.CENSUS_EVERY_S
    assert not refused()
    note = conditions.notes()["conntrack"]
    assert f"most have: {address(4, 'up0')} 1,999, quiet 100" in note
    assert caplog.text.count("most have") == 1
    assert not conditions.problems()


def test_rules_that_are_away_are_waited_for(rules: None, caplog: pytest.LogCaptureFixture) -> None:
    """Others flushed them: said once; the refusal follows."""
    now = [0.0]
    watch = guard(clock=lambda: now[0])
    udp("flooder", 4, LIMIT)
    with Nftables() as nft:
        nft.apply("flush ruleset")
        for _ in range(3):
            watch.look()
            now[0] += guarding.CENSUS_EVERY_S
        assert caplog.text.count("guarding the table of tracked flows") == 1
        nft.apply(RULES)
    watch.look()
    assert refused()


def test_it_runs_and_stops(rules: None) -> None:
    """Supervised: refuses by itself, and ends when asked to."""
    udp("flooder", 4, LIMIT)
    began = asyncio.Event()

    async def whole() -> None:
        loop = asyncio.get_running_loop()

        def listed() -> list[Attachment]:
            loop.call_soon_threadsafe(began.set)
            return pods()

        async def root(ctx: Context) -> None:
            ctx.run("conntrack", Guard(listed, Conditions(), limit=lambda: LIMIT).run)
            ctx.signal_healthy()
            ctx.signal_done()

        supervisor = Supervisor(root)
        running = asyncio.create_task(supervisor.run(LIMIT_S))
        await asyncio.wait_for(began.wait(), LIMIT_S)
        supervisor.request_stop()
        assert not await running

    asyncio.run(whole())
    assert refused()


# ---- Pure -------------------------------------------------------------------


def entries(**numbers: int) -> list[Load]:
    return [Load(name, (place,), number) for place, (name, number) in enumerate(numbers.items())]


@pytest.mark.parametrize(
    ("found", "names"),
    [
        ([], []),
        (entries(a=751, b=0), ["a"]),  # the only active one
        (entries(a=375, b=375), []),  # each has its share
        (entries(a=376, b=400), ["b", "a"]),
        (entries(a=76, **{f"b{n}": 0 for n in range(9)}), ["a"]),
        (entries(**{f"a{n:02}": 60 for n in range(20)}), []),  # below the least
        (entries(**{f"a{n:02}": 65 for n in range(20)}), [f"a{n:02}" for n in range(20)]),
    ],
)
def test_offenders(found: Sequence[Load], names: list[str]) -> None:
    """The guarded part of a table of 1,000 is shared."""
    assert [load.workload_id for load in guarding.offenders(found, 1000)] == names


@pytest.mark.parametrize("workloads", [1, 2, 7, 100, 500])
def test_a_table_filled_by_workloads_has_an_offender(workloads: int) -> None:
    """However evenly they fill it beyond the guarded part."""
    limit = 65_536
    each = int(limit * guarding.GUARDED) // workloads + 1
    found = [Load(str(n), (n,), each) for n in range(workloads)]
    assert guarding.offenders(found, limit)


def test_loads_are_of_all_interfaces() -> None:
    """A workload's flows, of both families and all its links; no others."""
    one = pod("flooder", "w")
    two = replace(pod("quiet", "w"), if_name="eth1")
    census = Census(
        {one.ips[0]: 3, one.ips[1]: 4, two.ips[0]: 5, ip_address("192.0.2.1"): 100}, others=9
    )
    assert guarding.loads(census, [one, two]) == [
        Load("w", (one.host_ifindex, two.host_ifindex), 12)
    ]


def test_limit_follows_memory() -> None:
    """32 a MiB, within bounds: a hundredth of the memory at most."""
    gib = 2**30
    sizes = (gib // 4, gib, 4 * gib, 32 * gib, 512 * gib)
    limits = [guarding.limit_for(size) for size in sizes]
    assert limits == [65_536, 65_536, 131_072, 1_048_576, 1_048_576]


def test_preparing_leaves_alone_what_is_not_ours(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The machine's limit, from a namespace; a kernel without a limit."""
    before = conntrack.limit()
    monkeypatch.setattr(guarding, "_LIMIT_MIN", before + 1)
    monkeypatch.setattr(guarding, "_LIMIT_MAX", before + 1)
    caplog.set_level(logging.INFO)
    guarding.prepare()
    assert conntrack.limit() == before
    assert f"{before} tracked flows at most" in caplog.text

    def missing(wanted: int) -> bool:
        raise conntrack.ConntrackError(f"set /nothing to {wanted}: ENOENT")

    monkeypatch.setattr(conntrack, "raise_limit", missing)
    guarding.prepare()
    assert "/nothing to" in caplog.text


def test_a_limit_that_others_lower_is_raised_again() -> None:
    """A higher limit than ours stays; a fight is given up."""
    table = {"limit": 65_536, "allowed": 1}

    def raise_limit(wanted: int) -> bool:
        table["limit"] = wanted
        return True

    def allow(key: str) -> bool:
        assert key == "sysctl net.netfilter.nf_conntrack_max"
        return bool(table["allowed"])

    ward = guarding.Limit(65_536, limit=lambda: table["limit"], raise_limit=raise_limit)
    assert not ward.look(allow)
    table["limit"] = 262_144
    assert not ward.look(allow)
    table["limit"] = 1_000
    (repair,) = ward.look(allow)
    assert repair.what == "net.netfilter.nf_conntrack_max was 1000, not 65536"
    assert (repair.error, repair.left, table["limit"]) == ("", False, 65_536)
    table.update(limit=1_000, allowed=0)
    (repair,) = ward.look(allow)
    assert (repair.left, table["limit"]) == (True, 1_000)


def test_a_limit_that_is_not_ours_is_no_problem() -> None:
    """As in a namespace, by the kernel's own error."""
    ward = guarding.Limit(conntrack.limit() + 1)
    for _ in range(2):
        assert not ward.look(lambda _: True)
