# SPDX-License-Identifier: Apache-2.0
"""Which changes by nft(8) a digest shows, and which not."""

from __future__ import annotations

import queue
import socket
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from osbase.netlink.errors import BatchError
from osbase.netlink.transport import NetlinkSocket
from osbase.nftables import Nftables, digest

LIMIT_S = 20.0
TABLE = """
table inet t {
    counter named { comment "one" ; }
    limit slow { rate 5/second }
    set static { type ipv4_addr ; flags interval ; elements = { 10.0.0.0/8, 192.0.2.1 } }
    set words { type inet_service ; elements = { 1, 2, 3, 4, 5, 6, 7, 8 } }
    set seen { type ipv4_addr ; flags dynamic, timeout ; timeout 1m ; }
    set mine { type ipv4_addr ; flags timeout ; }
    map ports { type inet_service : ipv4_addr ; elements = { 80 : 192.0.2.1 } }
    chain base {
        type filter hook input priority 0 ; policy accept ;
        ip saddr @static counter name named drop
        tcp dport { 22, 80 } counter accept
        meta l4proto udp limit name slow accept
        update @seen { ip saddr limit rate 5/second } accept
        jump other
    }
    chain other { ip saddr 192.0.2.7 drop ; }
    chain spare { }
}
table arp t { chain a { type filter hook input priority 0 ; policy accept ; }; }
"""


@pytest.fixture
def sock() -> Iterator[NetlinkSocket]:
    """Yield a socket; make the tables."""
    with Nftables() as nft, digest.open_socket() as opened:
        nft.apply(TABLE)
        yield opened
        nft.apply("flush ruleset")


def nft(command: str) -> None:
    subprocess.run(["nft", command], check=True)


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("flush ruleset", "inet table t is gone"),
        ("delete table inet t", "inet chain t other is gone"),
        ("delete table arp t", "arp table t is gone"),
        ("add table inet t { flags dormant ; }", "inet table t differs"),
        ("add table ip t", "ip table t was added"),
        ("flush table inet t", "inet chain t base differs"),
        ("flush chain inet t other", "inet chain t other differs"),
        ("flush chain inet t base", "inet chain t base differs"),
        ("delete chain inet t spare", "inet chain t spare is gone"),
        ("add chain inet t new", "inet chain t new was added"),
        ("chain inet t base { policy drop ; }", "inet chain t base differs"),
        ("chain arp t a { policy drop ; }", "arp chain t a differs"),
        ("insert rule inet t base accept", "inet chain t base differs"),
        ("add rule inet t other accept", "inet chain t other differs"),
        ("add rule arp t a drop", "arp chain t a differs"),
        ("delete element inet t static { 192.0.2.1 }", "inet set t static differs"),
        ("add element inet t static { 203.0.113.0/24 }", "inet set t static differs"),
        ("flush set inet t words", "inet set t words differs"),
        ("add element inet t ports { 81 : 192.0.2.1 }", "inet set t ports differs"),
        ("add set inet t more { type mark ; }", "inet set t more was added"),
        ("add counter inet t more", "inet object t more was added"),
    ],
)
def test_what_is_seen(sock: NetlinkSocket, command: str, said: str) -> None:
    before = digest.digest(sock, "t")
    nft(command)
    assert said in digest.differences(before, digest.digest(sock, "t"))


def test_the_order_of_rules_counts(sock: NetlinkSocket) -> None:
    nft("flush chain inet t other; add rule inet t other accept; add rule inet t other drop")
    before = digest.digest(sock, "t")
    nft("flush chain inet t other; add rule inet t other drop; add rule inet t other accept")
    assert digest.differences(before, digest.digest(sock, "t")) == ["inet chain t other differs"]


def test_what_changes_by_itself_is_not_seen(sock: NetlinkSocket) -> None:
    """Packets, which are counted and added to sets; and other commits."""
    before = digest.digest(sock, "t")
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender,
        socket.create_server(("127.0.0.1", 80)) as server,
    ):
        receiver.bind(("127.0.0.1", 0))
        receiver.settimeout(LIMIT_S)
        for _ in range(10):
            sender.sendto(b"", receiver.getsockname())
            receiver.recv(1)
        socket.create_connection(server.getsockname(), LIMIT_S).close()
    listing = subprocess.run(
        ["nft", "list", "table", "inet", "t"], check=True, capture_output=True, text=True
    ).stdout
    assert "127.0.0.1" in listing  # in the set `seen`
    assert "counter packets 0" not in listing.partition("tcp dport")[2].partition("\n")[0]
    nft("add element inet t mine { 192.0.2.9 timeout 30s }")
    nft("reset counters")
    nft("add table inet other { chain d { }; chain c { jump d ; }; }")
    # One more use of our object, and one less.
    nft("add element inet t words { 9 }; delete element inet t words { 9 }")
    assert digest.differences(before, digest.digest(sock, "t")) == []


def test_the_same_again_is_the_same(sock: NetlinkSocket) -> None:
    """The numbers that the kernel gives new objects do not matter."""
    before = digest.digest(sock, "t")
    nft("add table inet t; delete table inet t; delete table arp t; " + TABLE.strip())
    assert digest.differences(before, digest.digest(sock, "t")) == []
    assert digest.digest(sock, "absent") == {}


def test_sets_that_grow_and_move(sock: NetlinkSocket) -> None:
    """More elements than a message holds; the same in another order."""
    numbers = [str(n) for n in range(100, 4000)]
    nft(f"add element inet t words {{ {', '.join(numbers)} }}")
    before = digest.digest(sock, "t")
    nft("flush set inet t words")
    nft(f"add element inet t words {{ {', '.join(reversed(numbers))}, 1, 2, 3, 4, 5, 6, 7, 8 }}")
    assert digest.differences(before, digest.digest(sock, "t")) == []
    nft("delete element inet t words { 3999 }")
    assert digest.differences(before, digest.digest(sock, "t")) == ["inet set t words differs"]


def test_a_commit_is_reported_with_who_made_it(sock: NetlinkSocket) -> None:
    """Each commit is one event; without a change there is no commit."""
    commits: queue.SimpleQueue[tuple[str, int]] = queue.SimpleQueue()
    events = digest.generation_events(
        lambda *who: commits.put(who), lambda: commits.put(("lost", 0))
    )
    events.start()
    number = digest.generation(sock)
    nft("add table inet other { chain c { }; chain d { }; }")
    assert commits.get(timeout=LIMIT_S)[0] == "nft"
    with Nftables() as library:
        library.apply("delete table inet other")
    name = Path("/proc/self/comm").read_text().strip()
    who, process = commits.get(timeout=LIMIT_S)
    assert who == name
    assert process > 0  # in the first process namespace
    nft("list ruleset")
    assert digest.generation(sock) == number + 2
    assert commits.empty()
    events.close()


def test_a_table_that_comes_and_goes(sock: NetlinkSocket) -> None:
    """A table may be removed while it is listed."""
    over = threading.Event()

    def come_and_go() -> None:
        with Nftables() as nft:
            while not over.is_set():
                nft.apply("flush ruleset")
                nft.apply(TABLE)

    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(come_and_go)
        try:
            for _ in range(2000):
                digest.digest(sock, "t")
        finally:
            over.set()
        other.result()


def test_base_chains(sock: NetlinkSocket) -> None:
    nft(
        "add table ip filter { chain FORWARD {"
        " type filter hook forward priority 0; policy drop; }; }"
    )
    found = {
        (c.family, c.table, c.name, c.kind, c.hook, c.accepts) for c in digest.base_chains(sock)
    }
    assert found == {
        ("inet", "t", "base", "filter", 1, True),
        ("arp", "t", "a", "filter", 0, True),
        ("ip", "filter", "FORWARD", "filter", 2, False),
    }


def test_comments_of_elements(sock: NetlinkSocket) -> None:
    """Sets and maps have comments; the result for a missing set is None."""
    assert digest.element_comments(sock, "inet", "t", "ports") == []
    longest = "x" * 128
    for port, comment in ((81, "one two"), (82, longest)):
        nft(f'add element inet t ports {{ {port} comment "{comment}" : 192.0.2.1 }}')
    assert sorted(digest.element_comments(sock, "inet", "t", "ports") or ()) == ["one two", longest]
    nft('add element inet t mine { 192.0.2.9 timeout 1m comment "mine" }')
    assert digest.element_comments(sock, "inet", "t", "mine") == ["mine"]
    assert digest.element_comments(sock, "inet", "t", "absent") is None
    assert digest.element_comments(sock, "ip", "t", "ports") is None


def test_the_comment_of_one_element(sock: NetlinkSocket) -> None:
    nft('add element inet t ports { 81 comment "mine" : 192.0.2.1 }')

    def found(name: str, key: bytes, family: str = "inet") -> str | None:
        return digest.element_comment(sock, family, "t", name, key)

    assert found("ports", b"\0\x51") == "mine"
    assert found("ports", b"\0\x50") == ""
    assert found("ports", b"\0\x52") is None
    assert found("absent", b"\0\x51") is None
    assert found("ports", b"\0\x51", "ip") is None
    with pytest.raises(BatchError, match="EINVAL"):
        found("ports", b"\0\x51\0\0\0\0\0\0")


def test_comments_are_whole_while_others_commit(sock: NetlinkSocket) -> None:
    """Before the kernel's generation was asked for, some lists lacked elements
    that were there all the time. With a size the kernel has a hash table that
    does not grow; one that does is moved some time after a commit.
    """
    nft("add map inet t fixed { type inet_service : ipv4_addr; size 4096; }")
    kept = {f"kept {port}" for port in range(1, 60000, 400)}
    each = ", ".join(f'{text[5:]} comment "{text}" : 192.0.2.1' for text in kept)
    over = threading.Event()

    def come_and_go() -> None:
        with Nftables() as other:
            while not over.is_set():
                for many in (1, 50, 300):
                    ports = range(2, 2 + 400 * (many // 2), 400)
                    some = ", ".join(f"{port} : 192.0.2.2" for port in ports) or "3 : 192.0.2.2"
                    other.apply(f"add element inet t fixed {{ {some} }}")
                    other.apply(f"delete element inet t fixed {{ {some} }}")
                    over.wait(0.003)

    nft(f"add element inet t fixed {{ {each} }}")
    with ThreadPoolExecutor(1) as pool:
        busy = pool.submit(come_and_go)
        try:
            for _ in range(1000):
                found = digest.element_comments(sock, "inet", "t", "fixed")
                assert found is not None
                assert sorted(found) == sorted(kept)
        finally:
            over.set()
        busy.result()


def test_comments_during_commits(sock: NetlinkSocket, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is one during each list; all are in one of them."""
    nft("add map inet t fixed { type inet_service : ipv4_addr; size 4096; }")
    nft('add element inet t fixed { 80 comment "kept" : 192.0.2.1, 82 : 192.0.2.2 }')
    ask = digest.generation
    commits = iter(['add element inet t fixed { 81 comment "new" : 192.0.2.1 }'])

    def generation(sock: NetlinkSocket) -> int:
        nft(next(commits, "add chain inet t another; delete chain inet t another"))
        return ask(sock)

    monkeypatch.setattr(digest, "generation", generation)
    found = digest.element_comments(sock, "inet", "t", "fixed")
    assert sorted(found or ()) == ["kept", "new"]
