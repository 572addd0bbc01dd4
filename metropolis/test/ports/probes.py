# SPDX-License-Identifier: Apache-2.0
"""The helper process of a namespace: it listens, and asks others.

    python -m metropolis.test.ports.probes    one request and one answer a line

A request is JSON with `do`, the answer JSON with the result:

    listen   name, sockets: [[protocol, address, port, mute], ...]
             -> errors: texts; each answers its client with the name, the
             client's address as it sees it, and the port; mute: never.
             address *: of both families, by one socket. TCP and mute: the
             connection stays open, and the listener sends back what it gets
    close    name -> {}                  end the listeners of that name
    ask      asks: [{protocol, address, port, timeout, source}, ...], all at
             once; source: address to ask from, or absent
             -> results: one `Answer` for each, as an object
    open     address, port -> {}          a TCP connection, until `shut`
    talk     -> ok: whether each open connection sends back what it gets
    shut     -> {}                       close them all
    stream   address, port, source_port, every -> {}     UDP, until `stop`
    stop     -> sent: so many datagrams; heard: {name: answers}
    heard    name -> {port: {"count", "first", "last", "sources"}} of datagrams;
             times are of CLOCK_MONOTONIC, which all processes share

It ends with its standard input.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import json
import os
import secrets
import selectors
import socket
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from ipaddress import ip_address
from typing import Any, Final

from metropolis.test.ports import sctp

_AT_ONCE: Final = 48
_AGAIN_S: Final = 0.25  # a datagram, and the ICMP error for it, may be lost
_TALK_S: Final = 3.0
_PACKET_MAX: Final = 2048
_KIND: Final = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}


@dataclass(frozen=True)
class Answer:
    """What a client saw.

    by: `answered`, `refused`, `silent`, or `error` with the errno's text. name,
    source, port: what the listener reported. ms: until then.
    """

    by: str
    name: str = ""
    source: str = ""
    port: int = 0
    error: str = ""
    ms: float = 0.0


def _resolved(address: str, port: int, kind: int) -> tuple[socket.AddressFamily, Any]:
    """Return family and socket address, with the scope of `fe80::1%eth0`."""
    found = socket.getaddrinfo(address, port, type=kind, flags=socket.AI_NUMERICHOST)[0]
    return found[0], found[4]


def _ask_tcp(address: str, port: int, timeout_s: float, source: str) -> bytes | None:
    family, target = _resolved(address, port, socket.SOCK_STREAM)
    with socket.socket(family, socket.SOCK_STREAM) as sock:
        sock.settimeout(timeout_s)
        if source:
            sock.bind((source, 0))
        sock.connect(target)
        data = b""
        while part := sock.recv(_PACKET_MAX):
            data += part
        return data


def _ask_udp(address: str, port: int, timeout_s: float, source: str) -> bytes | None:
    family, target = _resolved(address, port, socket.SOCK_DGRAM)
    end = time.monotonic() + timeout_s
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        if source:
            sock.bind((source, 0))
        sock.connect(target)
        while (now := time.monotonic()) < end:
            sock.send(b"?")
            sock.settimeout(min(_AGAIN_S, end - now))
            with contextlib.suppress(TimeoutError):
                return sock.recv(_PACKET_MAX)
    return None


def ask(protocol: str, address: str, port: int, timeout_s: float, source: str) -> Answer:
    """Ask one port; `silent` after the time limit. source: "": any address."""
    begun = time.monotonic()

    def answer(by: str, **more: Any) -> Answer:
        return Answer(by, ms=round((time.monotonic() - begun) * 1000, 2), **more)

    try:
        if protocol == "sctp":
            said = sctp.ask(ip_address(address).version, address, port, timeout_s, source)
        else:
            said = (_ask_tcp if protocol == "tcp" else _ask_udp)(address, port, timeout_s, source)
    except ConnectionRefusedError:
        return answer("refused")
    except TimeoutError:
        return answer("silent")
    except OSError as error:
        return answer("error", error=str(error))
    if said is None:
        return answer("silent")
    try:
        return answer("answered", **json.loads(said))
    except ValueError, TypeError:
        return answer("error", error=f"an answer of {said!r}")


def _asked(one: dict[str, Any]) -> Answer:
    fields = (one["protocol"], one["address"], one["port"], one["timeout"])
    return ask(*fields, one.get("source", ""))


def _talks(sock: socket.socket) -> bool:
    """Whether an open connection sends back what it gets, in time. Nothing of
    it is under way afterwards, not even a delayed acknowledgement.
    """
    text = secrets.token_bytes(16)
    try:
        sock.sendall(text)
        got = sock.recv(len(text))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
        return got == text
    except OSError:
        return False


@dataclass
class _Listener:
    """A listening socket; sctp has none of its own."""

    name: str
    protocol: str
    port: int
    mute: bool
    sock: socket.socket | None


class Listeners:
    """All listeners of the namespace; one thread serves them."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._lock = threading.Lock()
        self._listeners: list[_Listener] = []
        self._sctp: dict[tuple[str, int], str] = {}
        self._heard: dict[str, dict[int, dict[str, Any]]] = {}
        self._stacks = [sctp.Stack(version) for version in (4, 6)]
        for stack in self._stacks:
            self._selector.register(stack.socket, selectors.EVENT_READ, stack)
        threading.Thread(target=self._serve, daemon=True).start()

    def listen(self, name: str, protocol: str, address: str, port: int, mute: bool = False) -> None:
        """Listen until `close`. Raises OSError."""
        if protocol == "sctp":
            with self._lock:
                self._sctp[address.partition("%")[0], port] = name
            return
        both = address == "*"
        family, where = _resolved("::" if both else address, port, _KIND[protocol])
        sock = socket.socket(family, _KIND[protocol])
        try:
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, not both)
            if protocol == "tcp":
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(where)
            if protocol == "tcp":
                sock.listen(128)
            sock.setblocking(False)
        except BaseException:
            sock.close()
            raise
        one = _Listener(name, protocol, port, mute, sock)
        with self._lock:
            self._listeners.append(one)
            self._selector.register(sock, selectors.EVENT_READ, one)

    def close(self, name: str) -> None:
        """End the listeners of that name."""
        with self._lock:
            for one in [one for one in self._listeners if one.name == name]:
                self._forget(one)
            for key in [key for key, owner in self._sctp.items() if owner == name]:
                del self._sctp[key]
            self._heard.pop(name, None)

    def _forget(self, one: _Listener) -> None:
        assert one.sock is not None
        self._selector.unregister(one.sock)
        one.sock.close()
        self._listeners.remove(one)

    def heard(self, name: str) -> dict[int, dict[str, Any]]:
        """Return the datagrams that listeners of the name got, by port."""
        with self._lock:
            return copy.deepcopy(self._heard.get(name, {}))

    def _serve(self) -> None:
        while True:
            # A new socket is noticed at once: epoll takes it while it waits.
            for key, _ in self._selector.select(1.0):
                with self._lock, contextlib.suppress(OSError, ValueError, KeyError):
                    if isinstance(key.data, sctp.Stack):
                        self._answer_sctp(key.data)
                    elif key.data in self._listeners:
                        self._answer(key.data)

    def _answer(self, one: _Listener) -> None:
        assert one.sock is not None
        if one.protocol == "tcp":
            client, peer = one.sock.accept()
            if one.mute:
                echoing = _Listener(one.name, "echo", one.port, True, client)
                self._listeners.append(echoing)
                self._selector.register(client, selectors.EVENT_READ, echoing)
                return
            with client:
                client.sendall(self._text(one.name, peer[0], one.port))
            return
        if one.protocol == "echo":
            if data := one.sock.recv(_PACKET_MAX):
                one.sock.sendall(data)
            else:
                self._forget(one)
            return
        _, peer = one.sock.recvfrom(_PACKET_MAX)
        now = time.monotonic()
        new = {"count": 0, "first": now, "last": now, "sources": []}
        seen = self._heard.setdefault(one.name, {}).setdefault(one.port, new)
        seen["count"] += 1
        seen["last"] = now
        if peer[0] not in seen["sources"]:
            seen["sources"].append(peer[0])
        if not one.mute:
            one.sock.sendto(self._text(one.name, peer[0], one.port), peer)

    def _answer_sctp(self, stack: sctp.Stack) -> None:
        if (got := stack.receive()) is None:
            return
        init, sender, came_to, back = got
        everywhere = "0.0.0.0" if stack.version == 4 else "::"
        port = init.destination
        name = self._sctp.get((came_to, port)) or self._sctp.get((everywhere, port))
        stack.answer(init, self._text(name, sender, port) if name else None, back)

    @staticmethod
    def _text(name: str, source: str, port: int) -> bytes:
        source = source.partition("%")[0]
        return json.dumps({"name": name, "source": source, "port": port}).encode()


class Stream:
    """A UDP client that never stops sending, from one port."""

    def __init__(self, address: str, port: int, source_port: int, every_s: float) -> None:
        family, self._target = _resolved(address, port, socket.SOCK_DGRAM)
        self._sock = socket.socket(family, socket.SOCK_DGRAM)
        self._sock.bind(("", source_port))
        self._sock.settimeout(every_s)
        self._every_s = every_s
        self._ending = threading.Event()
        self.sent = 0
        self.heard: dict[str, int] = {}
        self._threads = [threading.Thread(target=one) for one in (self._send, self._receive)]
        for thread in self._threads:
            thread.start()

    def _send(self) -> None:
        while not self._ending.wait(self._every_s):
            with contextlib.suppress(OSError):
                self._sock.sendto(b"?", self._target)
                self.sent += 1

    def _receive(self) -> None:
        while not self._ending.is_set():
            with contextlib.suppress(OSError, ValueError):
                name = json.loads(self._sock.recv(_PACKET_MAX))["name"]
                self.heard[name] = self.heard.get(name, 0) + 1

    def stop(self) -> None:
        """End it."""
        self._ending.set()
        for thread in self._threads:
            thread.join()
        self._sock.close()


class Probe:
    """Carries out requests."""

    def __init__(self) -> None:
        self._listeners = Listeners()
        self._pool = ThreadPoolExecutor(_AT_ONCE)
        self._stream: Stream | None = None
        self._open: list[socket.socket] = []

    def do(self, request: dict[str, Any]) -> dict[str, Any]:
        """Carry out a request of the module's list; return the answer."""
        match request.pop("do"):
            case "listen":
                return self._listen(**request)
            case "close":
                self._listeners.close(request["name"])
                return {}
            case "ask":
                results = self._pool.map(_asked, request["asks"])
                return {"results": [asdict(one) for one in results]}
            case "stream":
                self._stream = Stream(
                    request["address"], request["port"], request["source_port"], request["every"]
                )
                return {}
            case "stop":
                stream, self._stream = self._stream, None
                if stream is None:
                    return {"sent": 0, "heard": {}}
                stream.stop()
                return {"sent": stream.sent, "heard": stream.heard}
            case "open":
                where = (request["address"], request["port"])
                self._open.append(socket.create_connection(where, _TALK_S))
                return {}
            case "talk":
                return {"ok": [_talks(one) for one in self._open]}
            case "shut":
                for one in self._open:
                    one.close()
                self._open.clear()
                return {}
            case "heard":
                return {"heard": self._listeners.heard(request["name"])}
            case other:
                return {"errors": [f"{other}: is no request"]}

    def _listen(self, name: str, sockets: list[list[Any]]) -> dict[str, Any]:
        errors = []
        for one in sockets:
            protocol, address, port, mute = itertools.islice([*one, False], 4)
            try:
                self._listeners.listen(name, protocol, address, port, mute)
            except OSError as error:
                errors.append(f"{protocol} {address} port {port}: {error}")
        return {"errors": errors}


def main() -> int:
    """Serve standard input until its end."""
    probe = Probe()
    try:
        print("{}", flush=True)
        for line in sys.stdin:
            print(json.dumps(probe.do(json.loads(line))), flush=True)
    except BrokenPipeError:  # nothing reads the answers any more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


if __name__ == "__main__":
    sys.exit(main())
