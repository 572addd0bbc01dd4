# SPDX-License-Identifier: Apache-2.0
"""Atomic rule sets, in the kernel of a fresh network namespace.

nft(8), an independent program, lists the result.
"""

from __future__ import annotations

import os
import resource
import subprocess
import threading
from collections.abc import Iterator

import pytest

from osbase.nftables import Nftables, NftablesError


@pytest.fixture
def nft() -> Iterator[Nftables]:
    """Yield a context; remove all tables afterwards."""
    with Nftables() as context:
        yield context
        context.apply("flush ruleset")


def ruleset() -> str:
    """Return the rule set as nft lists it."""
    return subprocess.run(
        ["nft", "list", "ruleset"], check=True, capture_output=True, text=True
    ).stdout


def test_apply_programs(nft: Nftables) -> None:
    """A whole table in one text."""
    nft.apply("table inet t { chain c { ip saddr 192.0.2.1 drop; }; }")
    assert "ip saddr 192.0.2.1 drop" in ruleset()


def test_apply_is_all_or_nothing(nft: Nftables) -> None:
    """The kernel refuses the last command: the first is undone."""
    with pytest.raises(NftablesError, match="No such file or directory"):
        nft.apply("add table inet t\nadd rule inet absent c drop")
    assert ruleset() == ""


def test_replacing_is_atomic(nft: Nftables) -> None:
    """The idiom of declaring, deleting and declaring again, repeated."""
    for address in ("192.0.2.1", "192.0.2.2"):
        nft.apply(f"""
            table inet t
            delete table inet t
            table inet t {{ chain c {{ ip saddr {address} drop; }}; }}
        """)
    assert "192.0.2.1" not in ruleset()
    assert "192.0.2.2" in ruleset()


def test_check_changes_nothing(nft: Nftables) -> None:
    """It finds syntax errors."""
    nft.check("table inet t { chain c { drop; }; }")
    assert ruleset() == ""
    with pytest.raises(NftablesError, match="syntax error"):
        nft.check("table inet t {\n  chain c {\n    dorp\n  }\n}")
    nft.apply("add table inet t")  # the dry run does not stick
    assert "table inet t" in ruleset()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("add table inet t\0; drop", "NUL"),
        ("\x01\x02", "syntax error"),
        ("table inet t { chain c { ip saddr host.invalid drop; }; }", "host.invalid"),
        ("add table inet " + "x" * 10_000, "."),
        ("{" * 10_000, "."),
        ("\N{SNOWMAN}", "syntax error"),
    ],
)
def test_garbage_is_an_error_and_leaves_the_context_usable(
    nft: Nftables, text: str, reason: str
) -> None:
    """Any invalid text raises NftablesError; no name is resolved."""
    with pytest.raises(NftablesError, match=reason):
        nft.apply(text)
    assert ruleset() == ""
    nft.apply("add table inet t")


def test_threads_wait_for_each_other(nft: Nftables) -> None:
    """Four threads, a hundred elements each, through one context."""
    nft.apply("table inet t { set s { type inet_service; }; }")

    def add(first: int) -> None:
        for number in range(first, first + 100):
            nft.apply(f"add element inet t s {{ {number} }}")

    threads = [threading.Thread(target=add, args=(1000 * n,)) for n in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    text = ruleset()
    assert all(str(n) in text for first in range(1, 5) for n in (1000 * first, 1000 * first + 99))


def test_closed_context_says_so() -> None:
    """Closing twice is fine; using it is not."""
    context = Nftables()
    context.close()
    context.close()
    with pytest.raises(NftablesError, match="closed"):
        context.apply("add table inet t")


def test_without_file_descriptors_there_is_an_error(nft: Nftables) -> None:
    """libnftables itself would end the process, with status 3."""
    if (pid := os.fork()) == 0:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (0, 0))
            with pytest.raises(NftablesError, match="open a socket"):
                Nftables()
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
