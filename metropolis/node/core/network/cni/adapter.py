# SPDX-License-Identifier: Apache-2.0
"""CNI commands carried out by the engine, and the rules between them.

- An ADD is undone if nobody received its answer: a runtime that killed the
  plugin need not send a DEL (containerd#12926). Only what this very ADD created
  is removed, and ADD and DEL of one container wait for each other, so a retry
  sees either the attachment or nothing.
- An ADD whose caller has gone while it waited is not begun.
- GC is the engine's Collect, limited to attachments of this name's network:
  a runtime's list is of one network, so others may belong to another, or to
  callers that do not use CNI. Attachments without an owner, from before owners
  were recorded, stay, too. Every ADD counts as live from its arrival here until
  its answer was received. Runtimes must not run GC beside an ADD at all; it is
  safe even if one does. It cannot detect an ADD that was answered after the
  runtime wrote its list and before GC came.
- STATUS fails if an ADD would not be served, also when no address is left for
  it. The API's Status does not go so far: a full node is not broken.
- CHECK is the engine's Check, from inside the container's namespace, and a
  comparison of prevResult with the engine's attachment. Host ports are compared
  with what ADD asked for, whatever CHECK's runtimeConfig has.
- Keys of a configuration that nothing here knows are ignored, as CNI has it,
  and logged once for each network.
- Repeating an ADD returns the existing attachment, as over gRPC.

The engine blocks; its calls run in threads of the given executor, except
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
from metropolis.node.core.network.cni.names import in_words_of_cni
from metropolis.node.core.network.cni.protocol import Add, Check, CniError, Code, Del, Gc
from metropolis.node.core.network.cni.wire import ANSWER_MAX, Answer, Request
from metropolis.node.core.network.workloads import errors
from metropolis.node.core.network.workloads.model import (
    AttachIntent,
    Attachment,
    Checked,
    Collected,
)
from metropolis.node.core.network.workloads.validate import several, show
from osbase.supervisor import in_thread

_logger = logging.getLogger(__name__)

_SMALL = 64 << 10  # stdin that is parsed in the event loop, bytes
_REPORTED_MAX = 1024  # networks and keys; a further one is logged again some day

# The keys of stdin that an ADD uses; all else comes from the environment.
_CONFIGURED = frozenset(
    {"bandwidth", "requested_ip", "requested_mac", "port_mapping", "mtu", "routes"}
)

# Sends the answer to the caller; False if it certainly did not arrive.
type Deliver = Callable[[Answer], Awaitable[bool]]


class Engine(Protocol):
    """The methods of workloads.engine.Engine that are used here."""

    def attach(self, intent: AttachIntent, /) -> Attachment:
        """Make an interface, or return the existing one."""

    def detach(
        self, workload_id: str, netns_path: str, if_name: str, /, *, until_gone: bool
    ) -> None:
        """Remove it, if it exists. until_gone: return when its link is gone."""

    def failed(
        self, what: str, workload_id: str, if_name: str, error: Exception, began: float
    ) -> None:
        """Log a call that failed before it came to attach or detach."""

    def list(self, workload_id: str = "") -> Sequence[Attachment]:
        """Return the attachments of one workload or of all."""

    def check(self, workload_id: str, if_name: str = "", netns_path: str = "") -> Sequence[Checked]:
        """Compare with the kernel; raise NotAttached if there is none."""

    def protect(self, workload_id: str) -> AbstractContextManager[None]:
        """Keep Collect from a workload's attachments for a `with` block."""

    def collect(
        self,
        is_live: Callable[[str, str], bool],
        *,
        of_owner: Callable[[str], bool],
        until_gone: bool,
    ) -> Collected:
        """Remove attachments that are not live, of owners for which `of_owner`
        is true, except those of workloads that are protected meanwhile.
        until_gone: as for `detach`.
        """

    def problems(self) -> dict[str, str]:
        """Return why no attach is served, as "attach", and other problems."""

    def check_room(self) -> None:
        """Raise Exhausted when an attach would get no address."""


class Adapter:
    """Serves an execution per `serve` call, concurrently, on one event loop.

    patience_s: how long an operation waits for another one on its container,
    seconds; as long as the shim's limit for everything.
    """

    patience_s = 60.0

    def __init__(self, engine: Engine, executor: Executor) -> None:
        """Make one; its owner shuts down engine and executor."""
        self._engine = engine
        self._executor = executor
        # By container id; a lock lives while somebody holds or awaits it.
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        # Networks and their unknown keys that were logged; the oldest first.
        self._reported: dict[tuple[str, str], None] = {}

    async def serve(self, request: Request, deliver: Deliver, gone: Callable[[], bool]) -> None:
        """Carry out a request and deliver its answer, for any input.

        `gone` returns whether the caller is known to have hung up.
        """
        try:
            if len(request.stdin) <= _SMALL:
                command = protocol.parse(request)
            else:
                command = await in_thread(protocol.parse, request)
        except CniError as error:
            _logger.warning("refused %s: %s", _of(request), error)
            await deliver(error.answer())
            return
        if isinstance(command, Add):
            self._report_unknown(command)
            await self._add(command, deliver, gone)
        else:
            await deliver(await self._guarded(command, self._run(command)))

    def _report_unknown(self, add: Add) -> None:
        """Log the keys that are ignored, unless they were logged."""
        new = [key for key in add.unknown if (add.network, key) not in self._reported]
        if not new:
            return
        _logger.warning(
            "network %s: ignored keys that are not known here: %s",
            show(add.network),
            several(map(show, new)),
        )
        self._reported.update(dict.fromkeys((add.network, key) for key in new))
        for oldest in list(self._reported)[:-_REPORTED_MAX]:
            del self._reported[oldest]

    async def _run(self, command: protocol.Command) -> Answer:
        match command:
            case Del():
                async with self._exclusive(command.container_id):
                    # No ADD accepts an invalid id, so nothing is to delete;
                    # but runtimes also delete what they could not add.
                    with contextlib.suppress(errors.InvalidArgument):
                        await self._detach(command.container_id, command.netns, command.if_name)
            case Check():
                await self._check(command)
            case Gc():
                await self._gc(command)
            case protocol.Status():
                await in_thread(self._status)
            case protocol.Version():
                return Answer(protocol.encode(result.versions(command.version)))
            case Add():
                raise AssertionError("an ADD has its own way")
        return Answer(b"")

    async def _guarded(self, command: protocol.Command, running: Awaitable[Answer]) -> Answer:
        """Turn every error into an answer in the command's version."""
        name = type(command).__name__.upper()
        try:
            return await running
        except CniError as failure:
            error = failure
        except errors.WorkloadError as failure:
            error = _from_engine(failure)
            if isinstance(command, Add | Del):
                error.version = command.version
                return error.answer()  # the engine has logged it
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
        async with self._exclusive(add.container_id):
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
        try:
            before = _find(self._engine.list(add.container_id), add.if_name)
        except errors.Unavailable as error:
            self._engine.failed("ADD", *add.key, error, time.perf_counter())
            raise
        intent = AttachIntent(
            workload_id=add.container_id,
            netns_path=add.netns,
            if_name=add.if_name,
            requested_ips=add.requested_ips,
            requested_mac=add.requested_mac,
            owner=protocol.owner_of(add.network),
            parts=add.parts,
            requested_mtu=add.requested_mtu,
            routes=add.routes,
            identity=add.identity,
        )
        attachment = self._engine.attach(intent)
        return attachment, before is None or before.host_ifindex != attachment.host_ifindex

    async def _detach(self, container_id: str, netns: str, if_name: str) -> None:
        # A plugin that runs after this one may take the name.
        await self._call(self._engine.detach, container_id, netns, if_name, until_gone=True)

    async def _check(self, check: Check) -> None:
        (checked,) = await self._call(
            self._engine.check, check.container_id, check.if_name, check.netns
        )
        found = result.differences(check, checked)
        if found:
            raise CniError(Code.CHECK_FAILED, "not as it was added", "; ".join(found)[:2000])

    def _status(self) -> None:
        """Check STATUS. Not in the executor, where it might wait."""
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
        collected = await self._call(
            self._engine.collect, is_live, of_owner=owner.__eq__, until_gone=True
        )
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
    async def _exclusive(self, container_id: str) -> AsyncIterator[None]:
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
    details = in_words_of_cni(str(error))
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
        case errors.FailedPrecondition():
            return CniError(Code.IN_USE, "a process of the node has it", details)
        case errors.Exhausted():
            return CniError(Code.EXHAUSTED, "no address is left", details)
        case _:
            return CniError(Code.KERNEL_REFUSED, "the kernel refused", details)


def _of(request: Request) -> str:
    """Name what a request is about, whatever it has."""
    values = [request.env.get(f"CNI_{one}", "") for one in ("COMMAND", "CONTAINERID", "IFNAME")]
    return " ".join(show(value) for value in values if value)
