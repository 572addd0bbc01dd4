# SPDX-License-Identifier: Apache-2.0
"""The exec shim, executed, against services that behave and that do not.

CNIPROXY names the program.
"""

import contextlib
import json
import os
import signal
import socket
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from metropolis.node.core.network.cni import wire
from metropolis.node.core.network.cni.wire import Answer, Request

PROGRAM = str(Path(os.environ["CNIPROXY"]).absolute())
GENEROUS_S = 60.0  # far longer than any step takes, even on a busy machine
# For tests in which the time runs out: it must suffice for the steps before.
SHORT_MS = "2000"

type Behaviour = Callable[[socket.socket], None]


class Service:
    """A socket, and a thread that handles its first connection by `behave`."""

    def __init__(self, path: Path, behave: Behaviour) -> None:
        self.path = path
        self._behave = behave
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        with contextlib.suppress(OSError):  # closed before anyone came
            connection, _ = self._listener.accept()
            with connection:
                self._behave(connection)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join(GENEROUS_S)
        self._listener.close()
        assert not self._thread.is_alive()


def receive(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size and (more := connection.recv(size - len(data))):
        data += more
    return data


def receive_request(connection: socket.socket) -> Request:
    lengths = wire.parse_header(receive(connection, wire.REQUEST_HEADER_SIZE))
    return wire.parse_body(lengths, receive(connection, lengths.total))


class Exchange:
    """Takes a request, gives a fixed answer, notes the receipt."""

    def __init__(self, answer: bytes) -> None:
        self.answer = answer
        self.request: Request | None = None
        self.receipt: bytes | None = None

    def __call__(self, connection: socket.socket) -> None:
        self.request = receive_request(connection)
        connection.sendall(self.answer)
        connection.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionError):
            self.receipt = connection.recv(10)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "cni.sock"


@contextlib.contextmanager
def serving(path: Path, behave: Behaviour) -> Iterator[None]:
    service = Service(path, behave)
    try:
        yield
    finally:
        service.close()


def environment(path: Path, **more: str) -> dict[str, str]:
    return {"CNIPROXY_SOCKET": str(path), "PATH": "/bin", "SECRET": "x"} | more


def execute(
    path: Path, stdin: bytes | BinaryIO = b"", *args: str, **more: str
) -> subprocess.CompletedProcess[bytes]:
    given: dict[str, Any] = {"input" if isinstance(stdin, bytes) else "stdin": stdin}
    return subprocess.run(
        [PROGRAM, *args],
        **given,
        env=environment(path, **more),
        capture_output=True,
        timeout=GENEROUS_S,
        check=False,
    )


def assert_error(run: subprocess.CompletedProcess[bytes], code: int, said: str) -> None:
    error = json.loads(run.stdout)
    assert error.keys() == {"cniVersion", "code", "msg", "details"}
    assert (error["cniVersion"], error["code"]) == ("1.1.0", code)
    assert said in f"{error['msg']}: {error['details']}"
    assert (run.returncode, run.stderr) == (1, b"")


def test_arguments_cni_environment_and_stdin_are_all_that_is_sent(path: Path) -> None:
    exchange = Exchange(wire.encode_answer(Answer(b"")))
    with serving(path, exchange):
        run = execute(path, b'{"a": 1}\0\xff', "x y", "", CNI_COMMAND="ADD", CNI_ARGS="a=b;c=\n")
    assert (run.returncode, run.stdout, run.stderr) == (0, b"", b"")
    env = {"CNI_COMMAND": "ADD", "CNI_ARGS": "a=b;c=\n"}
    assert exchange.request == Request((PROGRAM, "x y", ""), env, b'{"a": 1}\0\xff')


@pytest.mark.parametrize("exit_code", [0, 1, 255])
@pytest.mark.parametrize("stdout", [b"", b"{}\n", b"\0\xff", bytes(wire.ANSWER_MAX)])
def test_the_answer_is_relayed_and_receipted(path: Path, stdout: bytes, exit_code: int) -> None:
    exchange = Exchange(wire.encode_answer(Answer(stdout, exit_code)))
    with serving(path, exchange):
        run = execute(path)
    assert (run.returncode, run.stderr) == (exit_code, b"")
    assert run.stdout == stdout
    assert exchange.receipt == b"\0"


def test_the_largest_stdin(path: Path) -> None:
    exchange = Exchange(wire.encode_answer(Answer(b"ok")))
    stdin = os.urandom(wire.STDIN_MAX - 1)
    with serving(path, exchange):
        assert execute(path, stdin).stdout == b"ok"
    assert exchange.request is not None
    assert exchange.request.stdin == stdin


def test_too_large_a_stdin(path: Path) -> None:
    assert_error(execute(path, bytes(wire.STDIN_MAX)), 5, "stdin is too large")


def test_too_large_an_environment(path: Path) -> None:
    more = {f"CNI_{i}": "x" * 120_000 for i in range(9)}
    assert_error(execute(path, b"", **more), 5, "environment are too large")


def test_an_answer_byte_by_byte(path: Path) -> None:
    def behave(connection: socket.socket) -> None:
        receive_request(connection)
        for byte in wire.encode_answer(Answer(b"slowly", 3)):
            connection.sendall(bytes([byte]))
        connection.recv(1)

    with serving(path, behave):
        run = execute(path)
    assert (run.returncode, run.stdout) == (3, b"slowly")


def test_an_answer_before_the_request_is_read(path: Path) -> None:
    """The shim sees an early refusal, though it cannot send the rest."""

    def behave(connection: socket.socket) -> None:
        connection.sendall(wire.encode_answer(Answer(b"refused", 1)))

    with serving(path, behave):
        run = execute(path, bytes(wire.STDIN_MAX - 1))
    assert (run.returncode, run.stdout) == (1, b"refused")


def test_no_service(path: Path) -> None:
    assert_error(execute(path), 11, "No such file or directory")


def test_a_service_that_died_and_left_its_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    assert_error(execute(path), 11, "Connection refused")


def test_too_long_a_socket_path(path: Path) -> None:
    assert_error(execute(path, CNIPROXY_SOCKET="/" + "x" * 200), 5, "name too long")


GOOD = wire.encode_answer(Answer(b"whole", 0))


@pytest.mark.parametrize("size", range(len(GOOD)))
def test_a_truncated_answer_is_not_printed(path: Path, size: int) -> None:
    exchange = Exchange(GOOD[:size])
    with serving(path, exchange):
        run = execute(path)
    assert_error(run, 11, "did not answer" if size < wire.ANSWER_HEADER_SIZE else "broke off")
    assert exchange.receipt == b""


@pytest.mark.parametrize(
    "header",
    [
        (0, wire.VERSION, 0, 0),
        (wire.MAGIC, wire.VERSION + 1, 0, 0),
        (wire.MAGIC, wire.VERSION, 256, 0),
        (wire.MAGIC, wire.VERSION, 0, wire.ANSWER_MAX + 1),
        (wire.MAGIC, wire.VERSION, 0, 0xFFFFFFFF),
    ],
)
def test_an_answer_of_another_protocol(path: Path, header: tuple[int, ...]) -> None:
    with serving(path, Exchange(struct.pack("!4I", *header) + b"x")):
        assert_error(execute(path), 5, "another protocol")


def silent(connection: socket.socket) -> None:
    while connection.recv(1 << 16):
        pass


def test_a_service_that_never_answers(path: Path) -> None:
    with serving(path, silent):
        run = execute(path, CNIPROXY_TIMEOUT_MS=SHORT_MS)
    assert_error(run, 11, "timed out")


def test_a_service_that_never_reads(path: Path, tmp_path: Path) -> None:
    done = threading.Event()
    # A file: a busy machine may take seconds to pass as much through a pipe.
    stdin = tmp_path / "stdin"
    stdin.write_bytes(bytes(wire.STDIN_MAX - 1))

    def behave(connection: socket.socket) -> None:
        done.wait(GENEROUS_S)

    with serving(path, behave), stdin.open("rb") as opened:
        run = execute(path, opened, CNIPROXY_TIMEOUT_MS=SHORT_MS)
        done.set()
    assert_error(run, 11, "timed out")


def test_a_service_that_never_accepts(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as first:
        listener.bind(str(path))
        listener.listen(0)
        first.connect(str(path))  # fills the queue
        run = execute(path, CNIPROXY_TIMEOUT_MS=SHORT_MS)
    assert_error(run, 11, "not there: Resource temporarily unavailable")


def test_a_runtime_that_never_closes_stdin(path: Path) -> None:
    env = environment(path, CNIPROXY_TIMEOUT_MS=SHORT_MS)
    with subprocess.Popen(
        [PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env
    ) as process:
        assert process.stdout is not None
        stdout = process.stdout.read()
        code = process.wait(GENEROUS_S)
    assert_error(subprocess.CompletedProcess([], code, stdout, b""), 5, "reading stdin: ")


@pytest.mark.parametrize("how", ["closed", "not for reading", "a directory", "never ends"])
def test_del_goes_on_whatever_stdin_is(path: Path, how: str, tmp_path: Path) -> None:
    exchange = Exchange(wire.encode_answer(Answer(b"")))
    never, writer = os.pipe()
    stdin = {
        "never ends": never,
        "a directory": os.open(tmp_path, os.O_RDONLY),
    }.get(how, os.open("/dev/null", os.O_WRONLY))
    closing = "exec 0<&-; exec " if how == "closed" else "exec "
    with serving(path, exchange):
        run = subprocess.run(
            ["/bin/sh", "-c", closing + PROGRAM],
            stdin=stdin,
            env=environment(path, CNI_COMMAND="DEL"),
            capture_output=True,
            timeout=GENEROUS_S,
            check=False,
        )
    for descriptor in {never, writer, stdin}:
        os.close(descriptor)
    assert (run.returncode, run.stdout, run.stderr) == (0, b"", b"")
    assert exchange.request == Request((PROGRAM,), {"CNI_COMMAND": "DEL"}, b"")
    assert exchange.receipt == b"\0"


@pytest.mark.parametrize(
    ("size", "sent"), [(1000, 1000), (wire.STDIN_MAX - 1, 0), (wire.STDIN_MAX + 100_000, 0)]
)
def test_del_passes_on_what_has_a_size(path: Path, size: int, sent: int) -> None:
    exchange = Exchange(wire.encode_answer(Answer(b"")))
    with serving(path, exchange):
        run = execute(path, bytes(size), CNI_COMMAND="DEL")
    assert (run.returncode, run.stdout) == (0, b"")
    assert exchange.request is not None
    assert len(exchange.request.stdin) == sent


@pytest.mark.parametrize(
    ("command", "code"), [("ADD", 11), ("DEL", 11), ("GC", 11), ("STATUS", 50)]
)
def test_without_the_service_each_command_has_its_code(path: Path, command: str, code: int) -> None:
    assert_error(execute(path, CNI_COMMAND=command), code, "No such file or directory")


@pytest.mark.parametrize("closing", ["exec 1>&-; exec ", "exec 0<&- 1>&-; exec "])
def test_an_answer_is_not_received_without_a_stdout(path: Path, closing: str) -> None:
    """The socket must not get the descriptor that is free."""
    exchange = Exchange(wire.encode_answer(Answer(b"for nobody")))
    with serving(path, exchange):
        run = subprocess.run(
            ["/bin/sh", "-c", closing + PROGRAM],
            stdin=subprocess.DEVNULL,
            env=environment(path, CNI_COMMAND="DEL"),
            timeout=GENEROUS_S,
            check=False,
        )
    assert run.returncode == 1
    assert exchange.receipt == b""


def test_a_runtime_that_never_reads_stdout(path: Path) -> None:
    exchange = Exchange(wire.encode_answer(Answer(bytes(wire.ANSWER_MAX), 0)))
    env = environment(path, CNIPROXY_TIMEOUT_MS=SHORT_MS)
    with (
        serving(path, exchange),
        subprocess.Popen(
            [PROGRAM], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, env=env
        ) as process,
    ):
        # Its own error cannot be written either: it must not hang on that.
        try:
            assert process.wait(GENEROUS_S) == 1
        finally:
            process.kill()
    assert exchange.receipt == b""


def test_a_runtime_that_is_gone(path: Path) -> None:
    exchange = Exchange(wire.encode_answer(Answer(b"for nobody", 0)))
    reader, writer = os.pipe()
    os.close(reader)
    with serving(path, exchange):
        run = subprocess.run(
            [PROGRAM],
            stdin=subprocess.DEVNULL,
            stdout=writer,
            env=environment(path),
            timeout=GENEROUS_S,
            check=False,
        )
    os.close(writer)
    assert run.returncode == 1
    assert exchange.receipt == b""


def test_a_receipt_that_nobody_takes_is_a_failure(path: Path) -> None:
    """The service has given up on us, so an ADD has been taken back."""

    def behave(connection: socket.socket) -> None:
        receive_request(connection)
        connection.shutdown(socket.SHUT_RD)
        connection.sendall(GOOD)

    with serving(path, behave):
        assert execute(path).returncode == 1


def test_signals_interrupt_nothing(path: Path) -> None:
    """A stopped and continued process sees EINTR in poll()."""
    asked, proceed = threading.Event(), threading.Event()

    def behave(connection: socket.socket) -> None:
        receive_request(connection)
        asked.set()
        assert proceed.wait(GENEROUS_S)
        connection.sendall(GOOD)
        connection.recv(1)

    with (
        serving(path, behave),
        subprocess.Popen(
            [PROGRAM], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, env=environment(path)
        ) as process,
    ):
        assert asked.wait(GENEROUS_S)
        for _ in range(3):
            process.send_signal(signal.SIGSTOP)
            os.waitid(os.P_PID, process.pid, os.WSTOPPED)
            process.send_signal(signal.SIGCONT)
            os.waitid(os.P_PID, process.pid, os.WCONTINUED)
        proceed.set()
        assert process.stdout is not None
        assert process.stdout.read() == b"whole"
        assert process.wait(GENEROUS_S) == 0


def test_it_is_small_and_static() -> None:
    program = Path(PROGRAM).read_bytes()
    assert len(program) < 64 << 10
    offset, size, count = (
        *struct.unpack_from("<Q", program, 32),
        *struct.unpack_from("<HH", program, 54),
    )
    types = [struct.unpack_from("<I", program, offset + i * size)[0] for i in range(count)]
    assert 3 not in types, "it has an interpreter (PT_INTERP): it is not static"
