# SPDX-License-Identifier: Apache-2.0
"""The pool against a model of it, and at size."""

import random
import time
import tracemalloc
from collections import deque
from collections.abc import Iterator
from ipaddress import IPv4Address, ip_address, ip_network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from metropolis.node.core.network.workloads.engine import pool as pools
from metropolis.node.core.network.workloads.engine.pool import AddressPool, usable_range
from metropolis.node.core.network.workloads.errors import (
    AlreadyExists,
    Exhausted,
    InvalidArgument,
)
from metropolis.node.core.network.workloads.model import IPAddress, IPNetwork


def pool_of(*prefixes: str, reserved: tuple[str, ...] = ()) -> AddressPool:
    pool = AddressPool()
    pool.set_prefixes(
        [ip_network(prefix) for prefix in prefixes], [ip_address(ip) for ip in reserved]
    )
    return pool


def drain(pool: AddressPool, version: int) -> Iterator[IPAddress]:
    while True:
        try:
            yield pool.take(version, "w")
        except Exhausted:
            return


@pytest.mark.parametrize("prefix", ["10.0.0.0/29", "10.0.0.0/30", "10.0.0.0/24", "10.0.0.128/25"])
def test_ipv4_without_network_and_broadcast(prefix: str) -> None:
    assert list(drain(pool_of(prefix), 4)) == list(ip_network(prefix).hosts())


@pytest.mark.parametrize("prefix", ["fd00::/126", "fd00::1:0/120"])
def test_ipv6_without_the_anycast_address(prefix: str) -> None:
    assert list(drain(pool_of(prefix), 6)) == list(ip_network(prefix))[1:]


@pytest.mark.parametrize("prefix", ["10.0.0.6/31", "10.0.0.7/32", "fd00::8/127", "fd00::7/128"])
def test_prefixes_of_one_and_two_are_used_whole(prefix: str) -> None:
    network = ip_network(prefix)
    assert list(drain(pool_of(prefix), network.version)) == list(network)


def test_reuse_is_as_late_as_possible() -> None:
    pool = pool_of("10.0.0.0/29")
    first, second = pool.take(4, "a"), pool.take(4, "b")
    pool.release(second)
    pool.release(first)
    rest = [pool.take(4, "c") for _ in range(4)]
    assert not {first, second} & set(rest)
    assert [pool.take(4, "d"), pool.take(4, "d")] == [second, first]  # longest free first


def test_an_address_freed_before_the_cursor_comes_waits_its_turn() -> None:
    pool = pool_of("10.0.0.0/29")
    early = ip_address("10.0.0.2")
    pool.take_requested(early, "a")
    pool.release(early)
    assert list(drain(pool, 4))[-1] == early


def test_a_new_pool_goes_on_behind_what_is_in_use() -> None:
    pool = AddressPool()
    for text in ("10.0.0.2", "10.0.0.4"):
        pool.adopt(ip_address(text), "old")
    pool.set_prefixes([ip_network("10.0.0.0/29")])
    assert [str(ip) for ip in drain(pool, 4)] == ["10.0.0.5", "10.0.0.6", "10.0.0.1", "10.0.0.3"]


def test_a_new_pool_goes_where_the_most_is_free() -> None:
    """Not behind the highest address, which may have been a requested one."""
    pool = AddressPool()
    for text in ("fd00::1", "fd00::2", "fd00::ffff:ffff:ffff:ffff"):
        pool.adopt(ip_address(text), "old")
    pool.set_prefixes([ip_network("fd00::/64")])
    assert str(pool.take(6, "w")) == "fd00::3"


def test_exhaustion_names_prefix_and_size() -> None:
    pool = pool_of("10.0.0.0/30", "10.9.0.0/31", reserved=("10.0.0.1",))
    assert len(list(drain(pool, 4))) == 3
    with pytest.raises(Exhausted) as caught:
        pool.take(4, "w")
    assert str(caught.value) == (
        "no free IPv4 address left in 10.0.0.0/30 (2 usable, 1 in use, 1 reserved), "
        "10.9.0.0/31 (2 usable, 2 in use, 0 reserved)"
    )


def test_requested_addresses() -> None:
    pool = pool_of("10.0.0.0/29", "fd00::/120", reserved=("10.0.0.1",))
    pool.take_requested(ip_address("10.0.0.3"), "a")
    for text, error, why in [
        ("10.0.0.3", AlreadyExists, "in use by a"),
        ("10.0.0.1", InvalidArgument, "is reserved"),
        ("10.0.0.0", InvalidArgument, r"not a usable address of this node: 10.0.0.0/29"),
        ("10.0.0.7", InvalidArgument, "not a usable address"),
        ("10.0.0.8", InvalidArgument, "not a usable address"),
        ("fd00::", InvalidArgument, "not a usable address"),
    ]:
        with pytest.raises(error, match=f"requested_ip {text}: {why}"):
            pool.take_requested(ip_address(text), "b")
    with pytest.raises(InvalidArgument, match="there is no IPv6 prefix"):
        pool_of("10.0.0.0/29").take_requested(ip_address("fd00::1"), "b")


def test_prefixes_change_under_attachments() -> None:
    pool = pool_of("10.0.0.0/30")
    kept, freed = pool.take(4, "a"), pool.take(4, "b")
    pool.release(freed)
    pool.set_prefixes([ip_network("10.1.0.0/30")])
    assert [str(ip) for ip in drain(pool, 4)] == ["10.1.0.1", "10.1.0.2"]
    pool.release(kept)  # belongs to no prefix now
    assert not list(drain(pool, 4))
    pool.set_prefixes([])
    assert pool.versions == ()


def test_reserving_and_releasing_reservations() -> None:
    pool = pool_of("10.0.0.0/29", reserved=("10.0.0.2",))
    assert ip_address("10.0.0.2") not in list(drain(pool, 4))
    pool.release(ip_address("10.0.0.3"))
    pool.set_prefixes([ip_network("10.0.0.0/29")], [ip_address("10.0.0.3")])
    assert [str(ip) for ip in drain(pool, 4)] == ["10.0.0.2"]


def test_a_draining_prefix_hands_out_nothing_and_remembers() -> None:
    old, new = ip_network("10.0.0.0/29"), ip_network("10.1.0.0/30")
    pool = pool_of(str(old))
    first, second, third = (pool.take(4, "a") for _ in range(3))
    pool.release(second)
    pool.set_prefixes([new], draining=[old])
    assert list(drain(pool, 4)) == list(new.hosts())
    pool.release(first)
    assert not list(drain(pool, 4))
    assert (pool.in_use(old), pool.in_use(new), pool.in_use(ip_network("10.0.0.0/8"))) == (1, 2, 3)
    with pytest.raises(InvalidArgument, match=f"its prefix {old} is draining"):
        pool.take_requested(first, "b")
    with pytest.raises(Exhausted, match="6 usable, 1 in use, 0 reserved, draining"):
        pool.take(4, "b")
    pool.set_prefixes([old])  # it returns, and what was freed lately is last
    assert list(drain(pool, 4))[-2:] == [second, first]
    pool.release(third)
    pool.set_prefixes([], draining=[old])
    assert pool.versions == ()


def test_draining_prefixes_may_not_overlap_others() -> None:
    with pytest.raises(InvalidArgument, match="overlap"):
        AddressPool().set_prefixes([ip_network("10.0.0.0/8")], draining=[ip_network("10.1.0.0/16")])


def test_overlapping_prefixes_are_refused_and_nothing_changes() -> None:
    pool = pool_of("10.0.0.0/30")
    with pytest.raises(InvalidArgument, match=r"10.1.0.0/24 and 10.1.0.64/26 overlap"):
        pool.set_prefixes([ip_network("10.1.0.64/26"), ip_network("10.1.0.0/24")])
    assert str(pool.take(4, "w")) == "10.0.0.1"


def test_a_million_addresses_cost_what_ten_do() -> None:
    """Bounds are wide, a linear pool misses them by orders of magnitude."""
    started = time.process_time()
    pool = pool_of("10.0.0.0/8", "fd00::/64")
    assert time.process_time() - started < 0.1
    taken = [pool.take(4, "w") for _ in range(100_000)]
    for ip in taken[:50_000]:
        pool.release(ip)
    started = time.process_time()
    for _ in range(1000):
        pool.release(pool.take(4, "w"))
    assert time.process_time() - started < 0.5


# ---- Memory -----------------------------------------------------------------


SMALL, LARGE = "10.0.0.0/24", "10.0.0.0/16"


@pytest.mark.parametrize("prefix", [SMALL, LARGE, "fd00::/112", "fd00::/64"])
def test_memory_does_not_grow_with_what_was_used(prefix: str) -> None:
    pool, version = pool_of(prefix), ip_network(prefix).version
    held = deque(pool.take(version, "w") for _ in range(100))

    def churn(times: int) -> int:
        for _ in range(times):
            pool.release(held.popleft())
            held.append(pool.take(version, "w"))
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        before = churn(2 * pools.REMEMBERED)
        assert before < 1 << 20
        assert churn(6_000) - before < 100_000
    finally:
        tracemalloc.stop()


def test_nor_with_what_was_asked_for() -> None:
    """At random, and in prefixes that come, drain and go."""
    old, new = ip_network("fd00::/64"), ip_network("fd01::/64")
    pool = pool_of(str(old))

    def churn(seed: int) -> int:
        for number in range(5_000):
            ip = old[(seed + number) * 0x9E3779B97F4A7C15 % (1 << 64) or 1]
            pool.take_requested(ip, "w")
            pool.release(ip)
        taken = [pool.take(6, "w") for _ in range(5_000)]
        pool.set_prefixes([new], draining=[old])
        for ip in taken:
            pool.release(ip)
        pool.set_prefixes([old], draining=[new])
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        before = churn(0)
        assert churn(1_000_000) - before < 200_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(("prefix", "in_use"), [("10.0.0.0/18", 0), (LARGE, 57_000)])
def test_a_large_prefix_is_used_whole_before_anything_of_it_is_used_again(
    prefix: str, in_use: int
) -> None:
    """Short lives: each address once a lap. `in_use` stay, in a row: while the
    cursor passes them, addresses remembered for long are handed out.
    """
    pool = pool_of(prefix)
    stay = {pool.take(4, "w") for _ in range(in_use)}
    lap = (1 << 32 - ip_network(prefix).prefixlen) - 2 - in_use
    freed_at: dict[IPAddress, int] = {}
    early = 0
    for now in range(5 * lap // 2):
        ip = pool.take(4, "w")
        assert ip not in stay
        waited = now - freed_at.get(ip, -lap)
        assert waited >= pools.REMEMBERED // 2
        # Between two laps the remembered addresses are left for the next.
        early += waited < lap - pools.REMEMBERED
        freed_at[ip] = now
        pool.release(ip)
    assert early <= 2 * (in_use // pools._STEPS)


@pytest.mark.parametrize("free", [1, 3000, 6000])
def test_reuse_in_a_large_prefix_that_is_nearly_full(free: int) -> None:
    """Whatever the order of removals, half of REMEMBERED others come before."""
    pool = pool_of("10.0.0.0/18")
    used = list(drain(pool, 4))
    assert len(used) == 16382
    rng = random.Random(free)
    rng.shuffle(used)
    freed_at: dict[IPAddress, int] = {}
    started = time.process_time()
    for now in range(12_000):
        if now >= free:
            ip = pool.take(4, "w")
            assert now - freed_at.pop(ip) >= min(free, pools.REMEMBERED // 2)
            used.append(ip)
        # Long and short lives.
        gone = used.pop(rng.randrange(len(used) - 1, len(used)) if now % 2 else 0)
        pool.release(gone)
        freed_at[gone] = now
    # Walking over all used ones for each would take a hundred times longer.
    assert time.process_time() - started < 30


@given(st.integers(0, 2**32 - 1), st.integers(20, 32))
def test_usable_ranges_are_in_the_prefix(number: int, bits: int) -> None:
    prefix = ip_network((number >> (32 - bits) << (32 - bits), bits))
    first, last = usable_range(prefix)
    assert first <= last
    assert IPv4Address(first) in prefix
    assert IPv4Address(last) in prefix


PREFIXES: list[IPNetwork] = [
    ip_network(text) for text in ("10.0.0.0/29", "10.0.1.0/30", "10.0.2.0/31", "10.0.3.0/32")
]
ADDRESSES = [ip for prefix in PREFIXES for ip in prefix]


class PoolMachine(RuleBasedStateMachine):
    """The pool against a plain model: sets, and the order of freeing."""

    remembered = pools.REMEMBERED

    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(pools, "REMEMBERED", self.remembered)
        self.pool = AddressPool()
        self.used: set[IPAddress] = set()
        self.freed_at: dict[IPAddress, int] = {}
        self.clock = 0
        self.prefixes: list[IPNetwork] = []
        self.draining: set[IPNetwork] = set()
        # Ever reserved: whether the cursor has passed it is not modelled.
        self.unordered: set[IPAddress] = set()
        self.reserved: set[IPAddress] = set()

    def usable(self) -> set[IPAddress]:
        found: set[IPAddress] = set()
        for prefix in set(self.prefixes) - self.draining:
            found |= set(prefix.hosts())
        return found - self.reserved

    @rule(
        prefixes=st.lists(st.sampled_from(PREFIXES), unique=True),
        reserved=st.sets(st.sampled_from(ADDRESSES), max_size=3),
        draining=st.sets(st.sampled_from(PREFIXES), max_size=2),
    )
    def set_prefixes(
        self, prefixes: list[IPNetwork], reserved: set[IPAddress], draining: set[IPNetwork]
    ) -> None:
        self.pool.set_prefixes(prefixes, reserved, draining)
        kept = set(self.prefixes) | self.draining
        self.unordered |= reserved
        self.clock += len(self.reserved - reserved)  # they are freed now
        # Former frees are only known for prefixes that stayed.
        self.prefixes, self.reserved, self.draining = prefixes, reserved, draining
        stayed = kept & (set(prefixes) | draining)
        self.freed_at = {
            ip: when
            for ip, when in self.freed_at.items()
            if ip not in reserved and any(ip in prefix for prefix in stayed)
        }

    @rule()
    def take(self) -> None:
        free = self.usable() - self.used
        try:
            taken = self.pool.take(4, "w")
        except Exhausted:
            assert not free
            return
        assert taken in free
        ordered = free - self.unordered
        lately = self.clock - self.freed_at.get(taken, 0) < self.remembered
        if lately and taken in self.freed_at and taken in ordered:
            assert ordered <= self.freed_at.keys()
            assert self.freed_at[taken] == min(self.freed_at[ip] for ip in ordered)
        self.used.add(taken)
        self.freed_at.pop(taken, None)

    @rule(ip=st.sampled_from(ADDRESSES))
    def take_requested(self, ip: IPAddress) -> None:
        free = ip in self.usable() - self.used
        try:
            self.pool.take_requested(ip, "w")
        except InvalidArgument, AlreadyExists:
            assert not free
            return
        assert free
        self.used.add(ip)
        self.freed_at.pop(ip, None)

    @rule(ip=st.sampled_from(ADDRESSES))
    def adopt(self, ip: IPAddress) -> None:
        self.pool.adopt(ip, "w")
        self.used.add(ip)
        self.freed_at.pop(ip, None)

    @precondition(lambda self: self.used)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        ip = data.draw(st.sampled_from(sorted(self.used, key=int)))
        self.pool.release(ip)
        self.used.remove(ip)
        self.clock += 1
        self.freed_at[ip] = self.clock

    @invariant()
    def versions_are_those_of_the_prefixes(self) -> None:
        assert self.pool.versions == ((4,) if set(self.prefixes) - self.draining else ())

    @invariant()
    def uses_are_counted(self) -> None:
        for prefix in PREFIXES:
            assert self.pool.in_use(prefix) == sum(ip in prefix for ip in self.used)

    def teardown(self) -> None:
        self.patch.undo()


class ForgetfulPoolMachine(PoolMachine):
    """Addresses freed long ago may come again at any time after the rest."""

    remembered = 3


TestPoolMachine = PoolMachine.TestCase
TestForgetfulPoolMachine = ForgetfulPoolMachine.TestCase
TestPoolMachine.settings = settings(max_examples=30, stateful_step_count=40, deadline=None)
TestForgetfulPoolMachine.settings = TestPoolMachine.settings
