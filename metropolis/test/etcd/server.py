# SPDX-License-Identifier: Apache-2.0
"""One etcd server as a child of the test."""

import asyncio
import contextlib
import os
import shutil
import socket
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from metropolis.test.etcd.certificates import Authority, Credentials

_START_S: Final = 60.0
_SERVING: Final = b"serving client traffic securely"


class EtcdFailed(Exception):
    """etcd or one of its tools failed; the text ends with its output."""


class Etcd:
    """An etcd server, as a context manager. Files are below `directory`."""

    def __init__(
        self,
        directory: Path,
        addresses: Sequence[str] = ("127.0.0.1",),
        options: Sequence[str] = (),
        certified: Sequence[str] = (),
    ) -> None:
        """addresses: where it listens, IPv4 or IPv6; the port stays the same
        over restarts. options: further arguments. certified: further addresses
        in its certificate.
        """
        self.authority = Authority(directory / "pki")
        self._directory = directory
        self._options = tuple(options)
        self._names = [*addresses, *certified], ["localhost"]
        self._server = self.authority.server("server", *self._names)
        self.client: Credentials = self.authority.client("client")
        self._port, peer = _free_ports(2)
        self.endpoints: tuple[str, ...] = ()
        self.move(*addresses)
        self._peer = f"http://127.0.0.1:{peer}"
        self._process: asyncio.subprocess.Process | None = None
        self._reading: asyncio.Task[None] | None = None
        self._lives = 0
        self._data = directory / "data-0"

    async def certify(self, authority: Authority) -> None:
        """Kill it, and start it with certificates of another authority, the
        only one it then trusts; `client` is a certificate of it.
        """
        await self.kill()
        self.authority = authority
        self._server = authority.server("server", *self._names)
        self.client = authority.client("client")
        await self.start()

    @property
    def endpoint(self) -> str:
        """Return the first of its endpoints, "HOST:PORT"."""
        return self.endpoints[0]

    @property
    def running(self) -> bool:
        """Return whether it was started, and not ended by us."""
        return self._process is not None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.kill()

    def move(self, *addresses: str) -> None:
        """Listen at other addresses from the next start on."""
        hosts = [f"[{one}]" if ":" in one else one for one in addresses]
        self.endpoints = tuple(f"{host}:{self._port}" for host in hosts)

    async def start(self) -> None:
        """Start it with its data; return when it serves."""
        assert self._process is None, "it runs"
        self._lives += 1
        urls = ",".join(f"https://{endpoint}" for endpoint in self.endpoints)
        self._process = await asyncio.create_subprocess_exec(
            "setpriv", "--pdeathsig", "KILL", _find("etcd"),
            "--name", "test", "--data-dir", str(self._data),
            "--listen-client-urls", urls, "--advertise-client-urls", urls,
            "--listen-peer-urls", self._peer, "--initial-advertise-peer-urls", self._peer,
            "--initial-cluster", f"test={self._peer}",
            "--client-cert-auth", "--trusted-ca-file", str(self._server.ca),
            "--cert-file", str(self._server.cert), "--key-file", str(self._server.key),
            "--unsafe-no-fsync", *self._options,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
            limit=1 << 20,
        )  # fmt: skip
        serving = asyncio.Event()
        self._reading = asyncio.create_task(self._read(self._process.stderr, serving))
        started = asyncio.create_task(serving.wait())
        try:
            await asyncio.wait(
                {started, self._reading}, timeout=_START_S, return_when=asyncio.FIRST_COMPLETED
            )
        except BaseException:
            await self.kill()
            raise
        finally:
            started.cancel()
        if not serving.is_set():
            await self.kill()
            said = self._log_path.read_text(errors="replace")[-3000:]
            raise EtcdFailed(f"etcd does not serve: {said}")

    async def stop(self) -> None:
        """Let it end by itself, if it runs. Takes seconds when clients have
        streams.
        """
        await self._end("terminate")

    async def kill(self) -> None:
        """kill -9, if it runs."""
        await self._end("kill")

    async def snapshot(self, path: Path) -> None:
        """Write its data as it is now to a new file."""
        await self.etcdctl("snapshot", "save", str(path))

    async def restore(self, path: Path, *, token: str = "etcd-cluster") -> None:
        """Kill it, and start it with the data of a snapshot. token: another one
        gives another cluster id.
        """
        await self.kill()
        self._data = self._directory / f"data-{self._lives}"
        await _run(
            _find("etcdutl"), "snapshot", "restore", str(path), "--data-dir", str(self._data),
            "--name", "test", "--initial-cluster", f"test={self._peer}",
            "--initial-advertise-peer-urls", self._peer, "--initial-cluster-token", token,
        )  # fmt: skip
        await self.start()

    async def wipe(self) -> None:
        """Kill it, start it again without any data."""
        await self.kill()
        self._data = self._directory / f"data-{self._lives}"
        await self.start()

    async def etcdctl(self, *arguments: str) -> str:
        """Run etcdctl; return its output. Raises EtcdFailed."""
        return await _run(
            _find("etcdctl"), "--endpoints", f"https://{self.endpoint}",
            "--cacert", str(self.client.ca), "--cert", str(self.client.cert),
            "--key", str(self.client.key), *arguments,
        )  # fmt: skip

    @property
    def _log_path(self) -> Path:
        return self._directory / "etcd.log"

    async def _end(self, how: str) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            getattr(process, how)()
        await process.wait()
        if self._reading is not None:
            await self._reading

    async def _read(self, lines: asyncio.StreamReader | None, serving: asyncio.Event) -> None:
        missing = len(self.endpoints)
        with self._log_path.open("ab", buffering=0) as log:
            while lines is not None and (line := await lines.readline()):
                log.write(line)
                missing -= _SERVING in line
                if missing <= 0:
                    serving.set()


async def _run(*command: str) -> str:
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, said = await process.communicate()
    if process.returncode:
        name = os.path.basename(command[0])
        raise EtcdFailed(f"{name}: {said.decode(errors='replace').strip()}")
    return out.decode()


def _find(program: str) -> str:
    path = shutil.which(program)
    if path is None:
        raise EtcdFailed(f"{program} not found; run inside the devroot (./bazelw)")
    return path


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        socks = [stack.enter_context(socket.socket()) for _ in range(count)]
        for sock in socks:
            sock.bind(("127.0.0.1", 0))
        return [sock.getsockname()[1] for sock in socks]
