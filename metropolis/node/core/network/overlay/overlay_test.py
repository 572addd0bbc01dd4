# SPDX-License-Identifier: Apache-2.0
"""The runnable on the fake kernel: what it programs, and when."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

import pytest

from metropolis.node.core.network.overlay.device import (
    Device,
    DevicePeer,
    Endpoint,
    Links,
    OverlayError,
)
from metropolis.node.core.network.overlay.mesh import Exchange, Identity, Mesh, Peer
from metropolis.node.core.network.overlay.overlay import MTU_MIN, Overlay, link_mtu
from metropolis.node.core.network.overlay.peers import entries_of
from metropolis.node.core.network.overlay.testing.contract import key, net
from metropolis.node.core.network.overlay.testing.fake import FakeKernel
from osbase import event
from osbase.net.links import LinkState
from osbase.supervisor import Backoff, Supervisor

LIMIT_S = 20.0
NETWORKS = net("10.192.0.0/12", "fd00:10:192::/64")
MESH = Mesh(NETWORKS, net("10.192.0.0/24"))


def peer(number: int, **more: bytes) -> Peer:
    return Peer(
        f"n{number}",
        key(number),
        ip_address(f"192.0.{number >> 8}.{number & 255}"),
        51820,
        net(f"10.{192 + (number >> 8)}.{number & 255}.0/24"),
        **more,
    )


def link(mtu: int) -> LinkState:
    return LinkState(2, "up0", b"\2\0\0\0\0\1", mtu, up=True, carrier=True)


class Bench:
    """An overlay, its inputs, and its kernel."""

    def __init__(
        self, directory: Path, *, rotation_s: float | None = None, kernel: FakeKernel | None = None
    ) -> None:
        self.directory = directory
        self.kernel = FakeKernel() if kernel is None else kernel
        self.mesh = event.Value[Mesh]("mesh")
        self.peers = event.Table[str, Peer]("peers")
        self.published = event.Value[Identity]("published")
        self.uplink = event.Value[LinkState | None]("uplink")
        self.overlay = Overlay(
            Exchange(self.mesh, self.peers, self.published),
            self.uplink,
            state_dir=str(directory),
            kernel=self.kernel,
            rotation_s=rotation_s,
            grace_s=0.05,
        )

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        supervisor = Supervisor(self.overlay.run, make_backoff=lambda: Backoff(first_s=0.01))
        running = asyncio.create_task(supervisor.run(LIMIT_S))
        try:
            yield
        finally:
            supervisor.request_stop()
            assert await running == []

    async def publishes(self) -> None:
        """Publish as the store does."""
        async for identity in self.overlay.identity.watch():
            self.published.set(identity)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


async def until(what: Callable[[], bool]) -> None:
    async with asyncio.timeout(LIMIT_S):
        while not what():  # noqa: ASYNC110 - the fake kernel
            await asyncio.sleep(0.005)


async def test_nothing_is_removed_before_the_first_mesh(bench: Bench) -> None:
    """Then unlisted peers are removed; right ones are not sent again."""
    one, unlisted_peer = peer(1), b"s" * 32
    present = {
        public: DevicePeer(entry.endpoint, entry.allowed)
        for public, entry in entries_of(one).items()
    }
    async with bench.running():
        await bench.overlay.identity.watch().get()
        bench.kernel.peers = present | {unlisted_peer: DevicePeer()}
        bench.peers.set("n1", one)
        bench.peers.set("n2", peer(2))
        await bench.overlay.mtu.watch().get()
        assert bench.kernel.batches == []
        bench.mesh.set(MESH)
        await until(lambda: bool(bench.kernel.batches))
        (changes,) = bench.kernel.batches
        assert {change.public_key for change in changes} == {unlisted_peer, peer(2).public_key}
        assert set(bench.kernel.peers) == {one.public_key, peer(2).public_key}
        await until(lambda: bench.kernel.present != Links())


async def test_who_is_away_from_the_store_stays(bench: Bench) -> None:
    """Its peer stays over a restart, until it is back or deleted."""
    back, gone, unlisted_peer = peer(1), peer(2), b"s" * 32
    present = {
        public: DevicePeer(entry.endpoint, entry.allowed)
        for one in (back, gone)
        for public, entry in entries_of(one).items()
    }
    bench.peers.set("n3", peer(3))
    bench.mesh.set(replace(MESH, absent=(*back.prefixes, *gone.prefixes)))
    bench.kernel.exists, bench.kernel.peers = True, present | {unlisted_peer: DevicePeer()}
    async with bench.running():
        await until(lambda: peer(3).public_key in bench.kernel.peers)
        assert set(bench.kernel.peers) == {*present, peer(3).public_key}
        bench.peers.set("n1", back)
        bench.mesh.set(replace(MESH, absent=gone.prefixes))
        await until(lambda: back.public_key in bench.kernel.prompted)
        bench.mesh.set(MESH)
        await until(lambda: gone.public_key not in bench.kernel.peers)
        assert back.public_key in bench.kernel.peers
        reported = [change for batch in bench.kernel.batches for change in batch if change.remove]
        assert {change.public_key for change in reported} == {unlisted_peer, gone.public_key}


async def test_a_restart_leaves_the_size(bench: Bench) -> None:
    """Until mesh and uplink are known, it is that of an earlier run."""
    bench.kernel.exists, bench.kernel.mtu = True, 8820
    sizes: list[int] = []
    bench.kernel.set_mtu = sizes.append  # type: ignore[method-assign, assignment]
    async with bench.running():
        reported = bench.overlay.mtu.watch()
        assert await reported.get() == 8820
        bench.mesh.set(Mesh(NETWORKS, MESH.own, mtu=8820))
        await until(lambda: bench.kernel.present != Links())
        bench.uplink.set(link(9000))
        bench.peers.set("n1", peer(1))
        await until(lambda: bool(bench.kernel.peers))
        assert sizes == []
        bench.uplink.set(link(1500))
        assert await reported.get() == 1420
        assert sizes == [1420]


async def test_a_change_is_told_alone(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    bench.peers.update({f"n{n}": peer(n) for n in range(1, 1999)})
    bench.mesh.set(MESH)
    async with bench.running():
        said = "1,998 peers set, 0 removed, 1,998 in all, in "
        await until(lambda: any(said in text for text in caplog.messages))
        bench.peers.delete("n7")
        said = "0 peers set, 1 removed, 1,997 in all, in "
        await until(lambda: any(said in text for text in caplog.messages))
        (change,) = bench.kernel.batches[-1]
        assert change.remove


async def test_what_fails_is_made_good(bench: Bench) -> None:
    bench.mesh.set(MESH)
    bench.peers.set("n1", peer(1))
    async with bench.running():
        await until(lambda: len(bench.kernel.peers) == 1)
        bench.kernel.fail.append(OverlayError("no"))
        bench.peers.set("n2", peer(2))
        await until(lambda: len(bench.kernel.peers) == 2)
        bench.kernel.delete_link()
        bench.peers.set("n3", peer(3))
        await until(lambda: bench.kernel.exists and len(bench.kernel.peers) == 3)
        # The link is new: peers with sessions to the old one have to know.
        await until(lambda: len(set(bench.kernel.prompted)) == 3)


def _delete_link(kernel: FakeKernel) -> None:
    kernel.delete_link()


def _set_down(kernel: FakeKernel) -> None:
    kernel.up = False


def _set_group(kernel: FakeKernel) -> None:
    kernel.group = 0


def _set_mtu(kernel: FakeKernel) -> None:
    kernel.mtu = 1300


def _set_key(kernel: FakeKernel) -> None:
    kernel.set_private_key(b"x" * 32)


def _set_port(kernel: FakeKernel) -> None:
    kernel.port = 7


def _remove_peer(kernel: FakeKernel) -> None:
    del kernel.peers[peer(1).public_key]


def _add_peer(kernel: FakeKernel) -> None:
    kernel.peers[b"s" * 32] = DevicePeer(None, frozenset(net("10.99.0.0/24")))


def _take_prefix(kernel: FakeKernel) -> None:
    kernel.peers[peer(1).public_key] = replace(
        kernel.peers[peer(1).public_key], allowed=frozenset(net("0.0.0.0/0"))
    )


def _flush_addresses(kernel: FakeKernel) -> None:
    kernel.present = replace(kernel.present, addresses=frozenset())


def _flush_routes(kernel: FakeKernel) -> None:
    kernel.present = replace(kernel.present, routes=frozenset())


DAMAGES: list[tuple[Callable[[FakeKernel], None], set[str]]] = [
    (_delete_link, {"link overlay", "link overlay: peers", "link overlay: addresses"}),
    (_set_down, {"link overlay: up"}),
    (_set_group, {"link overlay: group"}),
    (_set_mtu, {"link overlay: MTU"}),
    (_set_key, {"link overlay: key"}),
    (_set_port, {"link overlay: port"}),
    (_remove_peer, {"link overlay: peers"}),
    (_add_peer, {"link overlay: peers"}),
    (_take_prefix, {"link overlay: peers"}),
    (_flush_addresses, {"link overlay: addresses"}),
    (_flush_routes, {"link overlay: addresses"}),
]


@pytest.mark.parametrize(("damage", "keys"), DAMAGES)
async def test_damage_is_put_back(
    bench: Bench, damage: Callable[[FakeKernel], None], keys: set[str]
) -> None:
    """All is as before, repaired once; unless the ward may not."""
    bench.mesh.set(MESH)
    bench.peers.update({"n1": peer(1), "n2": peer(2)})
    async with bench.running():
        await until(lambda: len(bench.kernel.peers) == 2 and bench.kernel.present != Links())

        def state() -> tuple[object, ...]:
            kernel = bench.kernel
            return kernel.link(), kernel.device(), kernel.links()

        before = state()
        assert await asyncio.to_thread(bench.overlay.look, lambda _: True) == []
        damage(bench.kernel)
        left = await asyncio.to_thread(bench.overlay.look, lambda _: False)
        assert {one.key for one in left} <= keys
        assert left
        assert all(one.left for one in left)
        repairs = await asyncio.to_thread(bench.overlay.look, lambda _: True)
        assert {one.key for one in repairs} == keys
        assert not any(one.error or one.left for one in repairs)
        assert state() == before
        assert await asyncio.to_thread(bench.overlay.look, lambda _: True) == []


async def test_a_peer_that_moved_is_no_damage(bench: Bench) -> None:
    """It is answered where it sent from."""
    bench.mesh.set(MESH)
    bench.peers.set("n1", peer(1))
    async with bench.running():
        await until(lambda: bool(bench.kernel.peers) and bench.kernel.present != Links())
        key = peer(1).public_key
        moved = replace(
            bench.kernel.peers[key], endpoint=Endpoint(ip_address("198.51.100.7"), 4711)
        )
        bench.kernel.peers[key] = moved
        assert await asyncio.to_thread(bench.overlay.look, lambda _: True) == []
        assert bench.kernel.peers[key] == moved


async def test_damage_that_cannot_be_put_back(bench: Bench) -> None:
    bench.mesh.set(MESH)
    async with bench.running():
        await until(lambda: bench.kernel.present != Links())
        bench.kernel.delete_link()
        bench.kernel.taken = True
        repairs = await asyncio.to_thread(bench.overlay.look, lambda _: True)
        assert [one.key for one in repairs] == ["link overlay"]
        assert "not of kind 'wireguard'" in repairs[0].error


async def test_a_look_before_and_after(bench: Bench) -> None:
    """Nothing runs, or nothing is known yet, or it ends meanwhile."""
    assert bench.overlay.look(lambda _: True) == ()
    async with bench.running():
        await bench.overlay.identity.watch().get()
        assert await asyncio.to_thread(bench.overlay.look, lambda _: True) == ()
        looks = [asyncio.to_thread(bench.overlay.look, lambda _: True) for _ in range(3)]
        gathered = asyncio.gather(*looks)
    assert await gathered == [(), (), ()]
    assert bench.overlay.look(lambda _: True) == ()


async def test_the_key_is_kept(bench: Bench, tmp_path: Path) -> None:
    async with bench.running():
        identity = await bench.overlay.identity.watch().get()
    again = Bench(tmp_path)
    async with again.running():
        assert await again.overlay.identity.watch().get() == identity
        assert again.kernel.device().public_key == identity.public_key


async def test_a_damaged_key_is_replaced(
    bench: Bench, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "overlay").mkdir()
    (tmp_path / "overlay" / "key.json").write_text("{")
    async with bench.running():
        identity = await bench.overlay.identity.watch().get()
    assert bench.kernel.device().public_key == identity.public_key
    (text,) = [record.message for record in caplog.records if record.levelno == logging.ERROR]
    assert "key is damaged, a new one is made" in text
    assert "key.json: not JSON" in text
    assert len(list((tmp_path / "overlay").glob("key.json.damaged-*"))) == 1


async def test_a_rotation_that_the_mesh_wants(bench: Bench) -> None:
    """Announced, published, waited for, published, and only then used."""
    bench.mesh.set(Mesh(NETWORKS, MESH.own, wanted_key_epoch=1))
    async with bench.running():
        reported = bench.overlay.identity.watch()
        first = await reported.get()
        assert first.epoch == 0
        bench.published.set(first)
        announced = await reported.get()
        assert (announced.public_key, announced.epoch) == (first.public_key, 0)
        bench.published.set(announced)
        committed = await reported.get(lambda said: said.epoch == 1)
        assert committed == Identity(announced.next_public_key or b"", 1, switching=True)
        assert bench.kernel.device().public_key == first.public_key
        bench.published.set(committed)
        await until(lambda: bench.kernel.device().public_key == committed.public_key)


async def test_a_rotation_by_age(tmp_path: Path) -> None:
    bench = Bench(tmp_path, rotation_s=1)
    async with bench.running():
        store = asyncio.create_task(bench.publishes())
        try:
            await bench.overlay.identity.watch().get(lambda said: said.epoch == 2)
        finally:
            store.cancel()


class SlowLists(FakeKernel):
    """The kernel in a large cluster: a list of its peers takes a while."""

    TAKES_S = 0.05

    def __init__(self) -> None:
        super().__init__()
        self.listed = 0

    def device(self) -> Device:
        time.sleep(self.TAKES_S)
        self.listed += 1
        return super().device()


async def test_lists_are_a_tenth_of_the_time(tmp_path: Path) -> None:
    """However many peers change their keys, one after the other, and each is
    checked.
    """
    kernel = SlowLists()
    bench = Bench(tmp_path, kernel=kernel)
    moving = [replace(peer(n), next_public_key=key(1000 + n)) for n in range(1, 25)]
    bench.peers.update({one.node_id: one for one in moving})
    bench.mesh.set(MESH)
    async with bench.running():
        await until(lambda: len(kernel.peers) == 2 * len(moving))
        begun, before = time.monotonic(), kernel.listed
        for one in moving:
            assert one.next_public_key is not None
            bench.peers.set(
                one.node_id, replace(one, public_key=one.next_public_key, next_public_key=None)
            )
            await until(lambda key=one.public_key: key not in kernel.peers)  # type: ignore[misc]
            await asyncio.sleep(0.04)
        # No peer of the fake kernel answers, so each is made again.
        anew = {one.next_public_key for one in moving}
        await until(
            lambda: anew == {c.public_key for b in kernel.batches for c in b if c.remove} & anew
        )
        took = time.monotonic() - begun
        assert kernel.listed - before <= 2 + took / (10 * kernel.TAKES_S), (kernel.listed, took)


@pytest.mark.parametrize(
    ("asked", "uplink", "expected"),
    [(None, None, 1420), (None, 9000, 8920), (1400, 1500, 1400), (1500, 1500, 1420)],
)
def test_mtu(asked: int | None, uplink: int | None, expected: int) -> None:
    assert link_mtu(asked, uplink) == expected


async def test_mtu_follows_the_uplink(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    async with bench.running():
        reported = bench.overlay.mtu.watch()
        assert await reported.get() == 1420
        for uplink, expected in ((1450, 1370), (9000, 8920), (1300, MTU_MIN)):
            bench.uplink.set(link(uplink))
            assert await reported.get() == bench.kernel.mtu == expected
        assert "MTU 1220 (uplink 1300, asked for None) is below" in caplog.text
        bench.uplink.set(link(1600))
        assert await reported.get() == 1520
        bench.uplink.set(None)
        bench.mesh.set(Mesh(mtu=1500))
        assert await reported.get() == 1500
        bench.mesh.set(Mesh())
        assert await reported.get() == 1520
