# SPDX-License-Identifier: Apache-2.0
"""The tables give each packet the evaluator's verdict, in random worlds; and an
updated compiler gives the tables of a new one.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from metropolis.node.core.network.policy import classes, pairs
from metropolis.node.core.network.policy.compiler import Compiler, PolicyError, compile_tables
from metropolis.node.core.network.policy.evaluate import Evaluator
from metropolis.node.core.network.policy.model import (
    Action,
    Direction,
    NamedPort,
    Networks,
    Operator,
    Policy,
    Ports,
    Protocol,
    Requirement,
    Rule,
    Tier,
    Workload,
    Workloads,
    World,
)
from metropolis.node.core.network.policy.tables import Tables, WorldRange
from metropolis.node.core.network.policy.testing import worlds
from metropolis.node.core.network.policy.testing.packet import passes
from metropolis.node.core.network.workloads.model import IPAddress

BOTH = frozenset(Direction)
EVERYBODY = Workloads()


def compare(world: World, tables: Tables, others: Iterable[IPAddress] = ()) -> None:
    """Compare packets with verdicts, of every pair of addresses that matter."""
    evaluator = Evaluator(world)
    owners = {ip: one.key for one in world.workloads for ip in one.ips}
    ips = [*worlds.addresses(world), *others]
    for source in ips:
        for destination in ips:
            if source.version != destination.version:
                continue
            ends = owners.get(source), owners.get(destination)
            if ends[0] == ends[1]:
                continue  # a workload and itself, or the world and itself
            for protocol, port in worlds.ports():
                verdict = evaluator.verdict(source, destination, protocol, port)
                passed = passes(tables, source, destination, protocol, port)
                assert passed == verdict.allowed, (source, destination, protocol, port, verdict)


@settings(max_examples=60, deadline=None)
@given(
    worlds.worlds(),
    some.lists(some.one_of(some.ip_addresses(v=4), some.ip_addresses(v=6)), max_size=2),
)
def test_packets_meet_the_verdict(world: World, others: list[IPAddress]) -> None:
    compare(world, compile_tables(world).tables, others)


@settings(max_examples=100, deadline=None)
@given(worlds.worlds())
def test_ranges_of_one_kind_do_not_overlap(world: World) -> None:
    tables = compile_tables(world).tables
    for one, other in combinations(tables.pair_ports, 2):
        if (one.source, one.destination, one.protocol) == (
            other.source,
            other.destination,
            other.protocol,
        ):
            assert one.last < other.first or other.last < one.first
        assert (one.source, one.destination) not in tables.pairs
    for ranges in (tables.world_egress, tables.world_ingress):
        for first, second in combinations(ranges, 2):
            assert _apart(first, second), (first, second)


def _apart(one: WorldRange, other: WorldRange) -> bool:
    if one.identity != other.identity or one.first_ip.version != other.first_ip.version:
        return True
    if int(one.last_ip) < int(other.first_ip) or int(other.last_ip) < int(one.first_ip):
        return True
    if None in (one.protocol, other.protocol) or one.protocol is other.protocol:
        return one.last < other.first or other.last < one.first
    return True


@settings(max_examples=100, deadline=None)
@given(some.data())
def test_an_update_gives_what_a_new_compiler_gives(data: some.DataObject) -> None:
    world = data.draw(worlds.worlds())
    compiler = Compiler()
    compiled = compiler.update(world)
    for _ in range(data.draw(some.integers(1, 4))):
        world = data.draw(worlds.changes(world))
        expected = compile_tables(world, compiled.numbers)
        compiled = compiler.update(world)
        assert compiled == expected


@settings(max_examples=100, deadline=None)
@given(worlds.worlds(), worlds.workloads(5))
def test_the_identity_of_a_workload_is_that_of_an_update(world: World, workload: Workload) -> None:
    world = replace(world, workloads=tuple(w for w in world.workloads if w.key != workload.key))
    compiler = Compiler()
    before = compiler.update(world).tables
    found = compiler.identity_of(workload)
    after = compiler.update(replace(world, workloads=(*world.workloads, workload))).tables
    if found is None:
        assert set(after.identities.values()) > set(before.identities.values())
    else:
        assert found == {ip: after.identities[ip] for ip in workload.ips}
        assert replace(after, identities=before.identities) == before


@settings(max_examples=50, deadline=None)
@given(worlds.worlds())
def test_numbers_persist(world: World) -> None:
    compiled = compile_tables(world)
    assert compile_tables(world, compiled.numbers) == compiled
    mirrored = replace(world, workloads=world.workloads[::-1], policies=world.policies[::-1])
    assert compile_tables(mirrored, compiled.numbers) == compiled


def labelled(**labels: str) -> Workloads:
    return Workloads((), tuple(Requirement(k, Operator.IN, (v,)) for k, v in labels.items()))


def workload(index: int, **labels: str) -> Workload:
    return Workload(f"w{index}", (IPv4Address(f"10.0.{index // 250}.{index % 250}"),), "a", labels)


def isolating(name: str, subject: Workloads, *ingress: Rule) -> Policy:
    return Policy(name, Tier.NAMESPACE, subject, ingress, isolates=frozenset({Direction.INGRESS}))


def test_without_policies_all_are_one_class_and_nothing_is_stored() -> None:
    tables = compile_tables(World(workloads=(workload(1), workload(2, app="x")))).tables
    assert tables == Tables({IPv4Address("10.0.0.1"): 1, IPv4Address("10.0.0.2"): 1})


def test_a_class_that_splits_leaves_its_number_to_the_greater_part() -> None:
    some_workloads = tuple(workload(i, app="x" if i < 2 else "y") for i in range(5))
    world = World(workloads=some_workloads)
    before = compile_tables(world)
    assert set(before.tables.identities.values()) == {1}
    split = replace(world, policies=(isolating("p", labelled(app="x")),))
    after = compile_tables(split, before.numbers)
    assert list(after.tables.identities.values()) == [2, 2, 1, 1, 1]
    joined = compile_tables(world, after.numbers)
    assert set(joined.tables.identities.values()) == {1}
    # 2 is free, and is not the next.
    again = compile_tables(split, joined.numbers)
    assert list(again.tables.identities.values()) == [3, 3, 1, 1, 1]


def test_numbers_start_from_the_beginning_behind_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(classes, "IDENTITY_MAX", 3)
    world = World(workloads=tuple(workload(i, app="x" if i else "y") for i in range(3)))
    split = replace(world, policies=(isolating("p", labelled(app="y")),))
    compiler = Compiler()
    seen = []
    for _ in range(3):
        compiler.update(world)
        seen.append(compiler.update(split).tables.identities[IPv4Address("10.0.0.0")])
    assert seen == [2, 3, 2]


def test_a_pair_has_the_ports_that_both_ends_allow() -> None:
    client = Policy(
        "client",
        Tier.NAMESPACE,
        labelled(app="client"),
        egress=(Rule((labelled(app="server"),), (Ports(Protocol.TCP, 80, 90),)),),
        isolates=frozenset({Direction.EGRESS}),
    )
    server = isolating("server", labelled(app="server"), Rule(None, (Ports(Protocol.TCP, 85, 99),)))
    world = World((client, server), {}, (workload(1, app="client"), workload(2, app="server")))
    tables = compile_tables(world).tables
    between = [one for one in tables.pair_ports if (one.source, one.destination) == (1, 2)]
    assert [(one.protocol, one.first, one.last) for one in between] == [(Protocol.TCP, 85, 90)]


def test_excepts_are_subtracted_and_equal_neighbours_are_one_range() -> None:
    networks = Networks(
        (ip_network("192.0.2.0/25"), ip_network("192.0.2.128/25")), (ip_network("192.0.2.4/30"),)
    )
    world = World((isolating("p", EVERYBODY, Rule((networks,), None)),), {}, (workload(1),))
    ranges = compile_tables(world).tables.world_ingress
    assert {(str(one.first_ip), str(one.last_ip)) for one in ranges} == {
        ("192.0.2.0", "192.0.2.3"),
        ("192.0.2.8", "192.0.2.255"),
    }
    assert {one.protocol for one in ranges} == {None}


def test_a_networks_rule_about_a_workload_does_not_enter_the_ranges_of_others() -> None:
    """A prefix on one side does not open the isolation of the other."""
    anywhere = Networks((ip_network("0.0.0.0/0"),))
    client = Policy(
        "client",
        Tier.NAMESPACE,
        labelled(app="client"),
        egress=(Rule((anywhere,), None),),
        isolates=frozenset({Direction.EGRESS}),
    )
    world = World(
        (client, isolating("server", labelled(app="server"))),
        {},
        (workload(1, app="client"), workload(2, app="server")),
    )
    tables = compile_tables(world).tables
    assert not passes(tables, ip_address("10.0.0.1"), ip_address("10.0.0.2"), Protocol.TCP, 80)
    assert passes(tables, ip_address("10.0.0.1"), ip_address("192.0.2.1"), None, 0)


def test_addresses_of_one_workload_may_have_two_identities() -> None:
    both = Workload("w", (IPv4Address("10.0.0.1"), IPv6Address("fd00::1")), "a")
    networks = Networks((ip_network("10.0.0.0/24"),))
    world = World((isolating("p", EVERYBODY, Rule((networks,), None)),), {}, (both,))
    assert len(set(compile_tables(world).tables.identities.values())) == 2


def limits() -> World:
    """Six classes, each isolated, with two ports open to all."""
    rule = Rule(None, (Ports(Protocol.TCP, 80, 80), Ports(Protocol.UDP, 53, 53)))
    policies = tuple(isolating(f"p{i}", labelled(app=str(i)), rule) for i in range(6))
    return World(policies, {}, tuple(workload(i, app=str(i)) for i in range(6)))


@pytest.mark.parametrize(
    ("module", "name", "limit", "pattern"),
    [
        (classes, "IDENTITY_MAX", 5, r"6 classes .* limit is 5: let policies use fewer"),
        (pairs, "PAIRS_MAX", 71, r"more than 71 pairs .* among 6 classes: use fewer"),
        (pairs, "RANGES_MAX", 23, r"24 address ranges .* limit is 23: use fewer"),
    ],
)
def test_limits(
    module: object, name: str, limit: int, pattern: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = limits()
    monkeypatch.setattr(module, name, limit + 1)
    fits = compile_tables(world)
    assert len(fits.tables.pair_ports) == 72
    monkeypatch.setattr(module, name, limit)
    with pytest.raises(PolicyError, match=pattern):
        compile_tables(world)


def test_a_refused_world_leaves_the_compiler_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    world = limits()
    small = replace(world, policies=world.policies[:2])
    compiler = Compiler()
    before = compiler.update(small)
    monkeypatch.setattr(pairs, "PAIRS_MAX", 30)
    with pytest.raises(PolicyError):
        compiler.update(world)
    assert compiler.identity_of(world.workloads[0]) == {IPv4Address("10.0.0.0"): 1}
    assert compiler.update(small) == before


def test_the_first_world_may_be_refused_and_numbers_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    world = limits()
    before = compile_tables(world)
    compiler = Compiler(before.numbers)
    with monkeypatch.context() as patched:
        patched.setattr(pairs, "PAIRS_MAX", 30)
        with pytest.raises(PolicyError):
            compiler.update(world)
    assert compiler.update(world) == before


@pytest.mark.parametrize(
    ("world", "pattern"),
    [
        (World((isolating("p", EVERYBODY), isolating("p", labelled(app="x")))), "name p: rename"),
        (World(workloads=(workload(1), workload(1))), "same key"),
        (
            World(workloads=(workload(1), replace(workload(1), key="other"))),
            r"10\.0\.0\.1 is an address of other and of another",
        ),
    ],
)
def test_what_must_be_unique_is_checked(world: World, pattern: str) -> None:
    with pytest.raises(PolicyError, match=pattern):
        compile_tables(world)


def test_an_address_passes_from_a_workload_to_another() -> None:
    old, new = workload(1, app="x"), replace(workload(1, app="y"), key="new")
    policies = (isolating("p", labelled(app="x")),)
    compiler = Compiler()
    compiler.update(World(policies, {}, (old,)))
    after = World(policies, {}, (new,))
    assert not compiler.update(after).tables.isolated_ingress
    compare(after, compiler.update(after).tables)


@pytest.mark.parametrize("tier", Tier)
def test_a_broken_policy_closes_its_subjects(tier: Tier) -> None:
    everybody = (Rule(None, None),)
    broken = Policy("p", tier, labelled(app="db"), everybody, everybody, error="unknown field")
    world = World((broken,), {}, (workload(1, app="db"), workload(2)))
    tables = compile_tables(world).tables
    assert tables.isolated_ingress == tables.isolated_egress == {1}
    assert tables == Tables(tables.identities, frozenset({1}), frozenset({1}))
    compare(world, tables)


@pytest.mark.parametrize("direction", Direction)
def test_a_workload_that_gets_other_labels_is_another_peer(direction: Direction) -> None:
    """The class of the workload has no policy, and keeps its number."""
    rules = (Rule((labelled(app="x"),), None),)
    policy = Policy("p", Tier.NAMESPACE, labelled(app="db"), rules, rules, frozenset({direction}))
    compiler = Compiler()
    for value in "xyx":
        world = World((policy,), {}, (workload(1, app="db"), workload(2, app=value)))
        tables = compiler.update(world).tables
        ends = (2, 1) if direction is Direction.INGRESS else (1, 2)
        assert tables.pairs == ({ends} if value == "x" else frozenset())


def test_classes_of_different_ip_versions_have_no_pairs() -> None:
    """As far as networks tell their addresses apart."""
    both = (IPv4Address("10.0.0.1"), IPv6Address("fd00::1"))
    everywhere = (Networks((ip_network("0.0.0.0/0"),)), Networks((ip_network("::/0"),)))
    policy = isolating("p", labelled(app="x"), Rule(everywhere, None))
    world = World((policy,), {}, (replace(workload(1, app="x"), ips=both), workload(2)))
    tables = compile_tables(world).tables
    four, six, client = (tables.identities[ip] for ip in (*both, IPv4Address("10.0.0.2")))
    assert tables.pairs == {(four, four), (six, six), (client, four)}
    versions = {(one.identity, one.first_ip.version) for one in tables.world_ingress}
    assert versions == {(four, 4), (six, 6)}


def test_a_denied_port_denies_protocols_without_ports() -> None:
    """The tables cannot say "all but TCP 25", so the rest is denied, too."""
    rule = Rule(None, (Ports(Protocol.TCP, 25, 25),), Action.DENY)
    admin = Policy("admin", Tier.ADMIN, EVERYBODY, egress=(rule,))
    world = World((admin,), {}, (workload(1), workload(2)))
    tables = compile_tables(world).tables
    ends = ip_address("10.0.0.1"), ip_address("10.0.0.2")
    verdict = Evaluator(world).verdict(*ends, None)
    assert not verdict.allowed
    assert "tcp port 25: denied: egress rule 1 of policy admin" in verdict.reason
    assert not passes(tables, *ends, None, 0)
    assert passes(tables, *ends, Protocol.TCP, 26)
    assert passes(tables, *ends, Protocol.SCTP, 25)


def test_a_named_port_is_the_destinations() -> None:
    rule = Rule(None, (NamedPort("http"),))
    servers = tuple(
        replace(workload(i), ports={"http": (Protocol.TCP, 8000 + i)}) for i in range(2)
    )
    world = World((isolating("p", EVERYBODY, rule),), {}, servers)
    tables = compile_tables(world).tables
    assert {(one.destination, one.first) for one in tables.pair_ports} == {(1, 8000), (2, 8001)}
    assert {(one.identity, one.first) for one in tables.world_ingress} == {(1, 8000), (2, 8001)}
