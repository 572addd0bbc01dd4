# SPDX-License-Identifier: Apache-2.0
"""Changes are in force, kept, and taken back as a whole."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from metropolis.node.core.network.policy import manager as managing
from metropolis.node.core.network.policy.manager import Manager
from metropolis.node.core.network.policy.model import (
    Direction,
    Operator,
    Policy,
    Requirement,
    Rule,
    Tier,
    Workloads,
)
from metropolis.node.core.network.policy.sources import Source
from metropolis.node.core.network.policy.store import Store
from metropolis.node.core.network.policy.tables import Tables
from metropolis.node.core.network.policy.testing.fake import FakeKernel
from metropolis.node.core.network.workloads.conditions import Conditions
from metropolis.node.core.network.workloads.datapath.interface import Record
from metropolis.node.core.network.workloads.errors import (
    FailedPrecondition,
    KernelRefused,
    NotAttached,
    Unavailable,
)
from metropolis.node.core.network.workloads.model import Identity

WEB = Identity("shop", {"app": "web"})
DB = Identity("shop", {"app": "db"}, {"sql": ("tcp", 5432)})


def labelled(value: str) -> Workloads:
    return Workloads(workloads=(Requirement("app", Operator.IN, (value,)),))


DENY_ALL = Policy("shop/deny", Tier.NAMESPACE, Workloads(), isolates=frozenset(Direction))
WEB_TO_DB = Policy(
    "shop/db",
    Tier.NAMESPACE,
    labelled("db"),
    (Rule((labelled("web"),), None),),
    isolates=frozenset({Direction.INGRESS}),
)


def record(number: int, workload_id: str = "", *, ifindex: int = 0) -> Record:
    return Record(
        workload_id or f"w{number}",
        "eth0",
        number,
        f"wl{number}",
        ifindex or number,
        2,
        b"\2" + bytes(5),
        1500,
        (ip_address(f"10.0.0.{number}"), ip_address(f"fd00::{number:x}")),
        b"",
    )


class Node:
    """A manager, and its kernel and files, which outlive it."""

    def __init__(self, directory: Path) -> None:
        self.kernel = FakeKernel()
        self.directory = directory
        self.conditions = Conditions()
        self.records: dict[str, Record] = {}
        self.manager = self.again()

    def again(self) -> Manager:
        self.manager = Manager(self.kernel, Store(self.directory), self.conditions)
        self.manager.adopt(list(self.records.values()))
        return self.manager

    def admit(self, number: int, identity: Identity | None, workload_id: str = "") -> Record:
        one = record(number, workload_id)
        self.manager.admit(one, identity)
        self.records[one.workload_id] = one
        return one

    def forget(self, workload_id: str) -> None:
        self.manager.forget([self.records.pop(workload_id)])

    def set(self, *policies: Policy, source: str = "api", generation: int = 1) -> None:
        self.manager.set_policies(Source(source, generation, policies))

    def reaches(self, source: int, destination: int, port: int = 80) -> bool:
        return self.kernel.allows(
            ip_address(f"10.0.0.{source}"), ip_address(f"10.0.0.{destination}"), port
        )


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path / "policy")


def test_without_policies_the_kernel_is_told_nothing(node: Node) -> None:
    node.admit(1, WEB)
    node.admit(2, None)
    node.manager.set_labels("w2", DB)
    node.forget("w1")
    assert node.kernel.tables == Tables()
    assert node.kernel.transactions == 0


@pytest.mark.parametrize("first", ["policies", "workloads"])
def test_policies_and_workloads_in_any_order(node: Node, first: str) -> None:
    if first == "policies":
        node.set(WEB_TO_DB)
    for number, identity in ((1, WEB), (2, DB), (3, None)):
        node.admit(number, identity)
    if first == "workloads":
        assert node.reaches(3, 2)
        node.set(WEB_TO_DB)
    assert node.reaches(1, 2)
    assert not node.reaches(3, 2)
    assert node.reaches(2, 3)
    assert node.reaches(2, 1)
    node.set(generation=2)
    assert node.reaches(3, 2)
    assert node.kernel.tables == Tables()


def test_labels_that_change(node: Node) -> None:
    node.set(WEB_TO_DB)
    node.admit(1, WEB)
    node.admit(2, DB)
    node.manager.set_labels("w1", Identity("shop", {"app": "cache"}))
    assert not node.reaches(1, 2)
    node.manager.set_labels("w2", WEB)
    assert node.reaches(1, 2)
    with pytest.raises(NotAttached, match="'w9': is not attached"):
        node.manager.set_labels("w9", WEB)


def test_unknown_labels(node: Node) -> None:
    """Isolated while there is any policy, until they are known."""
    unknown = Identity("shop", known=False)
    node.admit(1, WEB)
    node.admit(2, unknown)
    assert node.reaches(2, 1)
    elsewhere = Workloads((Requirement("no", Operator.EXISTS),))
    node.set(replace(WEB_TO_DB, subject=elsewhere))
    assert not node.reaches(2, 1)
    assert not node.reaches(1, 2)
    assert node.manager.state().unknown == ("w2",)
    node.manager.set_labels("w2", WEB)
    assert node.reaches(2, 1)
    assert node.manager.state().unknown == ()
    # An attach that is repeated without them takes nothing back.
    node.manager.admit(node.records["w2"], unknown)
    assert node.reaches(2, 1)


def test_a_restart_has_what_was_said(node: Node) -> None:
    node.set(WEB_TO_DB)
    for number, identity in ((1, WEB), (2, DB), (3, None)):
        node.admit(number, identity)
    before = node.kernel.tables
    node.again()
    assert node.kernel.tables == before
    state = node.manager.state()
    assert [policy for _, policy in state.policies] == [WEB_TO_DB]
    node.set(replace(WEB_TO_DB, ingress=()), generation=1)
    assert not node.reaches(1, 2)


def test_what_ended_meanwhile(node: Node) -> None:
    """A workload that ended while the service was away; another has
    its id by now, which nothing was said of.
    """
    node.set(WEB_TO_DB)
    node.admit(1, WEB)
    node.admit(2, DB)
    del node.records["w1"]
    node.again()
    assert set(node.kernel.tables.identities) == {*node.records["w2"].ips}
    node.admit(1, None)
    assert not node.reaches(1, 2)


def test_a_repair_restores_the_tables(node: Node) -> None:
    node.set(WEB_TO_DB)
    for number, identity in ((1, WEB), (2, DB)):
        node.admit(number, identity)
    before = node.kernel.tables
    assert node.manager.repair() == ""
    node.kernel.tables = Tables()
    assert node.manager.repair()
    assert node.kernel.tables == before
    assert node.manager.repair() == ""


def test_a_lost_directory_isolates_what_is_attached(node: Node) -> None:
    node.admit(1, WEB)
    node.admit(2, None)
    remove(node.directory)
    node.again()
    node.set(WEB_TO_DB)
    node.admit(3, DB)
    assert not node.reaches(1, 3)
    assert not node.reaches(3, 2)


def test_the_directory_of_the_sockets_is_private(tmp_path: Path) -> None:
    """It is made here where the sockets are not there yet."""
    Node(tmp_path / "network" / "policy").set(WEB_TO_DB)
    for path in (tmp_path / "network").rglob("*"):
        assert path.stat().st_mode & 0o077 == 0, path
    assert (tmp_path / "network").stat().st_mode & 0o777 == 0o700


def test_a_file_that_cannot_be_read_isolates(node: Node) -> None:
    node.set(WEB_TO_DB)
    node.admit(1, WEB)
    node.admit(2, DB)
    node.admit(3, None)
    (workload,) = [
        path for path in (node.directory / "workloads").iterdir() if b"web" in path.read_bytes()
    ]
    workload.write_bytes(b"\xff\xff")
    node.again()
    assert node.manager.state().unknown == ("w1",)
    assert not node.reaches(1, 2)
    (node.directory / "sources" / "api").write_bytes(b"\xff\xff")
    node.again()
    assert "lost policies of api" in [policy.name for _, policy in node.manager.state().policies]
    assert not node.reaches(1, 2)
    node.set(WEB_TO_DB)
    node.manager.set_labels("w1", WEB)
    assert node.reaches(1, 2)


def test_a_lost_directory_stays_lost(node: Node) -> None:
    """The next start finds a directory, but nobody has said anything."""
    node.admit(1, WEB)
    shutil.rmtree(node.directory)
    node.again()
    node.again()
    node.set(WEB_TO_DB)
    node.admit(3, DB)
    assert node.manager.state().unknown == ("w1",)
    assert not node.reaches(1, 3)


def repair(node: Node) -> str:
    return node.manager.repair()


@pytest.mark.parametrize("unreadable", [".", "sources", "workloads"])
def test_files_that_cannot_be_read_leave_all_in_force(node: Node, unreadable: str) -> None:
    """What the kernel has is all that is known then."""
    node.set(WEB_TO_DB)
    for number, identity in ((1, WEB), (2, DB), (3, None)):
        node.admit(number, identity)
    before = node.kernel.tables
    path = node.directory / unreadable
    moved = path.rename(node.directory.with_name("moved"))
    path.write_text("no directory")
    node.again()
    assert (node.kernel.tables, node.kernel.is_policed) == (before, True)
    assert "not in force" in node.conditions.problems()[managing.CONDITION]
    assert not node.manager.is_loaded()
    assert node.manager.differs()
    for call in (*CALLS.values(), repair):
        with pytest.raises(KernelRefused):
            call(node)
    node.forget("w1")
    assert (node.kernel.tables, node.kernel.is_policed) == (before, True)
    path.unlink()
    moved.rename(path)
    assert node.manager.repair()
    assert node.conditions.problems() == {}
    assert node.manager.is_loaded()
    assert set(node.kernel.tables.identities) == {
        ip for one in node.records.values() for ip in one.ips
    }
    assert not node.reaches(3, 2)


def test_a_start_judges_all_flows(node: Node) -> None:
    """The service may have ended between a change and its cuts."""
    node.set(WEB_TO_DB)
    node.admit(1, WEB)
    node.admit(2, DB)
    node.kernel.revoked.clear()
    node.again()
    everybody = set(node.kernel.tables.identities.values())
    assert node.kernel.revoked == [(everybody, True)]
    node.admit(3, None)
    assert (everybody, True) not in node.kernel.revoked[1:]


def test_cuts_that_fail_are_made_up_for(node: Node) -> None:
    node.admit(1, WEB)
    node.admit(2, DB)
    node.set(WEB_TO_DB)
    node.kernel.keeps_flows = True
    node.set(replace(WEB_TO_DB, ingress=()), generation=2)
    assert not node.reaches(1, 2)
    assert not node.manager.is_loaded()
    assert "flows" in node.manager.differs()
    node.kernel.keeps_flows = False
    node.kernel.revoked.clear()
    node.manager.repair()
    assert node.kernel.revoked == [(set(node.kernel.tables.identities.values()), True)]
    assert node.manager.is_loaded()
    assert node.manager.differs() == ""


def test_what_others_left_is_switched_off(node: Node) -> None:
    """Elements that no policies make; and there are no policies."""
    node.kernel.is_foreign = node.kernel.is_policed = True
    assert not node.manager.is_loaded()
    assert node.manager.differs() == "policies are switched on"
    node.again()
    assert not node.kernel.is_policed


CALLS: dict[str, Callable[[Node], object]] = {
    "policies": lambda node: node.set(DENY_ALL, generation=2),
    "another source": lambda node: node.set(DENY_ALL, source="files"),
    "labels": lambda node: node.manager.set_labels("w1", DB),
    "first labels": lambda node: node.manager.set_labels("w3", DB),
    "admit": lambda node: node.manager.admit(record(4), DB),
    "admit again": lambda node: node.manager.admit(record(1, ifindex=77), DB),
}


@pytest.mark.parametrize("name", CALLS)
def test_what_the_kernel_refuses_is_taken_back(node: Node, name: str) -> None:
    node.set(WEB_TO_DB)
    for number, identity in ((1, WEB), (2, DB), (3, None)):
        node.admit(number, identity)
    before, state = node.kernel.tables, node.manager.state()
    node.kernel.refuses = True
    with pytest.raises(KernelRefused, match="no memory"):
        CALLS[name](node)
    node.kernel.refuses = False
    assert node.kernel.tables == before
    now = node.manager.state()
    assert (now.sources, now.policies, now.tables, now.unknown) == (
        state.sources,
        state.policies,
        state.tables,
        state.unknown,
    )
    assert node.manager.repair() == ""
    node.again()
    assert node.kernel.tables == before
    CALLS[name](node)
    assert node.kernel.tables != before or name == "first labels"


@pytest.mark.parametrize("name", CALLS)
def test_what_cannot_be_kept_is_refused(node: Node, name: str) -> None:
    node.set(WEB_TO_DB)
    for number, identity in ((1, WEB), (2, DB), (3, None)):
        node.admit(number, identity)
    before = node.kernel.tables
    moved = node.directory.rename(node.directory.with_name("moved"))
    node.directory.write_text("no directory")
    with pytest.raises(KernelRefused, match=r"keep policies: .*Not a directory"):
        CALLS[name](node)
    node.directory.unlink()
    moved.rename(node.directory)
    assert node.kernel.tables == before
    assert node.manager.repair() == ""


def test_forget_is_of_the_attachment_that_ended(node: Node) -> None:
    """The event of an old link comes after the next attach of its workload."""
    node.set(WEB_TO_DB)
    old = node.admit(1, WEB)
    node.admit(2, DB)
    new = record(1, ifindex=77)
    node.manager.admit(new, WEB)
    node.manager.forget([old])
    assert node.reaches(1, 2)
    node.manager.forget([new])
    assert set(node.kernel.tables.identities) == {*node.records["w2"].ips}


def test_an_address_that_goes_to_another(node: Node) -> None:
    """Before the one that had it is forgotten."""
    node.set(WEB_TO_DB)
    node.admit(2, DB)
    old = node.admit(1, WEB)
    node.manager.admit(record(1, "other"), Identity("shop", {"app": "cache"}))
    assert not node.reaches(1, 2)
    node.manager.forget([old])
    assert not node.reaches(1, 2)
    assert old.ips[0] in node.kernel.tables.identities


def test_forget_outlives_a_refusal(node: Node) -> None:
    node.set(WEB_TO_DB)
    node.admit(1, WEB)
    node.admit(2, DB)
    node.kernel.refuses = True
    node.forget("w1")
    node.kernel.refuses = False
    node.admit(3, WEB)
    assert set(node.kernel.tables.identities) == {
        ip for one in node.records.values() for ip in one.ips
    }


@pytest.mark.parametrize("is_refused", [False, True])
def test_forget_does_not_wait_for_a_long_change(
    node: Node, is_refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is left to that, whatever becomes of it."""
    monkeypatch.setattr(managing, "PATIENCE_S", 0.01)
    for number, identity in ((1, WEB), (2, DB), (3, WEB)):
        node.admit(number, identity)
    applying, go_on = threading.Event(), threading.Event()
    apply = node.kernel.apply

    def slow(*tables: Tables, **how: Any) -> None:
        applying.set()
        assert go_on.wait(10)
        apply(*tables, **how)

    monkeypatch.setattr(node.kernel, "apply", slow)
    node.kernel.refuses = is_refused
    ended: list[Exception | None] = []

    def change() -> None:
        try:
            node.set(WEB_TO_DB)
        except KernelRefused as error:
            ended.append(error)
        else:
            ended.append(None)

    thread = threading.Thread(target=change)
    thread.start()
    assert applying.wait(10)
    node.forget("w1")
    node.forget("w3")
    assert not ended
    go_on.set()
    thread.join(10)
    assert [error is not None for error in ended] == [is_refused]
    node.kernel.refuses = False
    assert node.manager.differs() == ""
    node.set(WEB_TO_DB, generation=2)
    assert set(node.kernel.tables.identities) == {*node.records["w2"].ips}


def test_a_source_that_counts_none_replaces_any_generation(node: Node) -> None:
    node.set(DENY_ALL, source="files", generation=(1 << 64) - 1)
    node.manager.replace_policies(Source("files", policies=(WEB_TO_DB,)))
    assert [policy.name for _, policy in node.manager.state().policies] == ["shop/db"]


def test_an_old_generation(node: Node) -> None:
    node.set(WEB_TO_DB, generation=7)
    node.set(WEB_TO_DB, generation=7)
    with pytest.raises(FailedPrecondition, match="generation 6: the source api has set 7"):
        node.set(generation=6)
    assert len(node.manager.state().policies) == 1
    node.again()
    with pytest.raises(FailedPrecondition):
        node.set(generation=6)


def test_the_last_generation(node: Node) -> None:
    """A source that counts none goes on."""
    node.set(source="files", generation=2**64 - 1)
    node.manager.replace_policies(Source("files", policies=(WEB_TO_DB,)))
    assert len(node.manager.state().policies) == 1


def test_two_sources_with_one_name(node: Node) -> None:
    """The other is an error, and isolates."""
    node.admit(1, WEB)
    node.admit(2, DB)
    node.set(WEB_TO_DB)
    node.set(replace(WEB_TO_DB, ingress=()), source="files")
    (_, first), (_, second) = node.manager.state().policies
    assert (first.error, second.name) == ("", "shop/db of files")
    assert second.error == "the source api has a policy of this name, too"
    assert not node.reaches(2, 1)


def test_a_start_that_fails_is_a_problem(node: Node) -> None:
    node.set(WEB_TO_DB)
    node.admit(1, WEB)
    node.kernel.refuses = True
    node.kernel.tables = Tables()
    node.again()
    assert "no memory" in node.conditions.problems()[managing.CONDITION]
    with pytest.raises(KernelRefused):
        node.manager.admit(record(3), None)
    node.kernel.refuses = False
    node.admit(3, None)
    assert node.conditions.problems() == {}


DAMAGES: dict[str, Callable[[Path], object]] = {
    "not removable": lambda at: (at / "sources" / "x.new").mkdir(),
    "a directory": lambda at: (at / "workloads" / "x").mkdir(),
    "a file": lambda at: _moved(at / "sources").write_text(""),
    "a loop": lambda at: _moved(at / "workloads").symlink_to(at / "workloads"),
}


def _moved(path: Path) -> Path:
    path.rename(path.with_name("moved"))
    return path


@pytest.mark.parametrize("name", DAMAGES)
def test_what_was_kept_cannot_be_opened(node: Node, name: str) -> None:
    """The tables stay as they are, and nothing is added, until it can."""
    node.set(WEB_TO_DB)
    for number, identity in ((1, WEB), (2, DB), (3, None)):
        node.admit(number, identity)
    before = node.kernel.tables
    kept = node.directory.with_name("kept")
    shutil.copytree(node.directory, kept)
    DAMAGES[name](node.directory)
    node.again()
    assert (node.kernel.tables, node.kernel.is_policed) == (before, True)
    assert "that were kept" in node.conditions.problems()[managing.CONDITION]
    for refused in (
        lambda: node.manager.admit(record(4), DB),
        lambda: node.set(generation=2),
        lambda: node.manager.set_labels("w1", DB),
        node.manager.repair,
    ):
        with pytest.raises(KernelRefused, match="that were kept"):
            refused()
    assert node.kernel.tables == before
    node.forget("w3")
    shutil.rmtree(node.directory)
    kept.rename(node.directory)
    node.manager.repair()
    assert node.reaches(1, 2)
    assert not node.reaches(4, 2)
    assert node.conditions.problems() == {}


def test_before_attachments_are_recovered(node: Node) -> None:
    """Policies of one source do not take away another's, nor identities."""
    node.set(WEB_TO_DB)
    node.admit(1, WEB)
    node.admit(2, DB)
    before = node.kernel.tables
    node.manager = Manager(node.kernel, Store(node.directory), node.conditions)
    with pytest.raises(Unavailable, match="not recovered yet"):
        node.set(source="files")
    assert (node.kernel.tables, node.kernel.is_policed) == (before, True)
    node.manager.adopt(list(node.records.values()))
    node.set(source="files")
    assert node.kernel.tables == before


def test_flows_that_cannot_be_cut_are_a_problem(node: Node) -> None:
    """Until a repair cuts them."""
    node.admit(1, WEB)
    node.admit(2, DB)
    node.kernel.keeps_flows = True
    node.set(WEB_TO_DB)
    assert "not cut" in node.conditions.problems()[managing.CONDITION]
    assert not node.manager.is_loaded()
    assert "not cut" in node.manager.differs()
    node.manager.repair()
    assert not node.manager.is_loaded()
    node.kernel.keeps_flows = False
    node.manager.repair()
    assert node.manager.is_loaded()
    assert node.manager.differs() == ""
    assert node.conditions.problems() == {}


def test_an_address_is_given_away_without_its_flows(node: Node) -> None:
    """If they cannot be cut, it is not given away."""
    node.set(WEB_TO_DB)
    one = node.admit(1, WEB)
    node.admit(2, DB)
    node.forget("w1")
    node.kernel.keeps_flows = True
    node.admit(3, WEB)
    with pytest.raises(KernelRefused, match="list flows"):
        node.admit(1, None, "next")
    node.kernel.keeps_flows = False
    node.admit(1, None, "next")
    assert node.kernel.ended[-1] == set(one.ips)


def test_watchers_get_the_latest_state(node: Node) -> None:
    wanted = True
    seen: list[int] = []
    waiting = threading.Event()

    def watch() -> None:
        for state in node.manager.states(lambda: wanted):
            seen.append(len(state.policies))
            waiting.set()

    thread = threading.Thread(target=watch)
    thread.start()
    assert waiting.wait(10)
    waiting.clear()
    node.set(WEB_TO_DB)
    assert waiting.wait(10)
    wanted = False
    node.manager.wake()
    thread.join(10)
    assert not thread.is_alive()
    assert (seen[0], seen[-1]) == (0, 1)


def remove(directory: Path) -> None:
    for path in sorted(directory.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    directory.rmdir()


def test_lost_policies_stay_in_force_until_they_are_set(node: Node) -> None:
    """The files say nothing on such a node; they must not switch it off."""
    node.set(WEB_TO_DB)
    for number, identity in ((1, WEB), (2, DB), (3, None)):
        node.admit(number, identity)
    before = node.kernel.tables
    remove(node.directory)
    for _ in range(2):
        node.again()
        node.manager.replace_policies(Source("files"))
        assert node.conditions.problems()[managing.CONDITION] == managing.LOST
        assert node.kernel.tables == before
        assert node.kernel.is_policed
        assert node.manager.is_loaded()
        with pytest.raises(Unavailable, match="is lost"):
            node.manager.evaluator()
    node.admit(4, WEB)
    node.forget("w3")
    assert node.kernel.tables == before
    node.set(WEB_TO_DB)
    assert node.conditions.problems() == {}
    assert not node.reaches(1, 2)  # nobody knows any more what w1 is
    assert node.reaches(4, 1) is False
    node.manager.set_labels("w1", WEB)
    node.manager.set_labels("w2", DB)
    assert node.reaches(1, 2)
    node.set(generation=2)
    assert not node.kernel.is_policed


def test_lost_policies_and_a_call_that_is_refused(node: Node) -> None:
    node.set(WEB_TO_DB)
    node.admit(1, WEB)
    before = node.kernel.tables
    remove(node.directory)
    node.again()
    node.kernel.refuses = True
    with pytest.raises(KernelRefused):
        node.set(DENY_ALL)
    node.kernel.refuses = False
    assert node.kernel.tables == before
    node.admit(2, DB)
    assert node.kernel.tables == before
