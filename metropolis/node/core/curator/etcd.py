# SPDX-License-Identifier: Apache-2.0
"""etcd, as far as the curator and metroctl need it: a thin asyncio client.

    async with await dial(endpoints, files) as etcd:
        listing = await etcd.list(keys.ROOT)
        async for batch in etcd.watch(keys.ROOT, listing.revision + 1):

A connection has one endpoint; `dial` tries several. This module repeats no
call: after an EtcdError the outcome of a transaction is unknown, and its caller
reads the state. All calls except streams have a deadline. Calls fail on a
member that has lost its quorum (etcd's `hasleader`), rather than hang.

Why not the etcd3 package of PyPI: it hides that a watch was interrupted, which
the curator must know.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Self

import grpc
import grpc.aio

from metropolis.node.core.curator import credentials, keys
from metropolis.node.core.curator.credentials import CredentialsError, Files
from metropolis.node.core.curator.directory import Entry, Event, Removal
from metropolis.node.core.curator.records import MAX_VALUE
from metropolis.node.core.curator.transaction import Transaction
from osbase.supervisor import in_thread
from third_party.etcd import kv_pb2, rpc_pb2, rpc_pb2_grpc

_DEADLINE_S: Final = 5.0
_PAGE: Final = 500
_MAX_MESSAGE: Final = 8 << 20
"""Bytes; above etcd's largest value and request (1.5 MiB)."""

_NEEDS_LEADER: Final = (("hasleader", "true"),)

_OPTIONS: Final = (
    # A peer that vanishes silently is noticed within 15 s. etcd allows a
    # ping every 5 s (--grpc-keepalive-min-time).
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.max_receive_message_length", _MAX_MESSAGE),
    ("grpc.enable_http_proxy", 0),
    # Otherwise channels of a process share connections, and their back-off.
    ("grpc.use_local_subchannel_pool", 1),
)


class EtcdError(Exception):
    """A call failed: endpoint, operation, reason. Its outcome is unknown."""


class Compacted(EtcdError):
    """The revision is no longer there: list again."""


class LeaseGone(EtcdError):
    """The lease has ended."""


@dataclass(frozen=True)
class Status:
    """The cluster that answers, and its newest revision."""

    cluster_id: int
    revision: int


@dataclass(frozen=True)
class Listing:
    """All entries at one revision."""

    cluster_id: int
    revision: int
    entries: tuple[Entry, ...]


@dataclass(frozen=True)
class Batch:
    """All changes up to a revision; empty if only the revision advanced."""

    revision: int
    events: tuple[Event, ...]


async def dial(endpoints: Sequence[str], files: Files, *, deadline_s: float = _DEADLINE_S) -> Etcd:
    """Connect to the first endpoint that answers; read the files first.

    Raises CredentialsError, or EtcdError with the reason for each endpoint.
    """
    read = await in_thread(credentials.read, files)
    return await connect(endpoints, read, deadline_s=deadline_s)


async def connect(
    endpoints: Sequence[str], read: credentials.Credentials, *, deadline_s: float = _DEADLINE_S
) -> Etcd:
    """Connect to the first endpoint that answers. Raises EtcdError with the
    reason for each.
    """
    failures: list[str] = []
    for endpoint in endpoints:
        etcd = Etcd(endpoint, read, deadline_s)
        try:
            etcd.greeting = await etcd.status()
        except EtcdError as error:
            failures.append(str(error))
            await etcd.close()
        except BaseException:
            await etcd.close()
            raise
        else:
            return etcd
    why = (await in_thread(credentials.judge, read)).problem
    # Sorted: by the text, the caller sees whether something has changed.
    raise EtcdError("; ".join([*sorted(failures), *([why] if why else [])]))


class Etcd:
    """A connection to one endpoint. Made by dial; close it.

    greeting: the status at the time of connecting.
    """

    greeting = Status(0, 0)

    def __init__(self, endpoint: str, read: credentials.Credentials, deadline_s: float) -> None:
        self.endpoint = endpoint
        self._files = read.files
        self._deadline = deadline_s
        self._channel = grpc.aio.secure_channel(
            endpoint, grpc.ssl_channel_credentials(read.ca, read.key, read.cert), _OPTIONS
        )
        # The stubs' types are those of both kinds of channels.
        self._kv: Any = rpc_pb2_grpc.KVStub(self._channel)
        self._lease: Any = rpc_pb2_grpc.LeaseStub(self._channel)
        self._watch: Any = rpc_pb2_grpc.WatchStub(self._channel)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """End all calls and the connection."""
        await self._channel.close()

    async def status(self) -> Status:
        """Read the cluster's id and revision, from a quorum."""
        request = rpc_pb2.RangeRequest(key=keys.CLUSTER, keys_only=True)
        response = await self._call("status", self._kv.Range(request, **self._how()))
        return Status(response.header.cluster_id, response.header.revision)

    async def list(self, prefix: bytes) -> Listing:
        """Read all keys that begin with `prefix`, in pages, at one revision.

        Raises Compacted when that revision was compacted meanwhile.
        """
        page, revision, cluster_id = _PAGE, 0, 0
        start, end = prefix, keys.end(prefix)
        entries: list[Entry] = []
        while True:
            request = rpc_pb2.RangeRequest(key=start, range_end=end, limit=page, revision=revision)
            try:
                response = await self._call("list", self._kv.Range(request, **self._how()))
            except _TooLarge:
                # Somebody stored large values; a single one always fits.
                if page == 1:
                    raise
                page = max(1, page // 8)
                continue
            if not revision:
                revision, cluster_id = response.header.revision, response.header.cluster_id
            entries += map(_entry, response.kvs)
            if not response.more or not response.kvs:
                return Listing(cluster_id, revision, tuple(entries))
            start = response.kvs[-1].key + b"\0"

    async def commit(self, transaction: Transaction) -> int | None:
        """Commit; return its revision, or None when a comparison fails.

        Raises LeaseGone.
        """
        operations = [
            rpc_pb2.RequestOp(
                request_put=rpc_pb2.PutRequest(key=put.key, value=put.value, lease=put.lease)
            )
            for put in transaction.puts
        ] + [
            rpc_pb2.RequestOp(request_delete_range=rpc_pb2.DeleteRangeRequest(key=key))
            for key in transaction.deletes
        ]
        request = rpc_pb2.TxnRequest(
            compare=[
                rpc_pb2.Compare(
                    result=rpc_pb2.Compare.EQUAL,
                    target=rpc_pb2.Compare.MOD,
                    key=key,
                    mod_revision=revision,
                )
                for key, revision in transaction.compare.items()
            ]
            + [
                rpc_pb2.Compare(
                    result=rpc_pb2.Compare.EQUAL, target=rpc_pb2.Compare.VALUE, key=key, value=value
                )
                for key, value in transaction.values.items()
            ],
            success=operations,
        )
        response = await self._call("commit", self._kv.Txn(request, **self._how()))
        return response.header.revision if response.succeeded else None

    async def grant(self, ttl_s: int) -> int:
        """Make a lease; returns its id."""
        request = rpc_pb2.LeaseGrantRequest(TTL=ttl_s)
        response = await self._call("grant a lease", self._lease.LeaseGrant(request, **self._how()))
        if response.error or not response.ID:
            raise EtcdError(f"{self.endpoint}: grant a lease: {_line(response.error)}")
        return int(response.ID)

    async def keep_alive(self, lease: int, every_s: float) -> None:
        """Keep a lease alive until cancelled. Raises LeaseGone."""
        call = self._lease.LeaseKeepAlive(metadata=_NEEDS_LEADER)
        request = rpc_pb2.LeaseKeepAliveRequest(ID=lease)
        try:
            while True:
                try:
                    async with asyncio.timeout(self._deadline):
                        await self._call("keep a lease", call.write(request))
                        response = await self._call("keep a lease", call.read())
                except TimeoutError as error:
                    raise EtcdError(f"{self.endpoint}: keep a lease: no answer") from error
                if response is grpc.aio.EOF:
                    raise EtcdError(f"{self.endpoint}: keep a lease: the stream ended")
                if response.TTL <= 0:
                    raise LeaseGone(f"{self.endpoint}: keep a lease: {lease:x} has ended")
                await asyncio.sleep(every_s)
        finally:
            call.cancel()

    async def watch(self, prefix: bytes, start: int) -> AsyncGenerator[Batch]:
        """Yield every change of keys that begin with `prefix`, from revision
        `start` on, without end. Raises Compacted when that is compacted.

        All changes of a revision are in one batch: fragments are joined.
        """
        call = self._watch.Watch(metadata=_NEEDS_LEADER)
        create = rpc_pb2.WatchCreateRequest(
            key=prefix,
            range_end=keys.end(prefix),
            start_revision=start,
            progress_notify=True,
            fragment=True,
        )
        events: list[Event] = []
        revision = 0
        try:
            await self._call("watch", call.write(rpc_pb2.WatchRequest(create_request=create)))
            while True:
                response = await self._call("watch", call.read())
                if response is grpc.aio.EOF:
                    raise EtcdError(f"{self.endpoint}: watch: the stream ended")
                if response.compact_revision:
                    raise Compacted(
                        f"{self.endpoint}: watch: revision {start} was compacted, "
                        f"the oldest is {response.compact_revision}"
                    )
                if response.canceled:
                    reason = _line(response.cancel_reason)
                    raise EtcdError(f"{self.endpoint}: watch: cancelled: {reason}")
                for event in response.events:
                    events.append(_event(event))
                    revision = event.kv.mod_revision
                if response.fragment or response.created:
                    continue
                # The header's revision may be ahead of events still to come;
                # without events (progress) it is not.
                yield Batch(revision or response.header.revision, tuple(events))
                events.clear()
                revision = 0
        finally:
            call.cancel()

    def _how(self) -> dict[str, Any]:
        return {"timeout": self._deadline, "metadata": _NEEDS_LEADER}

    async def _call(self, operation: str, call: Awaitable[Any]) -> Any:
        try:
            return await call
        except grpc.aio.AioRpcError as error:
            raise self._error(operation, error) from error
        except asyncio.InvalidStateError as error:  # a write to a call that ended
            raise EtcdError(f"{self.endpoint}: {operation}: the stream ended") from error

    def _error(self, operation: str, error: grpc.aio.AioRpcError) -> EtcdError:
        detail = _line(error.details() or "")
        code = error.code()
        text = f"{self.endpoint}: {operation}: {code.name}: {detail}"
        if "CERTIFICATE_VERIFY_FAILED" in detail or "Hostname Verification" in detail:
            text = (
                f"{self.endpoint}: {operation}: etcd's certificate is not one that "
                f"{self._files.ca} vouches for, for this address ({detail})"
            )
        # Only the text says which error of etcd's it is: several share a gRPC
        # code (api/v3rpc/rpctypes/error.go), without details.
        if code is grpc.StatusCode.OUT_OF_RANGE and "compacted" in detail:
            return Compacted(text)
        if code is grpc.StatusCode.NOT_FOUND and "lease" in detail:
            return LeaseGone(text)
        if code is grpc.StatusCode.RESOURCE_EXHAUSTED and "larger than max" in detail:
            return _TooLarge(text)
        return EtcdError(text)


class _TooLarge(EtcdError):
    pass


def _entry(pair: kv_pb2.KeyValue) -> Entry:
    return Entry(pair.key, pair.value[: MAX_VALUE + 1], pair.mod_revision, pair.lease)


def _event(event: kv_pb2.Event) -> Event:
    return Removal(event.kv.key) if event.type == kv_pb2.Event.DELETE else _entry(event.kv)


def _line(text: str) -> str:
    """Return etcd's or gRPC's text, printable and short."""
    printable = "".join(char if char.isprintable() else " " for char in text)
    return printable if len(printable) <= 300 else printable[:300] + "..."


__all__ = [
    "Batch", "Compacted", "CredentialsError", "Etcd", "EtcdError", "LeaseGone", "Listing",
    "Status", "dial",
]  # fmt: skip
