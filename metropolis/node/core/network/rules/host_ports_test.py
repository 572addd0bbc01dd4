# SPDX-License-Identifier: Apache-2.0
"""The table of host ports keeps its elements, whatever is done to its rules."""

import subprocess
from collections.abc import Iterator

import pytest

from metropolis.node import allocs
from metropolis.node.core.network.rules import host_ports
from metropolis.node.core.network.rules.ruleset import RuleSet
from metropolis.node.core.network.rules.settings import Settings
from osbase.nftables import Nftables

TABLE = f"inet {allocs.NFTABLES_WORKLOADS}"
ELEMENT = 'tcp . 80 comment "mine" : 10.0.0.1 . 8080'


def nft(*commands: str) -> str:
    done = subprocess.run(
        ["nft", "; ".join(commands)], check=True, stdout=subprocess.PIPE, text=True
    )
    return done.stdout


def has_element() -> bool:
    return 'comment "mine"' in nft(f"list map {TABLE} any4")


@pytest.fixture
def rules() -> Iterator[RuleSet]:
    made = RuleSet(Settings())
    made.apply()
    nft(f"create element {TABLE} any4 {{ {ELEMENT} }}")
    yield made
    nft("flush ruleset")


def test_an_element_is_no_difference(rules: RuleSet) -> None:
    assert rules.differences() == []


def test_other_rules_come_and_go(rules: RuleSet) -> None:
    rules.update(overlay=True)
    rules.apply(fresh=True)
    RuleSet(Settings(routed_pods=True)).apply()
    assert has_element()


@pytest.mark.parametrize(
    ("command", "difference"),
    [
        (f"add rule {TABLE} output accept", f"inet chain {allocs.NFTABLES_WORKLOADS} output"),
        (f"flush chain {TABLE} host_ports", f"inet chain {allocs.NFTABLES_WORKLOADS} host_ports"),
        (
            f"flush chain {TABLE} output; delete chain {TABLE} output",
            f"inet chain {allocs.NFTABLES_WORKLOADS} output",
        ),
    ],
)
def test_changes_by_others(rules: RuleSet, command: str, difference: str) -> None:
    nft(command)
    found = rules.differences()
    assert any(one.startswith(difference) for one in found)
    rules.apply(fresh=True)
    assert rules.differences() == []
    assert has_element()


@pytest.mark.parametrize(
    "command",
    [
        "flush ruleset",
        f"delete table {TABLE}",
        f"delete table {TABLE}; add table {TABLE}; "
        f"add map {TABLE} any4 {{ type inet_service : ipv4_addr; }}",
    ],
)
def test_what_is_lost_is_made_again(rules: RuleSet, command: str) -> None:
    nft(command)
    assert rules.differences()
    rules.apply(fresh=True)
    assert rules.differences() == []
    assert not has_element()
    nft(f"create element {TABLE} any4 {{ {ELEMENT} }}")


def test_elements_of_others_go_with_a_key_that_is_one(rules: RuleSet) -> None:
    """The kernel judges: the key counts, whatever the data."""
    for data in ("10.0.0.1 . 8080", "10.0.0.2 . 81"):
        with pytest.raises(subprocess.CalledProcessError):
            nft(f"create element {TABLE} any4 {{ tcp . 80 : {data} }}")
    nft(f"create element {TABLE} at4 {{ 192.0.2.7 . tcp . 80 : 10.0.0.2 . 81 }}")


def test_the_table_is_anothers(caplog: pytest.LogCaptureFixture) -> None:
    """The other rules are loaded all the same."""
    rules = RuleSet(Settings())
    with Nftables() as other:
        other.apply(f"table {TABLE} {{ flags owner; }}")
        rules.apply()
        assert f"table inet {allocs.NFTABLES_TABLE}" in nft("list tables")
        assert "no host ports" in caplog.text
        assert rules.differences() == [
            f"table {allocs.NFTABLES_WORKLOADS} was not committed, or not alone"
        ]
    # Its table went with it.
    rules.apply(fresh=True)
    assert rules.differences() == []
    nft("flush ruleset")


def test_text() -> None:
    """One address comes before all, and the exceptions first."""
    lines = [line.strip() for line in host_ports.render().splitlines()]
    four = [line for line in lines if "@at4" in line or "@any4" in line or "return" in line]
    assert four[:4] == [
        "ip daddr 169.254.77.0/24 return",
        "dnat ip to ip daddr . meta l4proto . th dport map @at4",
        "ip daddr 127.0.0.0/8 ip daddr != 127.0.0.1 return",
        "dnat ip to meta l4proto . th dport map @any4",
    ]
