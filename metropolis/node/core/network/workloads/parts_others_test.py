# SPDX-License-Identifier: Apache-2.0
"""Attachments with a part, while other programs change what they are made of.

They replace tables, write elements with our keys or our comments, take names
off links, end namespaces at the wrong moment. Nothing of an attachment stays in
the kernel when it has ended, its keys are free, and others' elements stay.
"""

import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest

from metropolis.node.core.network.workloads.datapath import names
from metropolis.node.core.network.workloads.datapath.elements import Element, Elements
from metropolis.node.core.network.workloads.datapath.host import Host
from metropolis.node.core.network.workloads.errors import AlreadyExists, KernelRefused
from metropolis.node.core.network.workloads.model import Attachment
from metropolis.node.core.network.workloads.testing.lab import objects, settled
from metropolis.node.core.network.workloads.testing.parts_host import (
    BLUE_RED,
    PREFIXES,
    RED,
    KernelHost,
    always,
    attach,
    awaited,
    kernel_host,
    nft,
)
from metropolis.node.core.network.workloads.testing.toy_part import COLOURS, TABLE, element

# A link that is gone has this index; the digest is of nothing.
GONE = "mw2e.fffff.01234567"


@pytest.fixture
def kernel() -> Iterator[KernelHost]:
    with kernel_host() as made:
        yield made


def listed() -> str:
    command = ["nft", "list", "map", "inet", "toy", "colours"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)


def take_altnames(made: Attachment, beginning: str) -> None:
    name = made.host_interface
    shown = subprocess.run(["ip", "link", "show", name], check=True, capture_output=True, text=True)
    found = [line.split()[1] for line in shown.stdout.splitlines() if "altname" in line]
    for altname in found:
        if altname.startswith(beginning):
            ip("link", "property", "del", "dev", name, "altname", altname)


# ---- A start ----------------------------------------------------------------


@pytest.mark.parametrize("lost", ["id", "record"])
def test_a_link_that_is_left_alone_ends(kernel: KernelHost, lost: str) -> None:
    """Its elements lead to its addresses, which are free now."""
    made = attach(kernel, path := kernel.add_netns(), BLUE_RED)
    kernel.engine.close()
    if lost == "record":
        take_altnames(made, "mw3r.")
    else:
        take_altnames(made, names.part_prefix(made.host_ifindex, names.ID_PART))
        ip("link", "set", made.host_interface, "alias", "another")
    kernel.restart()
    assert kernel.engine.list() == []
    assert kernel.keys() == {"1", "3"}
    kernel.kill_netns(path)
    assert awaited(lambda: kernel.engine.in_use(PREFIXES[0]) == 0)
    assert kernel.keys() == set()
    attach(kernel, kernel.add_netns(), BLUE_RED, "w2")


def test_a_part_whose_text_others_took(kernel: KernelHost) -> None:
    """The attachment goes on without it, and without its elements; another may
    have the resource.
    """
    made = attach(kernel, path := kernel.add_netns(), BLUE_RED)
    kernel.engine.close()
    take_altnames(made, names.part_prefix(made.host_ifindex, "c"))
    kernel.restart()
    assert kernel.engine.list() == [replace(made, parts=())]
    assert kernel.keys() == set()
    with pytest.raises(AlreadyExists, match="made by a request for another"):
        attach(kernel, path, BLUE_RED)
    attach(kernel, kernel.add_netns(), RED, "w2")
    kernel.engine.detach("w1", until_gone=True)
    assert kernel.keys() == {"3"}
    attach(kernel, path, (("c", "blue"),))


def test_a_link_with_neither_record_nor_routes(kernel: KernelHost) -> None:
    """Its addresses are not held, so nothing may lead there."""
    made = attach(kernel, kernel.add_netns(), BLUE_RED)
    kernel.engine.close()
    take_altnames(made, "mw3r.")
    ip("link", "set", made.host_interface, "down")
    kernel.restart()
    assert kernel.engine.in_use(PREFIXES[0]) == 0
    assert kernel.keys() == set()


def test_an_element_whose_index_is_a_link_s_that_is_not_ours(kernel: KernelHost) -> None:
    kernel.engine.close()
    nft('add element inet toy colours { 3 comment "mw2e.1.01234567.03000000" : 10.0.0.9 }')
    kernel.restart()
    assert kernel.keys() == set()


def test_a_comment_with_a_key_that_is_none(kernel: KernelHost) -> None:
    """The others are removed all the same; the error is of that one alone."""
    kernel.engine.close()
    for key, comment in ((7, f"{GONE}.0300"), (3, f"{GONE}.03000000")):
        nft(f'add element inet toy colours {{ {key} comment "{comment}" : 10.0.0.9 }}')
    kernel.restart()
    assert kernel.keys() == {"0300"}
    attach(kernel, kernel.add_netns(), BLUE_RED)


def test_a_comment_with_the_key_of_an_attachment(
    kernel: KernelHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The attachment keeps its element, at every moment."""
    attach(kernel, kernel.add_netns(), RED)
    kernel.engine.close()
    nft(f'add element inet toy colours {{ 7 comment "{GONE}.03000000" : 10.0.0.9 }}')
    before = listed()
    removed: list[Sequence[object]] = []
    monkeypatch.setattr(Elements, "destroy", lambda _, elements: removed.append(elements))
    kernel.restart()
    assert not any(removed)
    assert listed() == before


# ---- Repairs ----------------------------------------------------------------


def test_every_name_of_a_link_is_put_back(kernel: KernelHost) -> None:
    made = attach(kernel, path := kernel.add_netns(), BLUE_RED)
    index = made.host_ifindex
    letters = [names.part_prefix(index, letter) for letter in "ioc"]
    for beginning in ("mw3k.", "mw3r.", *letters, "mw"):
        take_altnames(made, beginning)
        (checked,) = kernel.engine.check("w1", netns_path=path)
        assert [f.what.split(" of")[0] for f in checked.findings] == ["alternative names"]
        assert [repair.error for repair in kernel.engine.repair(always)] == [""]
        (checked,) = kernel.engine.check("w1", netns_path=path)
        assert checked.findings == ()
    kernel.restart()
    assert kernel.keys() == {"1", "3"}
    assert attach(kernel, path, BLUE_RED) == made


def test_one_of_two_keys_is_another_s_now(kernel: KernelHost) -> None:
    """The other key is put back."""
    attach(kernel, kernel.add_netns(), BLUE_RED)
    for key in ("1", "3"):
        kernel.take_key(key)
    nft("add element inet toy colours { 3 : 10.0.0.9 }")
    errors = {repair.key: repair.error for repair in kernel.engine.repair(always)}
    assert kernel.keys() == {"1"}
    assert errors["element 1 of inet toy colours"] == ""
    assert "exists" in errors["element 3 of inet toy colours"]


def test_a_namespace_dies_during_a_repair(
    kernel: KernelHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing stays of what was put back too late."""
    attach(kernel, path := kernel.add_netns(), BLUE_RED)
    kernel.take_key("3")
    create = Elements.create

    def late(self: Elements, ifindex: int, elements: Sequence[Element]) -> None:
        kernel.kill_netns(path)
        assert awaited(lambda: kernel.engine.list() == [])
        create(self, ifindex, elements)

    monkeypatch.setattr(Elements, "create", late)
    (repair,) = kernel.engine.repair(always)
    assert repair.error == ""
    monkeypatch.undo()
    assert kernel.keys() == set()
    assert kernel.engine.in_use(PREFIXES[0]) == 0
    attach(kernel, kernel.add_netns(), BLUE_RED, "w2")


# ---- Removals ---------------------------------------------------------------


@pytest.mark.parametrize("table", ["set colours { type ipv4_addr; };", "chain colours { };", ""])
def test_the_table_is_another_one(kernel: KernelHost, table: str) -> None:
    """What cannot have the element does not stop a removal."""
    attach(kernel, kernel.add_netns(), BLUE_RED)
    attach(kernel, path := kernel.add_netns(), (("c", "green"),), "w2")
    nft(f"delete table inet toy; table inet toy {{ {table} }}")
    kernel.engine.detach("w1", until_gone=True)
    kernel.kill_netns(path)
    assert awaited(lambda: kernel.engine.in_use(PREFIXES[0]) == 0)
    kernel.restart()
    nft(f"delete table inet toy; {TABLE}")
    attach(kernel, kernel.add_netns(), (("c", "blue,green,red"),), "w3")


def test_of_several_one_is_in_a_table_that_is_gone(kernel: KernelHost) -> None:
    """Those that are there are removed."""
    elements = Elements((COLOURS,))
    gone = replace(COLOURS, table="gone")
    some = [element("1"), element("3")]
    elements.create(5, some)
    elements.destroy([element("1", in_map=gone), *some, element("3", in_map=gone)])
    assert kernel.keys() == set()


def test_an_attach_that_was_refused_a_key_and_cannot_be_undone(
    kernel: KernelHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its removal leaves the key to the one that has it."""
    nft("add element inet toy colours { 3 : 10.0.0.9 }")
    nothing = settled("::1")

    def refuse(*_: object, **__: object) -> None:
        raise OSError("no")

    with monkeypatch.context() as patch:
        patch.setattr(Host, "batch", refuse)
        with pytest.raises(KernelRefused, match="undoing it failed"):
            attach(kernel, kernel.add_netns(), BLUE_RED)
        with pytest.raises(KernelRefused):
            kernel.engine.detach("w1", until_gone=True)
    kernel.engine.detach("w1", until_gone=True)
    assert objects() == nothing
    assert "3 : 10.0.0.9" in listed()
    kernel.take_key("3")
    attach(kernel, kernel.add_netns(), BLUE_RED)
    kernel.engine.detach("w1", until_gone=True)
    assert kernel.keys() == set()


@pytest.mark.parametrize("repaired", [False, True])
def test_a_link_without_its_record_that_was_renamed(kernel: KernelHost, repaired: bool) -> None:
    nothing = settled("::1")
    made = attach(kernel, path := kernel.add_netns(), BLUE_RED)
    take_altnames(made, "mw3r.")
    ip("link", "set", made.host_interface, "down")
    ip("link", "set", made.host_interface, "name", "other0")
    if repaired:
        assert not any(repair.error for repair in kernel.engine.repair(always))
        (checked,) = kernel.engine.check("w1", netns_path=path)
        assert checked.findings == ()
    kernel.engine.detach("w1", until_gone=True)
    assert objects() == nothing
    assert kernel.keys() == set()
