# SPDX-License-Identifier: Apache-2.0
"""CNI commands carried out by the engine, and what must hold between them.

- An ADD whose answer nobody received is taken back: a runtime that killed the
  plugin need not send a DEL (containerd#12926). Only what this very ADD created
  is removed, and ADD and DEL of one container wait for each other, so a retry
  sees either the attachment or nothing.
- An ADD whose caller has gone before its turn came is not begun.
- GC is the engine's Collect, of what the network of this name has attached: a
  runtime's list is of one network, so what is not in it may be another's, or of
  callers that do not speak CNI. What has no owner, since it was made before
  owners were recorded, is left alone, too. Every ADD counts as live from its
  arrival here until its answer was received. Runtimes must not run GC beside an
  ADD at all; this holds even if one does. What cannot be seen from here: an ADD
  that was answered after the runtime wrote its list and before GC came.
- STATUS says whether an ADD would be served, also when no address is left for
  one. The API's Status does not go so far: a node that is full is not broken.
- CHECK is the engine's Check, from inside the container's namespace, and a
  comparison of prevResult with what the engine knows.
- Repeating an ADD returns the attachment that is there, as over gRPC.

The engine blocks; its calls run in threads of the given executor, but for
STATUS, which must not wait behind attaches.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import Executor
from contextlib import AbstractContextManager
from typing import Protocol
from weakref import WeakValueDictionary

from metropolis.node.core.network.cni import protocol, result
from metropolis.node.core.network.cni.protocol import Add, Check, CniError, Code, Del, Gc
from metropolis.node.core.network.cni.wire import ANSWER_MAX, Answer, Request
from metropolis.node.core.network.workloads import errors
from metropolis.node.core.network.workloads.model import (
    AttachIntent,
    Attachment,
    Checked,
    Collected,
)

_logger = logging.getLogger(__name__)

_SMALL = 64 << 10  # stdin that is parsed in the event loop, bytes

# What an ADD takes from stdin; all else of a request is from the environment.
_CONFIGURED = frozenset({"requested_ip", "requested_mac"})

# Gives the answer to the caller; False if it is known not to have arrived.
type Deliver = Callable[[Answer], Awaitable[bool]]


class Engine(Protocol):
    """What is needed of workloads.engine.Engine."""

    def attach(self, intent: AttachIntent, /) -> Attachment:
        """Make an interface, or return it if it is there."""

    def detach(self, workload_id: str, netns_path: str = "", if_name: str = "") -> None:
        """Remove what there is."""

    def list(self, workload_id: str = "") -> Sequence[Attachment]:
        """Return what there is, of one workload or of all."""

    def check(self, workload_id: str, if_name: str = "", netns_path: str = "") -> Sequence[Checked]:
        """Compare with the kernel; raise NotAttached when there is nothing."""

    def protect(self, workload_id: str) -> AbstractContextManager[None]:
        """Keep Collect away from a workload for a `with` block."""

    def collect(
        self, is_live: Callable[[str, str], bool], *, of_owner: Callable[[str], bool]
    ) -> Collected:
        """Remove what is not live, of owners of which `of_owner` is true, but
        nothing of workloads that are protected at any time meanwhile.
        """

    def problems(self) -> dict[str, str]:
        """Say why no attach is served, as "attach", and what else is wrong."""

    def check_room(self) -> None:
        """Raise Exhausted when an attach would get no address."""


class Adapter:
    """Serves an execution per `serve` call, any number at once, on one loop.

    patience_s: how long an operation waits for another one on its container;
    as long as the shim does for everything.
    """

    patience_s = 60.0

    def __init__(self, engine: Engine, executor: Executor) -> None:
        """Make one; its owner shuts down engine and executor."""
        self._engine = engine
        self._executor = executor
        # By container id; a lock lives as long as somebody holds or awaits it.
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def serve(self, request: Request, deliver: Deliver, gone: Callable[[], bool]) -> None:
        """Carry out a request and deliver its answer, whatever it holds.

        `gone` tells whether the caller has been seen to hang up.
        """
        try:
            if len(request.stdin) <= _SMALL:
                command = protocol.parse(request)
            else:
                command = await asyncio.to_thread(protocol.parse, request)
        except CniError as error:
            _logger.warning("refused %s: %s", request.env.get("CNI_COMMAND", "")[:20], error)
            await deliver(error.answer())
            return
        if isinstance(command, Add):
            await self._add(command, deliver, gone)
        else:
            await deliver(await self._guarded(command, self._run(command)))

    async def _run(self, command: protocol.Command) -> Answer:
        match command:
            case Del():
                async with self._hold(command.container_id):
                    # No ADD takes what is invalid, so there is none of it; but
                    # runtimes delete also what they could not add.
                    with contextlib.suppress(errors.InvalidArgument):
                        await self._detach(command.container_id, command.netns, command.if_name)
            case Check():
                await self._check(command)
            case Gc():
                await self._gc(command)
            case protocol.Status():
                await asyncio.to_thread(self._status)
            case protocol.Version():
                return Answer(protocol.encode(result.versions(command.version)))
            case Add():
                raise AssertionError("an ADD has its own way")
        return Answer(b"")

    async def _guarded(self, command: protocol.Command, running: Awaitable[Answer]) -> Answer:
        """Turn every error into an answer of the command's version."""
        name = type(command).__name__.upper()
        try:
            return await running
        except CniError as failure:
            error = failure
        except errors.WorkloadError as failure:
            error = _from_engine(failure)
        except Exception as failure:
            _logger.exception("%s: internal error", name)
            error = CniError(Code.INTERNAL, "internal error", f"{type(failure).__name__}, see log")
        error.version = command.version
        _logger.warning("%s %s: %s", name, getattr(command, "container_id", ""), error)
        return error.answer()

    async def _add(self, add: Add, deliver: Deliver, gone: Callable[[], bool]) -> None:
        try:
            with self._engine.protect(add.container_id):
                await self._add_protected(add, deliver, gone)
        except CniError as error:
            error.version = add.version
            await deliver(error.answer())
        except errors.WorkloadError as error:
            _logger.error("ADD %s %s: not received, not taken back: %s", *add.key, error)

    async def _add_protected(self, add: Add, deliver: Deliver, gone: Callable[[], bool]) -> None:
        async with self._hold(add.container_id):
            if gone():
                _logger.warning("ADD %s %s: caller has gone, not begun", *add.key)
                return
            created = False

            async def attach() -> Answer:
                nonlocal created
                attachment, created = await self._call(self._attach, add)
                stdout = protocol.encode(result.success(add, attachment))
                if len(stdout) > ANSWER_MAX:
                    raise CniError(Code.INVALID_CONFIG, "prevResult is too large")
                return Answer(stdout)

            answer = await self._guarded(add, attach())
            delivered = await deliver(answer)
            if created and (answer.exit_code or not delivered):
                _logger.warning("ADD %s %s: not received, taken back", *add.key)
                await self._detach(add.container_id, add.netns, add.if_name)

    def _attach(self, add: Add) -> tuple[Attachment, bool]:
        """Return the attachment, and whether it is new. In a thread."""
        before = _find(self._engine.list(add.container_id), add.if_name)
        intent = AttachIntent(
            workload_id=add.container_id,
            netns_path=add.netns,
            if_name=add.if_name,
            requested_ips=add.requested_ips,
            requested_mac=add.requested_mac,
            owner=protocol.owner_of(add.network),
        )
        begin = time.monotonic()
        attachment = self._engine.attach(intent)
        took_ms = (time.monotonic() - begin) * 1000
        # //metropolis:launch shows this figure.
        _logger.info("ADD %s %s: attached in %.2f ms", *add.key, took_ms)
        return attachment, before is None or before.host_ifindex != attachment.host_ifindex

    async def _detach(self, container_id: str, netns: str, if_name: str) -> None:
        await self._call(self._engine.detach, container_id, netns, if_name)

    async def _check(self, check: Check) -> None:
        (checked,) = await self._call(
            self._engine.check, check.container_id, check.if_name, check.netns
        )
        found = result.differences(check, checked)
        if found:
            raise CniError(Code.CHECK_FAILED, "not as it was added", "; ".join(found)[:2000])

    def _status(self) -> None:
        """Not in the executor, where it might wait for attaches."""
        problems = self._engine.problems()
        if not problems:
            try:
                self._engine.check_room()
            except errors.Exhausted as error:
                raise CniError(Code.NOT_AVAILABLE, "no ADD is possible", str(error)) from error
            return
        details = "; ".join(dict.fromkeys(problems.values()))
        if problems.keys() == {"attach"}:
            raise CniError(Code.NOT_AVAILABLE, "no ADD is possible", details)
        raise CniError(Code.LIMITED, "the node's network is not as it should be", details)

    async def _gc(self, gc: Gc) -> None:
        def is_live(container_id: str, if_name: str) -> bool:
            return (container_id, if_name) in gc.valid

        owner = protocol.owner_of(gc.network)
        collected = await self._call(self._engine.collect, is_live, of_owner=owner.__eq__)
        for gone in collected.removed:
            _logger.info("GC: removed %s %s", gone.workload_id, gone.if_name)
        if collected.remaining:
            count = len(collected.remaining) + len(collected.removed)
            summary = f"{len(collected.remaining)} of {count} stale attachments remain"
            failed = [f"{a.workload_id} {a.if_name}: {why}" for a, why in collected.remaining]
            raise CniError(Code.KERNEL_REFUSED, summary, "; ".join(failed)[:2000])

    async def _call[**P, R](self, call: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run a blocking call in a thread."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._executor, lambda: call(*args, **kwargs))

    @contextlib.asynccontextmanager
    async def _hold(self, container_id: str) -> AsyncIterator[None]:
        lock = self._locks.setdefault(container_id, asyncio.Lock())
        try:
            async with asyncio.timeout(self.patience_s):
                await lock.acquire()
        except TimeoutError:
            what = f"another operation on {container_id} does not end"
            raise CniError(Code.TRY_AGAIN_LATER, "busy", what) from None
        try:
            yield
        finally:
            lock.release()


def _find(attachments: Sequence[Attachment], if_name: str) -> Attachment | None:
    return next((a for a in attachments if a.if_name == if_name), None)


def _from_engine(error: errors.WorkloadError) -> CniError:
    details = str(error)
    match error:
        case errors.Unavailable():
            return CniError(Code.TRY_AGAIN_LATER, "the network is not ready", details)
        case errors.InvalidArgument():
            if error.field in _CONFIGURED:
                return CniError(Code.INVALID_CONFIG, "the request cannot be met", details)
            what = "CNI_CONTAINERID, CNI_NETNS or CNI_IFNAME is refused"
            return CniError(Code.INVALID_ENVIRONMENT, what, details)
        case errors.NotAttached():
            return CniError(Code.UNKNOWN_CONTAINER, "not attached", details)
        case errors.NotFound():
            return CniError(Code.INVALID_ENVIRONMENT, "CNI_NETNS is no network namespace", details)
        case errors.AlreadyExists():
            return CniError(Code.ALREADY_EXISTS, "it exists already", details)
        case errors.Exhausted():
            return CniError(Code.EXHAUSTED, "no address is left", details)
        case _:
            return CniError(Code.KERNEL_REFUSED, "the kernel refused", details)
