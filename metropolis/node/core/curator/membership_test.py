# SPDX-License-Identifier: Apache-2.0
"""What a node decides, without a store: each standing, and the search."""

from ipaddress import IPv4Address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metropolis.node.core.curator import keys, records
from metropolis.node.core.curator.directory import Claim, ClaimState, Directory, Entry
from metropolis.node.core.curator.membership import (
    Exhausted,
    Me,
    Standing,
    choose,
    decide,
)
from metropolis.node.core.curator.records import ClusterConfig, Member, PodNetwork, Record
from metropolis.node.core.network.overlay.mesh import Identity

NETWORK = PodNetwork(ip_network("10.200.0.0/24"), 26)
CONFIG = ClusterConfig((NETWORK,))
POD = [NETWORK.nth(index) for index in range(4)]
KEY = b"k" * 32
ME = Me("me", "1", Identity(KEY), IPv4Address("192.0.2.1"))


def directory(**values: bytes) -> Directory:
    """A cluster. Names: claim_0, member, node; at revisions from 2 on."""
    found = Directory("me")
    entries = [Entry(keys.CLUSTER, records.encode_cluster(CONFIG), 1)]
    for revision, (name, value) in enumerate(values.items(), 2):
        if name.startswith("claim_"):
            key = keys.claim(POD[int(name[-1])])
        else:
            key = keys.member("me") if name == "member" else keys.node("me")
        entries.append(Entry(key, value, revision, 7 if name == "node" else 0))
    found.replace(entries)
    return found


def claimed(node_id: str) -> bytes:
    return records.encode_claim(node_id)


def written(key: bytes = KEY) -> bytes:
    return records.encode_record(
        Record("me", key, None, 0, IPv4Address("192.0.2.1"), 51820, (POD[2],), "1")
    )


MEMBER = records.encode_member(Member(False, 3, (POD[2],)))


def test_without_a_cluster_nothing_changes() -> None:
    decision = decide(Directory("me"), Me("me", using=(POD[0],)))
    assert (decision.standing, decision.own) == (Standing.NO_CLUSTER, (POD[0],))
    assert decision.commit is None


def test_a_claim_compares_all_that_it_rests_on() -> None:
    decision = decide(directory(claim_0=claimed("a")), ME)
    assert decision.standing is Standing.CLAIMING
    assert decision.own == ()
    commit = decision.commit
    assert commit is not None
    (chosen,) = [prefix for prefix in POD if keys.claim(prefix) in commit.compare]
    assert chosen != POD[0]
    assert commit.compare == {keys.CLUSTER: 1, keys.member("me"): 0, keys.claim(chosen): 0}
    member = records.encode_member(Member(False, 0, (chosen,)))
    assert [(put.key, put.value) for put in commit.puts] == [
        (keys.claim(chosen), claimed("me")),
        (keys.member("me"), member),
    ]


def test_what_is_held_is_claimed_first_when_it_is_free() -> None:
    for claims, free in (({}, True), ({"claim_1": claimed("")}, True)):
        decision = decide(directory(**claims), Me("me", identity=Identity(KEY), using=(POD[1],)))
        assert (decision.standing, decision.own) == (Standing.CLAIMING, (POD[1],))
        assert free
        assert decision.commit is not None
        assert keys.claim(POD[1]) in decision.commit.compare
    decision = decide(
        directory(claim_1=claimed("a")), Me("me", identity=Identity(KEY), using=(POD[1],))
    )
    assert decision.own == ()
    assert decision.commit is not None
    assert keys.claim(POD[1]) not in decision.commit.compare


def test_membership_is_written_again_when_it_is_gone() -> None:
    decision = decide(directory(claim_2=claimed("me")), ME)
    assert (decision.standing, decision.own) == (Standing.CLAIMING, (POD[2],))
    assert decision.commit is not None
    assert decision.commit.compare[keys.claim(POD[2])] == 2


def test_a_record_is_published_under_the_lease() -> None:
    known = directory(claim_2=claimed("me"), member=MEMBER)
    decision = decide(known, Me("me", "1", Identity(KEY), IPv4Address("192.0.2.1"), lease=7))
    assert (decision.standing, decision.record) == (Standing.PUBLISHING, True)
    assert decision.commit is not None
    assert decision.commit.compare == {
        keys.node("me"): 0, keys.member("me"): 3, keys.claim(POD[2]): 2,
    }  # fmt: skip
    assert decision.commit.puts[0].lease == 7
    assert decision.commit.values == {keys.claim(POD[2]): claimed("me")}
    known = directory(claim_2=claimed("me"), member=MEMBER, node=written())
    me = Me("me", "1", Identity(KEY), IPv4Address("192.0.2.1"), lease=7)
    assert decide(known, me).standing is Standing.JOINED
    # Another lease of ours, from before a restart.
    me = Me("me", "1", Identity(KEY), IPv4Address("192.0.2.1"), lease=8)
    assert decide(known, me).standing is Standing.PUBLISHING


def test_two_machines_of_one_name() -> None:
    known = directory(claim_2=claimed("me"), member=MEMBER, node=written(b"o" * 32))
    decision = decide(known, ME)
    assert (decision.standing, decision.own) == (Standing.DUPLICATE, ())
    # Until that is known, only what workloads already have is used.
    decision = decide(known, Me("me"))
    assert (decision.standing, decision.own) == (Standing.NO_KEY, ())
    known = directory(claim_2=claimed("me"), member=MEMBER, node=written())
    for published, standing in ((0, Standing.PUBLISHING), (3, Standing.DUPLICATE)):
        me = Me("me", "1", Identity(KEY), IPv4Address("192.0.2.1"), lease=9, published=published)
        assert decide(known, me).standing is standing


def test_an_older_record_is_ours_whatever_its_key() -> None:
    """The store was restored from before an exchange of keys."""
    known = directory(claim_2=claimed("me"), member=MEMBER, node=written(b"o" * 32))
    me = Me("me", "1", Identity(KEY), IPv4Address("192.0.2.1"), lease=9, published=99)
    decision = decide(known, me)
    assert (decision.standing, decision.own) == (Standing.PUBLISHING, (POD[2],))


def test_removed_uses_nothing() -> None:
    known = directory(claim_2=claimed(""), member=records.encode_member(Member(True)))
    decision = decide(known, Me("me", identity=Identity(KEY), using=(POD[2],)))
    assert (decision.standing, decision.own, decision.commit) == (Standing.REMOVED, (), None)


def test_a_node_id_that_its_own_record_does_not_bear_is_overwritten() -> None:
    known = directory(claim_2=claimed("me"), member=MEMBER, node=b"garbage")
    assert decide(known, ME).standing is Standing.PUBLISHING


CLAIMS = st.dictionaries(
    st.sampled_from(POD),
    st.builds(
        Claim, st.sampled_from(list(ClaimState)), st.sampled_from(["a", "b"]), st.integers(1, 9)
    ),
)


@given(CLAIMS, st.text("abc", min_size=1))
def test_choice(claims: dict[records.IPNetwork, Claim], node_id: str) -> None:
    """Unused first; then the longest free; nothing that a node holds."""
    free = {one: claim for one, claim in claims.items() if claim.state is ClaimState.FREE}
    try:
        chosen = choose(CONFIG, claims, node_id, 4)
    except Exhausted as error:
        assert len(claims) == 4
        assert not free
        assert "10.200.0.0/24:26 (4 in all)" in str(error)
        return
    assert NETWORK.gives(chosen)
    if len(claims) < 4:
        assert chosen not in claims
    else:
        assert free[chosen].mod_revision == min(claim.mod_revision for claim in free.values())


def test_networks_are_used_up_in_their_order() -> None:
    second = PodNetwork(ip_network("10.201.0.0/24"), 25)
    config = ClusterConfig((NETWORK, second))
    claims: dict[records.IPNetwork, Claim] = {}
    got = []
    for number in range(6):
        prefix = choose(config, claims, f"n{number}", 4)
        claims[prefix] = Claim(ClaimState.HELD, f"n{number}", number + 1)
        got.append(prefix)
    assert set(got[:4]) == set(POD)
    assert all(second.gives(prefix) for prefix in got[4:])
    with pytest.raises(Exhausted):
        choose(config, claims, "late", 4)


def test_who_joins_at_once_rarely_chooses_the_same() -> None:
    config = ClusterConfig((PodNetwork(ip_network("fd00:200::/48"), 64),))
    chosen = {choose(config, {}, f"node-{number}", 6) for number in range(100)}
    assert len(chosen) > 95
