# SPDX-License-Identifier: Apache-2.0
"""What is read is what was loaded, whatever came before."""

from __future__ import annotations

import random
import subprocess
from collections.abc import Iterator
from dataclasses import fields, replace
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metropolis.node import allocs
from metropolis.node.core.network.policy import kernel as policy_kernel
from metropolis.node.core.network.policy.kernel import PolicyKernel, PolicyKernelError
from metropolis.node.core.network.policy.model import Protocol
from metropolis.node.core.network.policy.tables import PairPorts, Tables, WorldRange
from metropolis.node.core.network.rules import host_ports
from osbase.nftables import Nftables
from osbase.nftables.listing import Listed

TABLE: Final = f"inet {allocs.NFTABLES_WORKLOADS}"
PROTOCOLS: Final = list(Protocol)


@pytest.fixture
def nft() -> Iterator[Nftables]:
    with Nftables() as made:
        made.apply(host_ports.render_whole())
        yield made
        made.apply("flush ruleset")


def tables(seed: int, size: int = 30) -> Tables:
    """Make random tables, without overlaps."""
    rng = random.Random(seed)

    def identity() -> int:
        return rng.choice([1, 2, 3, 255, 256, 65534, 65535, rng.randint(1, 65535)])

    def span(most: int) -> tuple[int, int]:
        first = rng.randint(0, most)
        return rng.choice([(0, most), (first, first), (first, rng.randint(first, most))])

    def world() -> frozenset[WorldRange]:
        found: dict[Any, WorldRange] = {}
        for _ in range(size):
            wide = rng.random() < 0.5
            a, b = span((1 << 128 if wide else 1 << 32) - 1)
            kind = IPv6Address if wide else IPv4Address
            protocol = rng.choice([None, *PROTOCOLS])
            ports = (0, 65535) if protocol is None else span(65535)
            one = WorldRange(identity(), kind(a), kind(b), protocol, *ports)
            found[one.identity, wide, protocol] = one
        return frozenset(found.values())

    ports = {}
    for _ in range(size):
        one = PairPorts(identity(), identity(), rng.choice(PROTOCOLS), *span(65535))
        ports[one.source, one.destination, one.protocol] = one
    addresses: list[Any] = [IPv4Address(rng.randint(1, 60)) for _ in range(size)]
    addresses += [IPv6Address(rng.randint(1, 60)) for _ in range(size)]
    return Tables(
        {ip: identity() for ip in addresses},
        frozenset(identity() for _ in range(size)),
        frozenset(identity() for _ in range(size)),
        frozenset((identity(), identity()) for _ in range(size)),
        frozenset(ports.values()),
        world(),
        world(),
    )


def difference(before: Tables, after: Tables) -> tuple[Tables, Tables]:
    """Return what is removed and added."""
    gone: dict[str, Any] = {}
    new: dict[str, Any] = {}
    for field in fields(Tables):
        a, b = getattr(before, field.name), getattr(after, field.name)
        if field.name == "identities":
            gone[field.name] = dict(a.items() - b.items())
            new[field.name] = dict(b.items() - a.items())
        else:
            gone[field.name], new[field.name] = a - b, b - a
    return Tables(**gone), Tables(**new)


def test_from_one_to_the_next(nft: Nftables) -> None:
    kernel = PolicyKernel()
    assert kernel.read() == Tables()
    assert not kernel.policed()
    before = Tables()
    for seed in range(40):
        after = tables(seed)
        kernel.apply(*difference(before, after), policed=seed % 3 != 0)
        assert kernel.read() == after
        assert kernel.policed() is (seed % 3 != 0)
        # Again, as if its end had not been known.
        kernel.apply(*difference(before, after), policed=seed % 3 != 0)
        assert kernel.read() == after
        before = after
    kernel.replace(tables(99), policed=True)
    assert kernel.read() == tables(99)
    kernel.replace(Tables(), policed=False)
    for name in policy_kernel.SETS:
        listed = nft_list(nft, name)
        assert "elements" not in listed, name


def nft_list(nft: Nftables, name: str) -> str:
    kind = "map" if name.startswith("identities") else "set"
    command = ["nft", "list", kind, *TABLE.split(), name]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_an_address_gets_another_identity(nft: Nftables) -> None:
    """Also one that another program added; then nothing has to be removed."""
    kernel = PolicyKernel()
    kernel.apply(Tables(), Tables({ip_address("10.0.0.1"): 5}), policed=True)
    kernel.apply(Tables(), Tables({ip_address("10.0.0.1"): 6}), policed=True)
    assert kernel.read().identities == {ip_address("10.0.0.1"): 6}


def test_isolation_of_one_direction_stays(nft: Nftables) -> None:
    """When that of the other is removed, for all that is looked up."""
    kernel = PolicyKernel()
    one = frozenset({5})
    kernel.apply(Tables(), Tables(isolated_egress=one, isolated_ingress=one), policed=True)
    kernel.apply(Tables(isolated_egress=one), Tables(), policed=True)
    assert "0x00000005" in nft_list(nft, "isolated")
    assert "0x00050000" in nft_list(nft, "isolated_back")


def test_rows_outlive_their_identity(nft: Nftables) -> None:
    """They are removed after its last address: until then it is isolated."""
    kernel = PolicyKernel()
    before, after = tables(1), tables(2)
    gone, new = difference(before, after)
    present = set(after.identities.values())
    now, later = policy_kernel.retire(gone, present)
    assert now.identities == gone.identities
    assert not later.identities
    assert now.isolated_egress == gone.isolated_egress & present
    assert not later.isolated_egress & present
    for name in ("isolated_ingress", "pairs", "pair_ports", "world_egress", "world_ingress"):
        parts = getattr(now, name), getattr(later, name)
        assert parts[0] | parts[1] == getattr(gone, name)
        assert not parts[0] & parts[1]
    assert all(a in present and b in present for a, b in now.pairs)
    assert not any(a in present and b in present for a, b in later.pairs)
    assert all(one.identity not in present for one in later.world_egress)
    kernel.replace(before, policed=True)
    kernel.apply(gone, new, policed=True, present=present)
    assert kernel.read() == after


def test_a_full_set(nft: Nftables) -> None:
    """All is refused, and the error says which set is full."""
    kernel = PolicyKernel()
    kernel.apply(Tables(), tables(1), policed=True)
    many = frozenset(PairPorts(source, 1, Protocol.TCP, 5, 6) for source in range(1, 20_000))
    with pytest.raises(PolicyKernelError, match=r"pair_ranges.*the set is full") as caught:
        kernel.apply(tables(1), replace(tables(2), pair_ports=many), policed=False)
    assert caught.value.full
    assert kernel.read() == tables(1)
    assert kernel.policed()


def test_without_a_table() -> None:
    kernel = PolicyKernel()
    with pytest.raises(PolicyKernelError, match="there is no set"):
        kernel.read()
    with pytest.raises(PolicyKernelError, match=r"load policies.*ENOENT"):
        kernel.apply(Tables(), tables(1), policed=True)


@pytest.mark.parametrize(
    "element",
    [
        "pairs { 0x5 }",
        "pairs { 0x50000 }",
        "isolated { 0x50005 }",
        "pair_protocols { 0x50005 . gre }",
        "pair_ranges { 0x50005-0x50006 . tcp . 1-2 }",
        "pair_ranges { 0x50005 . 6-17 . 1-2 }",
        "world4 { 0x50000-0x60000 . 10.0.0.1 }",
        "world_ports4 { 0x50000 . 10.0.0.1 . 6-17 . 1 }",
        "identities4 { 10.0.0.1 : 1:5 }",
    ],
)
def test_elements_that_no_tables_have(nft: Nftables, element: str) -> None:
    """Another program's; they are replaced."""
    kernel = PolicyKernel()
    nft.apply(f"add element {TABLE} {element}")
    with pytest.raises(PolicyKernelError, match="read policies: element"):
        kernel.read()
    kernel.replace(tables(3), policed=True)
    assert kernel.read() == tables(3)


def test_as_many_as_there_may_be(nft: Nftables) -> None:
    """10,000 addresses and 50,000 pairs, at once and all changed."""
    kernel = PolicyKernel()

    def large(shift: int) -> Tables:
        return Tables(
            {IPv4Address(0x0A000000 + n): 1 + (n + shift) % 1000 for n in range(10_000)},
            frozenset(range(1, 1000)),
            pairs=frozenset((1 + n % 1000, 1 + shift + n // 1000) for n in range(50_000)),
        )

    kernel.apply(Tables(), large(0), policed=True)
    kernel.apply(*difference(large(0), large(100)), policed=True)
    assert kernel.read() == large(100)


BYTES: Final = st.binary(max_size=32)


@given(
    st.dictionaries(
        st.sampled_from(policy_kernel.SETS),
        st.lists(st.builds(Listed, BYTES.filter(bool), BYTES, BYTES), max_size=3),
    )
)
def test_garbage(found: dict[str, list[Listed]]) -> None:
    try:
        policy_kernel.decode_tables(found)
    except PolicyKernelError as error:
        assert str(error).startswith("read policies: ")
