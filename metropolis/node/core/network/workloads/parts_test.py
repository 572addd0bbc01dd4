# SPDX-License-Identifier: Apache-2.0
"""A part of an attachment, from a request to a restart, in all that iterates.

The part is testing.toy_part, which nothing but tests knows. `host` is the
kernel, and the fake.
"""

import contextlib
import random
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from metropolis.node.core.network.workloads.datapath.interface import Record
from metropolis.node.core.network.workloads.datapath.parts import LinkPart, Parts
from metropolis.node.core.network.workloads.engine.locks import TimeRemaining
from metropolis.node.core.network.workloads.errors import (
    AlreadyExists,
    GivenUp,
    InvalidArgument,
    KernelRefused,
    NotAttached,
    NotFound,
    Unavailable,
)
from metropolis.node.core.network.workloads.model import AttachIntent, PartText
from metropolis.node.core.network.workloads.parts import TEXT_MAX
from metropolis.node.core.network.workloads.testing.lab import Pod, objects, settled
from metropolis.node.core.network.workloads.testing.parts_host import (
    BLUE_RED,
    PREFIXES,
    RED,
    WAIT_S,
    FakeHost,
    Host,
    KernelHost,
    always,
    attach,
    awaited,
    kernel_host,
    nft,
)
from metropolis.node.core.network.workloads.testing.toy_part import TABLE, Colour

ROUNDS = 30  # of each of 8 threads


@pytest.fixture
def kernel() -> Iterator[KernelHost]:
    with kernel_host() as made:
        yield made


@pytest.fixture(params=["fake", "kernel"])
def host(request: pytest.FixtureRequest) -> Host:
    if request.param == "fake":
        return FakeHost()
    made: Host = request.getfixturevalue("kernel")
    return made


# ---- The same for both ------------------------------------------------------


def test_the_same_request_again_is_the_same_attachment(host: Host) -> None:
    path = host.add_netns()
    made = attach(host, path, BLUE_RED)
    assert host.keys() == {"1", "3"}
    assert attach(host, path, BLUE_RED) == made
    others: list[tuple[PartText, ...]] = [RED, (("c", "blue,green"),), ()]
    for other in others:
        told = "colours 'blue,red', made by a request for another colours; detach it first"
        with pytest.raises(AlreadyExists, match=told):
            attach(host, path, other)
    assert host.keys() == {"1", "3"}


def test_a_resource_has_one_holder(host: Host) -> None:
    attach(host, host.add_netns(), BLUE_RED)
    in_use = host.engine.in_use(PREFIXES[0])
    for text in ("red", "blue", "green,red"):
        with pytest.raises(AlreadyExists, match=r"colour .*: is taken by workload 'w1'"):
            attach(host, host.add_netns(), (("c", text),), "w2")
    with pytest.raises(AlreadyExists) as caught:
        attach(host, host.add_netns(), BLUE_RED, "w2")
    assert str(caught.value).count("is taken by workload 'w1'") == 2
    assert host.engine.in_use(PREFIXES[0]) == in_use
    attach(host, host.add_netns(), (("c", "green"),), "w2")
    assert host.keys() == {"1", "2", "3"}
    host.engine.detach("w1", until_gone=True)
    assert host.keys() == {"2"}
    attach(host, host.add_netns(), RED, "w3")
    assert host.keys() == {"2", "3"}


def test_a_restart_reads_it_back(host: Host) -> None:
    path = host.add_netns()
    made = attach(host, path, BLUE_RED)
    host.restart()
    assert host.keys() == {"1", "3"}
    assert attach(host, path, BLUE_RED) == made
    with pytest.raises(AlreadyExists, match="colour red: is taken by workload 'w1'"):
        attach(host, host.add_netns(), RED, "w2")
    host.engine.detach("w1", until_gone=True)
    attach(host, host.add_netns(), RED, "w2")
    assert host.keys() == {"3"}


def test_what_is_missing_is_found_and_put_back(host: Host) -> None:
    attach(host, host.add_netns(), BLUE_RED)
    host.take_key("3")
    (checked,) = host.engine.check("w1")
    (found,) = checked.findings
    assert (found.what, found.found) == ("element 3 of inet toy colours", "nothing")
    (repair,) = host.engine.repair(always)
    assert (repair.key, repair.error) == (found.what, "")
    assert host.keys() == {"1", "3"}
    (checked,) = host.engine.check("w1")
    assert checked.findings == ()
    assert not host.engine.repair(always)


def test_what_ends_with_its_namespace(host: Host) -> None:
    """Its elements and colours are free as its addresses are."""
    attach(host, path := host.add_netns(), BLUE_RED)
    host.kill_netns(path)
    assert awaited(lambda: host.engine.in_use(PREFIXES[0]) == 0)
    assert host.keys() == set()
    with pytest.raises(NotAttached):
        host.engine.check("w1")
    attach(host, host.add_netns(), RED, "w2")
    assert host.keys() == {"3"}


def test_a_removal_of_what_others_have_taken(host: Host) -> None:
    attach(host, host.add_netns(), BLUE_RED)
    for key in ("1", "3"):
        host.take_key(key)
    host.engine.detach("w1", until_gone=True)
    attach(host, host.add_netns(), RED, "w2")
    assert host.keys() == {"3"}


def test_a_collection(host: Host) -> None:
    for number, colour in enumerate(("blue", "green", "red")):
        attach(host, host.add_netns(), (("c", colour),), f"w{number}")
    attach(host, host.add_netns(), (), "w3")
    collected = host.engine.collect(lambda workload_id, _: workload_id == "w1")
    assert len(collected.removed) == 3
    host.engine.settle()
    assert host.keys() == {"2"}
    attach(host, host.add_netns(), BLUE_RED, "w0")


@pytest.mark.parametrize(
    ("parts", "field"),
    [
        ((("x", "red"),), "parts"),
        ((("i", "red"),), "parts"),
        ((("c", "red"), ("c", "blue")), "parts"),
        ((("c", ""),), "colours"),
        ((("c", "red,blue"),), "colours"),
        ((("c", "purple"),), "colours"),
        ((("c", "r\xe9d"),), "colours"),
        ((("c", "x" * (TEXT_MAX + 1)),), "colours"),
    ],
)
def test_what_is_not_understood(parts: tuple[PartText, ...], field: str) -> None:
    host = FakeHost()
    with pytest.raises(InvalidArgument) as refused:
        attach(host, host.add_netns(), parts)
    assert refused.value.field == field
    assert not host.kernel.links


@pytest.mark.parametrize("letters", ["cc", "i", "o", "C", "1", "\xe9"])
def test_letters_are_of_one_part_each(letters: str) -> None:
    def part(letter: str) -> LinkPart:
        made = LinkPart()
        made.letter = letter
        return made

    with pytest.raises(ValueError, match="letters of parts"):
        Parts([part(letter) for letter in letters])


def test_parts_are_in_the_digest_and_others_are_as_they_were() -> None:
    intent = AttachIntent("w", "/n", "eth0")
    digests = {replace(intent, parts=parts).digest() for parts in ((), RED, BLUE_RED)}
    assert len(digests) == 3
    assert intent.digest().hex() == "e4a6a0577479b2b4"  # as of the first version


# ---- What only a fake can be made to do -------------------------------------


def test_the_namespace_dies_during_the_attach() -> None:
    host = FakeHost()
    path = host.add_netns()
    host.datapath.on_create = lambda _: host.kill_netns(path)
    with pytest.raises(NotFound):
        attach(host, path)
    assert (host.keys(), host.engine.in_use(PREFIXES[0])) == (set(), 0)
    host.datapath.on_create = lambda _: None
    attach(host, host.add_netns(), RED, "w2")


def test_an_undo_that_fails() -> None:
    """A Detach removes the rest; the colour is not free before."""
    host = FakeHost()

    def refuse(_: object) -> None:
        raise KernelRefused("no")

    host.datapath.on_create, host.datapath.undo_fails = refuse, True
    with pytest.raises(KernelRefused, match="undo failed"):
        attach(host, host.add_netns())
    host.datapath.on_create, host.datapath.undo_fails = lambda _: None, False
    with pytest.raises(AlreadyExists, match="is taken by workload 'w1'"):
        attach(host, host.add_netns(), RED, "w2")
    host.engine.detach("w1", until_gone=True)
    assert host.keys() == set()
    attach(host, host.add_netns(), RED, "w2")


@pytest.mark.parametrize("broken", [False, True])
def test_an_end_whose_event_was_lost(broken: bool) -> None:
    """An attachment's link, or one that an attach could not undo."""
    host = FakeHost()

    def refuse(_: object) -> None:
        raise KernelRefused("no")

    if broken:
        host.datapath.on_create, host.datapath.undo_fails = refuse, True
    with contextlib.suppress(KernelRefused):
        attach(host, path := host.add_netns())
    host.datapath.on_create, host.datapath.undo_fails = lambda _: None, False
    assert host.keys() == {"3"}
    host.datapath.kill_netns(path, reported=False)
    host.datapath.overrun()
    assert (host.keys(), host.engine.in_use(PREFIXES[0])) == (set(), 0)
    attach(host, host.add_netns(), RED, "w2")
    host.engine.detach("w1", until_gone=True)
    assert host.keys() == {"3"}


def until(end: float) -> TimeRemaining:
    return lambda: end - time.monotonic()


def test_an_attach_waits_for_what_a_lost_one_has(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its namespace has ended, and the kernel takes its time for elements."""
    host = FakeHost()
    first = attach(host, path := host.add_netns())
    clean_up = host.datapath.clean_up
    begun, go_on = threading.Event(), threading.Event()

    def late(record: Record) -> None:
        begun.set()
        assert go_on.wait(WAIT_S)
        clean_up(record)

    monkeypatch.setattr(host.datapath, "clean_up", late)
    red = AttachIntent("w2", host.add_netns(), "eth0", parts=RED)
    address = AttachIntent("w3", host.add_netns(), "eth0", requested_ips=first.ips)
    with ThreadPoolExecutor(3) as pool:
        ended = pool.submit(host.kill_netns, path)
        assert begun.wait(WAIT_S)
        for intent in (red, address):
            with pytest.raises(GivenUp):
                host.engine.attach(intent, time_remaining=until(time.monotonic() + 0.01))
        made = [pool.submit(host.engine.attach, intent) for intent in (red, address)]
        go_on.set()
        ended.result()
        assert [one.result().workload_id for one in made] == ["w2", "w3"]
    assert host.keys() == {"3"}


@pytest.mark.parametrize("again", ["repair", "start"])
def test_elements_that_cannot_be_removed(again: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody gets what they lead to, until a repair or a start removes them."""
    host = FakeHost()
    attach(host, path := host.add_netns())
    clean_up = host.datapath.clean_up

    def refuse(_: object) -> None:
        raise KernelRefused("no")

    monkeypatch.setattr(host.datapath, "clean_up", refuse)
    host.kill_netns(path)
    for _ in range(2):
        assert (host.keys(), host.engine.in_use(PREFIXES[0])) == ({"3"}, 1)
        with pytest.raises(AlreadyExists, match="is taken by workload 'w1'"):
            attach(host, host.add_netns(), RED, "w2")
        host.engine.repair(always)
    if again == "start":
        host.restart()
    else:
        monkeypatch.setattr(host.datapath, "clean_up", clean_up)
        host.engine.repair(always)
    assert (host.keys(), host.engine.in_use(PREFIXES[0])) == (set(), 0)
    attach(host, host.add_netns(), RED, "w2")


# ---- What only the kernel shows ---------------------------------------------


def test_what_a_part_adds_to_the_link(kernel: KernelHost) -> None:
    made = attach(kernel, kernel.add_netns(), BLUE_RED)
    path = f"/proc/sys/net/ipv4/conf/{made.host_interface}/tag"

    def tag() -> str:
        with open(path) as file:
            return file.read().strip()

    assert tag() == "1"
    with open(path, "w") as file:
        file.write("7")
    (checked,) = kernel.engine.check("w1")
    (found,) = checked.findings
    assert (found.what, found.expected, found.found) == (f"tag of {made.host_interface}", "1", "7")
    (repair,) = kernel.engine.repair(always)
    assert (repair.key, repair.error) == (found.what, "")
    assert tag() == "1"
    assert not kernel.engine.repair(always)


def test_a_first_hop_that_others_took_off_lo(kernel: KernelHost) -> None:
    """The route that was refused for it is found among what a part adds."""
    subprocess.run(["ip", "address", "del", "169.254.77.1/32", "dev", "lo"], check=True)
    attach(kernel, path := kernel.add_netns(), BLUE_RED)
    (checked,) = kernel.engine.check("w1", netns_path=path)
    assert checked.findings == ()


def test_a_part_that_a_version_does_not_know(kernel: KernelHost) -> None:
    """The link is left alone, with its elements, and its addresses."""
    made = attach(kernel, path := kernel.add_netns(), BLUE_RED)
    before = settled("fe80::1")
    for parts in ((), (_Other(),), (_Younger(), _Other())):
        kernel.restart(parts)
        assert kernel.engine.list() == []
        assert "made by a newer version" in kernel.engine.notes()["workloads"]
        assert objects() == before
        assert kernel.keys() == {"1", "3"}
        with pytest.raises(AlreadyExists):
            kernel.engine.attach(
                AttachIntent("w2", kernel.add_netns(), "eth0", requested_ips=made.ips)
            )
    kernel.restart()
    assert attach(kernel, path, BLUE_RED) == made


class _Other(Colour):
    """A part of another letter, with the same map."""

    letter = "d"


class _Younger(Colour):
    """The part as it was before there was blue."""

    def check(self, text: str) -> None:
        if "blue" in text:
            raise InvalidArgument("blue", field=self.name)


def test_the_table_is_gone(kernel: KernelHost) -> None:
    """An attach is refused; a removal, a look and a start do without."""
    attach(kernel, kernel.add_netns(), RED)
    attach(kernel, kernel.add_netns(), (("c", "blue"),), "w2")
    nft("delete table inet toy")
    with pytest.raises(KernelRefused, match="create element 2 of inet toy colours: ENOENT"):
        attach(kernel, kernel.add_netns(), (("c", "green"),), "w3")
    assert {repair.key for repair in kernel.engine.repair(always) if repair.error} == {
        "element 3 of inet toy colours",
        "element 1 of inet toy colours",
    }
    kernel.engine.detach("w1", until_gone=True)
    kernel.restart()
    nft(TABLE)
    kernel.engine.repair(always)
    assert kernel.keys() == {"1"}


def test_another_s_element_is_left_alone(kernel: KernelHost) -> None:
    nft('add element inet toy colours { 2 comment "mw2e" : 10.0.0.9 }')
    with pytest.raises(AlreadyExists, match="element 2 of inet toy colours: exists"):
        attach(kernel, kernel.add_netns(), (("c", "blue,green"),))
    kernel.restart()
    assert kernel.keys() == {"mw2e"}


def test_an_element_whose_data_others_changed(kernel: KernelHost) -> None:
    """It is found, and not replaced: only what is missing is put back."""
    attach(kernel, kernel.add_netns())
    kernel.take_key("3")
    nft("add element inet toy colours { 3 : 10.0.0.9 }")
    (checked,) = kernel.engine.check("w1")
    assert [found.what for found in checked.findings] == ["element 3 of inet toy colours"]
    (repair,) = kernel.engine.repair(always)
    assert "exists" in repair.error


def test_without_parts_there_is_no_nftables(
    kernel: KernelHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No transaction and no dump, for an attach, a look, or a removal."""

    def refuse(*_: object) -> None:
        raise AssertionError("nftables was used")

    monkeypatch.setattr("osbase.nftables.digest.open_socket", refuse)
    attach(kernel, path := kernel.add_netns(), ())
    assert kernel.engine.check("w1", netns_path=path)
    assert not kernel.engine.repair(always)
    kernel.engine.detach("w1", until_gone=True)
    kernel.restart(())
    attach(kernel, kernel.add_netns(), ())
    kernel.restart(())
    kernel.engine.detach("w1", until_gone=True)
    monkeypatch.undo()


def test_many_want_the_same(kernel: KernelHost) -> None:
    """Never two have a colour, whichever way attachments end, while elements
    are taken and put back; in the end nothing is taken, and nothing is left.
    """
    holders: dict[str, str] = {}
    mutex = threading.Lock()
    texts = ["blue", "blue,green", "blue,green,red", "blue,red", "green", "green,red", "red"]
    ending = threading.Event()

    def hold(words: Sequence[str], name: str) -> None:
        with mutex:
            assert holders.keys().isdisjoint(words), (holders, words)
            holders.update(dict.fromkeys(words, name))

    def release(words: Sequence[str]) -> None:
        with mutex:
            for word in words:
                del holders[word]

    def use(number: int) -> int:
        chosen, name, times = random.Random(number), f"w{number}", 0
        for _ in range(ROUNDS):
            with contextlib.closing(Pod()) as pod:
                text = chosen.choice(texts)
                try:
                    attach(kernel, pod.path, (("c", text),), name)
                except AlreadyExists:
                    continue
                times += 1
                hold(words := text.split(","), name)
                end = chosen.choice(["detach", "collect", "namespace", "both"])
                release(words)
                if end == "detach":
                    kernel.engine.detach(name, until_gone=True)
                elif end == "collect":
                    # A third at a time is refused; then the namespace ends.
                    with contextlib.suppress(Unavailable):
                        collected = kernel.engine.collect(lambda one, _: one != name)
                        assert not collected.remaining
            if end == "both":
                kernel.engine.detach(name, until_gone=True)
        kernel.engine.detach(name, until_gone=True)
        return times

    def disturb() -> None:
        while not ending.is_set():
            nft("destroy element inet toy colours { 1, 2, 3 }")
            kernel.engine.repair(always)

    with ThreadPoolExecutor(9) as pool:
        disturbed = pool.submit(disturb)
        try:
            used = list(pool.map(use, range(8)))
        finally:
            ending.set()
        disturbed.result()
    assert sum(used) > 8
    assert awaited(lambda: kernel.engine.in_use(PREFIXES[0]) == 0)
    assert kernel.keys() == set()
    attach(kernel, kernel.add_netns(), (("c", "blue,green,red"),), "last")
