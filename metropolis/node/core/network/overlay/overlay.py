# SPDX-License-Identifier: Apache-2.0
"""The runnable: makes the kernel match the mesh, and keeps it so.

One task waits for the next event (the mesh, peers, the uplink, a publication,
the clock) and handles it, in a thread, before it waits again: so the kernel
gets one change at a time, and events that come meanwhile are one batch.

Only changes of the table of peers are read, and the cost of each does not
depend on the number of peers. Once in a run, at the first mesh, the kernel's
peers are listed and compared with the table: only then is it known which peers
of the kernel are unlisted for good. Peers of nodes that are away from the
cluster's store stay. Until the first mesh the kernel keeps what it has, so
traffic flows while etcd is away, and a restart interrupts nothing.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from metropolis.node import allocs
from metropolis.node.core.network.overlay import addressing, damage, keys, rotation
from metropolis.node.core.network.overlay.device import (
    Kernel,
    Links,
    OverlayError,
    PeerChange,
)
from metropolis.node.core.network.overlay.handshakes import Handshakes
from metropolis.node.core.network.overlay.kernel import LinuxKernel, own_routes
from metropolis.node.core.network.overlay.mesh import (
    Exchange,
    Identity,
    IPNetwork,
    Mesh,
    Peer,
)
from metropolis.node.core.network.overlay.peers import Index, difference
from metropolis.node.core.network.overlay.rotation import Stage, State, Surroundings
from metropolis.node.core.network.reconcile.ward import Allow, Repair
from osbase import event
from osbase.net.links import LinkState
from osbase.netlink.errors import NetlinkError
from osbase.supervisor import Context, in_thread

MTU_MIN: Final = 1280
"""Bytes. IPv6's minimum (RFC 8200, section 5)."""

OVERHEAD: Final = 80
"""Bytes that WireGuard adds to a packet, at most: 40 of IPv6, 8 of UDP, 16 of
its header and 16 of authentication."""

DEFAULT_UPLINK_MTU: Final = 1500

GRACE_S: Final = 3.0
"""Between an announced key's publication and its use, seconds: time for all
nodes to read it and to program their kernels."""

_CLOCK_CHECK_S: Final = 3600.0
"""Longest pause between readings of the system's clock, seconds."""


class Overlay:
    """`run` is the runnable. Its values may be watched by anybody:

    identity  this node's keys, for the cluster's store
    mtu       of workloads' links, bytes
    """

    def __init__(
        self,
        exchange: Exchange,
        uplink: event.Value[LinkState | None],
        *,
        state_dir: str = allocs.STATE_DIR,
        rotation_s: float | None = None,
        kernel: Kernel | None = None,
        grace_s: float = GRACE_S,
        port: int = allocs.WIREGUARD_PORT,
    ) -> None:
        """Nothing happens before `run`.

        exchange: shared with the curator. uplink: without a value, as with
        None, an MTU of 1500 is assumed. rotation_s: age at which a key is
        replaced; None: only when the mesh wants it.
        """
        self.identity = exchange.identity
        self.mtu = event.Value[int]("MTU of the overlay")
        self._mesh = exchange.mesh
        self._peers = exchange.peers
        self._published = exchange.published
        self._uplink = uplink
        self._file = keys.KeyFile(state_dir)
        self._rotation_s = rotation_s
        self._grace_s = grace_s
        self._kernel: Kernel = LinuxKernel() if kernel is None else kernel
        self._port = port
        self._current: _Run | None = None

    async def run(self, ctx: Context) -> None:
        """Run until something fails, which the next run repairs."""
        try:
            state = await in_thread(self._load, ctx)
            found = await in_thread(
                self._kernel.ensure_link,
                max(MTU_MIN, link_mtu(None, _uplink_mtu(self._uplink))),
                state.pair.private,
                self._port,
            )
            with self._peers.watch() as changes:
                self._current = _Run(self, ctx, changes, state, found)
                await self._current.run()
        finally:
            self._current = None
            await in_thread(self._kernel.close)

    name = "overlay"

    def look(self, allow: Allow) -> Sequence[Repair]:
        """See Ward: compare the kernel with its last programming. Without a
        mesh there is nothing to compare. Blocks; not for the event loop.
        """
        life = self._current
        if life is None:
            return ()
        asked = asyncio.run_coroutine_threadsafe(life.look(allow), life.loop)
        return asked.result()

    def _load(self, ctx: Context) -> State:
        try:
            state = self._file.load()
        except keys.DamagedError as error:
            aside = self._file.put_aside()
            ctx.logger.error("key is damaged, a new one is made (old: %s): %s", aside, error)
            state = None
        if state is None:
            state = State(keys.generate(), 0, int(time.time()))
            self._file.store(state)
        return state


class _Run:
    """The state of one run of the overlay; it ends with the run."""

    def __init__(
        self,
        overlay: Overlay,
        ctx: Context,
        changes: event.TableWatcher[str, Peer],
        state: State,
        found: int | None,
    ) -> None:
        """found: MTU of the link, if it existed already."""
        self._overlay = overlay
        self._kernel = overlay._kernel
        self._ctx = ctx
        self._log = ctx.logger
        self._changes = changes
        self._state = state
        self._mesh = Mesh()
        self._index: Index | None = None  # None: no mesh yet
        self._unlisted_peers: dict[bytes, frozenset[IPNetwork]] = {}  # public keys: allowed
        self._found = found is not None
        self._size = found or 0
        self._uplink_mtu = None if found is None else found + OVERHEAD
        self._graced_at = 0.0  # monotonic
        self._handshakes = Handshakes(overlay._kernel, ctx.logger)
        self.loop = asyncio.get_running_loop()
        self._asked: asyncio.Queue[_Look] = asyncio.Queue()
        self._answers: set[asyncio.Future[Sequence[Repair]]] = set()
        self._ended = False

    async def run(self) -> None:
        """See Overlay.run."""
        overlay = self._overlay
        sources: dict[str, tuple[_Get, _Handle]] = {
            # Before the mesh, which lists the absent nodes.
            "peers": (self._changes.get, self._on_peers),
            "mesh": (overlay._mesh.watch().get, self._on_mesh),
            "uplink": (overlay._uplink.watch().get, self._on_uplink),
            "published": (overlay._published.watch().get, self._on_published),
            "look": (self._asked.get, self._on_look),
        }
        waiting: dict[str, asyncio.Task[Any]] = {}
        if self._found:
            overlay.mtu.set(self._size)
        await self._resize()
        overlay.identity.set(rotation.identity(self._state))
        self._ctx.signal_healthy()
        try:
            while True:
                for name, (get, _) in sources.items():
                    # Changes before the first mesh are part of the comparison.
                    if name not in waiting and (name != "peers" or self._index is not None):
                        waiting[name] = asyncio.create_task(get(), name=f"overlay waits for {name}")
                await asyncio.wait(
                    waiting.values(),
                    timeout=self._timeout(),
                    return_when=asyncio.FIRST_COMPLETED,
                )
                done = {name: task for name, task in waiting.items() if task.done()}
                for name, (_, handle) in sources.items():
                    if name in done:
                        del waiting[name]
                        await handle(done[name].result())
                await self._rotate()
                if self._index is not None:
                    await self._handshakes.look(self._index.entries)
        finally:
            for task in waiting.values():
                task.cancel()
            await asyncio.gather(*waiting.values(), return_exceptions=True)
            self._ended = True
            for answer in self._answers:
                if not answer.done():
                    answer.set_result(())

    # --- Peers, addresses, routes ---------------------------------------------

    async def _on_mesh(self, mesh: Mesh) -> None:
        self._mesh = mesh
        if self._index is None:
            # Later changes are both in the copy and reported again.
            self._changes.take()
            index = Index()
            index.change(self._overlay._peers.copy())
            device = await in_thread(self._kernel.device)
            self._index = index
            absent = frozenset(mesh.absent)
            self._unlisted_peers = {
                key: peer.allowed
                for key, peer in device.peers.items()
                if key not in index.entries and peer.allowed and peer.allowed <= absent
            }
            known = {key: it for key, it in device.peers.items() if key not in self._unlisted_peers}
            await self._apply(difference(known, index.entries))
        elif self._unlisted_peers:
            await self._remove_unlisted_peers(frozenset(mesh.absent))
        await in_thread(self._reconcile_links, addressing.wanted(mesh))
        await self._resize()

    async def _remove_unlisted_peers(self, absent: frozenset[IPNetwork]) -> None:
        """Remove peers of nodes that were away when this run began, and now are
        neither away nor listed.
        """
        parted = {key for key, allowed in self._unlisted_peers.items() if not allowed <= absent}
        if not parted:
            return
        if changed := self._changes.take():
            await self._on_peers(changed)
        assert self._index is not None, "unlisted peers are found by it"
        gone = [key for key in parted if key not in self._index.entries]
        await self._apply([PeerChange(key, remove=True) for key in gone])
        for key in parted:
            del self._unlisted_peers[key]

    async def _on_peers(self, changed: Mapping[str, Peer | None]) -> None:
        assert self._index is not None, "not waited for before"
        changes = self._index.change(changed)
        await self._apply(changes)
        # A known peer without prefixes is the next key of a rotation.
        moved = [one.public_key for one in changes if one.prompt and one.endpoint is None]
        # Its handshake may have come earlier.
        self._handshakes.check(moved, self._state.pair.public, since_ns=1)

    async def _apply(self, changes: list[PeerChange]) -> None:
        assert self._index is not None, "made before"
        begun = time.monotonic()
        self._handshakes.begun(change.public_key for change in changes if change.prompt)
        await in_thread(self._kernel.apply, changes)
        removed = sum(change.remove for change in changes)
        self._log.info(
            "%s peers set, %s removed, %s in all, in %.0f ms",
            f"{len(changes) - removed:,}",
            f"{removed:,}",
            f"{len(self._index.entries):,}",
            (time.monotonic() - begun) * 1000,
        )

    def _reconcile_links(self, wanted: Links) -> None:
        add, remove = addressing.difference(self._kernel.links(), wanted)
        if (add, remove) != (Links(), Links()):
            self._kernel.change_links(add, remove)

    # --- Damage ---------------------------------------------------------------

    async def look(self, allow: Allow) -> Sequence[Repair]:
        """Have the task compare, between two other events."""
        if self._ended:
            return ()
        answer: asyncio.Future[Sequence[Repair]] = self.loop.create_future()
        self._answers.add(answer)
        self._asked.put_nowait(_Look(allow, answer))
        try:
            return await answer
        finally:
            self._answers.discard(answer)

    async def _on_look(self, look: _Look) -> None:
        repairs = await in_thread(self._repair, look.allow) if self._index is not None else ()
        if not look.answer.done():
            look.answer.set_result(repairs)

    def _repair(self, allow: Allow) -> Sequence[Repair]:
        assert self._index is not None, "looked at before"
        aim = damage.Aim(
            max(self._size, MTU_MIN),
            self._state.pair.public,
            self._state.pair.private,
            self._overlay._port,
            self._index.entries,
            frozenset(self._unlisted_peers),
            addressing.wanted(self._mesh),
        )
        repairs: list[Repair] = []
        try:
            for key, what, put_back in damage.look(self._kernel, aim):
                if not allow(key):
                    repairs.append(Repair(key, what, left=True))
                    continue
                try:
                    put_back()
                except (NetlinkError, OverlayError) as error:
                    repairs.append(Repair(key, what, error=str(error)))
                else:
                    repairs.append(Repair(key, what))
        except OverlayError as error:
            # The link vanished meanwhile; the next look reports that.
            repairs.append(Repair("link overlay", "the overlay was gone", error=str(error)))
        return repairs

    # --- MTU ------------------------------------------------------------------

    async def _on_uplink(self, _: LinkState | None) -> None:
        await self._resize()

    async def _resize(self) -> None:
        """Set the MTU. An existing link keeps its MTU until the mesh is known,
        since an earlier run knew the mesh.
        """
        if self._found and self._index is None:
            return
        uplink = _uplink_mtu(self._overlay._uplink)
        if uplink is None and self._size:
            # The last MTU stays without an uplink, within the configured one.
            uplink = self._uplink_mtu
        self._uplink_mtu = uplink
        size = link_mtu(self._mesh.mtu, uplink)
        if size == self._size:
            return
        if size < MTU_MIN:
            self._log.error(
                "MTU %d (uplink %s, asked for %s) is below what IPv6 needs; it is %d, and large "
                "packets will be lost",
                size,
                uplink,
                self._mesh.mtu,
                MTU_MIN,
            )
        await in_thread(self._kernel.set_mtu, max(size, MTU_MIN))
        self._size = size
        self._overlay.mtu.set(max(size, MTU_MIN))

    # --- Keys -----------------------------------------------------------------

    async def _on_published(self, _: Identity) -> None:
        """Do nothing: _rotate reads the value."""

    def _surroundings(self) -> Surroundings:
        return Surroundings(
            self._overlay._published.peek(None),
            self._mesh.wanted_key_epoch,
            int(time.time()),
            self._overlay._rotation_s,
            graced=time.monotonic() >= self._graced_at,
        )

    def _timeout(self) -> float | None:
        """Return the seconds until the next timed work; None: there is none."""
        times = (self._handshakes.time_remaining(), self._rotation_timeout())
        known = [seconds for seconds in times if seconds is not None]
        return max(0.0, min(known)) if known else None

    def _rotation_timeout(self) -> float | None:
        if self._state.stage is Stage.GRACE:
            return self._graced_at - time.monotonic()
        interval = self._overlay._rotation_s
        if self._state.stage is not Stage.STEADY or interval is None:
            return None
        left = self._state.made_s + interval - time.time()
        # If the rotation is overdue, it waits for something else.
        return min(left + 1, _CLOCK_CHECK_S) if left > 0 else None

    async def _rotate(self) -> None:
        """Take all steps that are due; store each before it is published."""
        while (what := rotation.due(self._state, surroundings := self._surroundings())) is not None:
            fresh = keys.generate()
            new = rotation.step(
                self._state,
                what,
                fresh=fresh,
                wanted_epoch=surroundings.wanted_epoch,
                now_s=surroundings.now_s,
            )
            await in_thread(self._overlay._file.store, new)
            self._state = new
            self._log.info("key of epoch %d: %s", new.epoch, new.stage.value)
            if new.stage is Stage.GRACE:
                self._graced_at = time.monotonic() + self._overlay._grace_s
            if new.stage is Stage.STEADY:
                begun_ns = time.time_ns()
                prompted = await in_thread(self._handshakes.use_key, new.pair.private)
                self._handshakes.check(prompted, new.pair.public, begun_ns)
            self._overlay.identity.set(rotation.identity(new))


@dataclass(frozen=True)
class _Look:
    """A ward's look, and the future that gets its result."""

    allow: Allow
    answer: asyncio.Future[Sequence[Repair]]


type _Get = Callable[[], Coroutine[None, None, Any]]
type _Handle = Callable[[Any], Coroutine[None, None, None]]


def link_mtu(asked: int | None, uplink: int | None) -> int:
    """Return the overlay's MTU; it may be too small. Pure."""
    fits = (DEFAULT_UPLINK_MTU if uplink is None else uplink) - OVERHEAD
    return fits if asked is None else min(asked, fits)


def _uplink_mtu(uplink: event.Value[LinkState | None]) -> int | None:
    link = uplink.peek(None)
    return None if link is None else link.mtu


def held_prefixes() -> tuple[IPNetwork, ...]:
    """Return the prefixes that this node holds by its kernel: those of the last
    mesh, until a reboot. Blocks. Raises NetlinkError.
    """
    return addressing.held(own_routes())


def held_networks() -> tuple[IPNetwork, ...]:
    """Return the cluster's pod networks as the kernel has them, as above."""
    return addressing.networks(own_routes())
