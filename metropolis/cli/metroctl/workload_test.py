# SPDX-License-Identifier: Apache-2.0
"""`metroctl workload`, with an engine on the fake datapath and with services
that send garbage.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any
from urllib.parse import quote

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as some

from metropolis.cli.metroctl import main, workload
from metropolis.cli.metroctl.output import Answer
from metropolis.node.core.network.workloads.api.server import WorkloadServer
from metropolis.node.core.network.workloads.conditions import Conditions
from metropolis.node.core.network.workloads.datapath.registry import PARTS
from metropolis.node.core.network.workloads.engine.engine import Engine
from metropolis.node.core.network.workloads.model import AttachIntent
from metropolis.node.core.network.workloads.spec import workload_pb2 as pb
from metropolis.node.core.network.workloads.testing.fake import FakeDatapath

PROBLEM = "nftables: table inet metropolis is gone; cannot be put back: EPERM"


class World:
    """A server with a namespace `/0`, and the command."""

    def __init__(self, directory: Path, capture: pytest.CaptureFixture[str]) -> None:
        datapath = FakeDatapath(parts=PARTS)
        self.kernel = datapath.kernel
        self.kernel.add_netns("/0")
        self.capture = capture
        self.socket = directory / "run" / "s"
        self.conditions = Conditions()
        self.engine = Engine(datapath, self.conditions)
        self.engine.set_prefixes([ip_network("10.0.0.0/16"), ip_network("fd00::/112")])
        self.engine.start()
        self.server = WorkloadServer(self.engine, self.socket)
        self.server.start()

    def run(self, *arguments: str) -> tuple[int, str]:
        number = main.main(["workload", "--socket", str(self.socket), *arguments])
        return number, self.capture.readouterr().out

    def close(self) -> None:
        self.server.stop(0)
        self.engine.close()


@pytest.fixture
def world(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[World]:
    made = World(tmp_path, capsys)
    yield made
    made.close()


def test_all_is_well(world: World) -> None:
    assert world.run("status") == (0, "ok\n")
    world.conditions.note("repairs", "1: rules 1")
    assert world.run("status") == (0, "ok\nnote: repairs: 1: rules 1\n")


def test_notes_are_shown_also_when_something_is_wrong(world: World) -> None:
    """Notes matter most then: a foreign filter may be the cause."""
    world.conditions.note("foreign_filters", "ip filter FORWARD")
    world.conditions.set("reconcile rules", PROBLEM)
    world.engine.set_prefixes([])
    number, out = world.run("status")
    assert number == 1
    assert out.splitlines() == [
        f"wrong: reconcile rules: {PROBLEM}",
        "wrong: attach: the node has no address prefix for workloads yet",
        "note: foreign_filters: ip filter FORWARD",
    ]
    number, out = world.run("status", "--json")
    assert (number, json.loads(out)["notes"]) == (1, {"foreign_filters": "ip filter FORWARD"})


def test_attachments(world: World) -> None:
    assert world.run("check") == (0, "no attachments\n")
    made = world.engine.attach(AttachIntent("web-1", "/0", "eth0"))
    number, out = world.run("list")
    assert number == 0
    addresses = ",".join(map(str, made.ips))
    expected = ["web-1", "eth0", addresses, made.host_interface, "api", "-", "-"]
    assert [line.split() for line in out.splitlines()[1:]] == [expected]
    assert world.run("check") == world.run("check", "web-1") == (0, "web-1 eth0: ok\n")
    world.conditions.set("reconcile rules", PROBLEM)
    number, out = world.run("check")
    assert number == 1
    assert PROBLEM in out
    number, out = world.run("--json", "check", "web-1")
    assert (number, json.loads(out)["checked"][0]["findings"][0]["found"]) == (1, PROBLEM)


def test_one_that_cannot_be_checked_hides_no_other(world: World) -> None:
    """A workload whose Check hangs in the kernel hides no other."""
    world.engine.attach(AttachIntent("web-1", "/0", "eth0"))
    world.engine.attach(AttachIntent("web-2", "/0", "eth1"))
    with world.engine._locks.workload.hold("web-1"):
        number, out = world.run("check")
    assert number == 1
    first, why, second = out.splitlines()
    assert (first, second) == ("web-1 eth0: wrong", "web-2 eth1: ok")
    assert "another call for this workload" in why


def test_list_in_json(world: World) -> None:
    """Addresses are as people write them."""
    made = world.engine.attach(AttachIntent("web-1", "/0", "eth0"))
    number, out = world.run("list", "--json")
    (row,) = json.loads(out)["attachments"]
    assert (number, row) == (
        0,
        {
            "workload": "web-1",
            "interface": "eth0",
            "addresses": [str(ip) for ip in made.ips],
            "link": made.host_interface,
            "owner": "api",
            "mac": ":".join(f"{byte:02x}" for byte in made.mac),
            "mtu": made.mtu,
            "ports": [],
            "limits": [],
            "port_mappings": [],
            "bandwidth": {
                "ingress_rate": 0, "ingress_burst": 0, "egress_rate": 0, "egress_burst": 0,
            },
        },
    )  # fmt: skip


def test_limits_are_listed(world: World) -> None:
    parts = (("b", "i10000000,e1500000"),)
    world.engine.attach(AttachIntent("web-1", "/0", "eth0", parts=parts))
    _, out = world.run("list")
    assert "in 10Mbit,out 1500kbit" in out
    _, out = world.run("list", "--json")
    assert json.loads(out)["attachments"][0]["limits"] == ["in 10Mbit", "out 1500kbit"]


def test_limits_and_host_ports_are_objects_in_json(world: World) -> None:
    """A program need not take texts apart. Rates are bits per second."""
    parts = (("b", "i10000000/20000,e1500000"), ("h", "u53=53@192.0.2.7,s9=10@2001:db8::7"))
    world.kernel.local = {ip_address("192.0.2.7"), ip_address("2001:db8::7")}
    world.engine.attach(AttachIntent("web-1", "/0", "eth0", parts=parts))
    world.engine.attach(AttachIntent("web-2", "/0", "eth1", parts=(("h", "t8080=80"),)))
    _, out = world.run("list", "--json")
    found = {row["workload"]: row for row in json.loads(out)["attachments"]}
    assert found["web-1"]["bandwidth"] == {
        "ingress_rate": 10_000_000,
        "ingress_burst": 20_000,
        "egress_rate": 1_500_000,
        "egress_burst": 0,
    }
    assert found["web-1"]["port_mappings"] == [
        {"protocol": "udp", "host_port": 53, "container_port": 53, "host_ip": "192.0.2.7"},
        {"protocol": "sctp", "host_port": 9, "container_port": 10, "host_ip": "2001:db8::7"},
    ]
    assert found["web-2"]["port_mappings"] == [
        {"protocol": "tcp", "host_port": 8080, "container_port": 80, "host_ip": None}
    ]
    _, out = world.run("check", "--json", "web-2")
    assert json.loads(out)["checked"][0]["port_mappings"] == found["web-2"]["port_mappings"]


def test_limits_are_changed(world: World) -> None:
    """Both, one, none; what is refused changes nothing."""
    world.engine.attach(AttachIntent("web", "/0", "net1"))
    for options, shown in (
        (["--ingress", "10M", "--egress", "500k"], "in 10Mbit,out 500kbit"),
        (["--egress", "1G"], "in 10Mbit,out 1Gbit"),
        (["--ingress", "0"], "out 1Gbit"),
        (["--egress", "0"], "-      -"),
        (["--ingress", "8kbit"], "in 8kbit"),
        (["--egress", "1T"], "in 8kbit,out 1000Gbit"),
    ):
        number, text = world.run("limit", "web", "net1", *options)
        assert number == 0
        assert text.splitlines()[1].endswith(shown)
        assert world.run("list") == (0, text)
    before = world.run("list")
    for arguments, number, told in (
        (["nosuch", "--egress", "0"], 2, "workload 'nosuch': is not attached"),
        (["web", "--egress", "0"], 2, "workload 'web': has no interface 'eth0'; it has 'net1'"),
        (["web", "net1", "--ingress", "1k"], 2, "ingress_rate 1000: must be 8000 to"),
        (["web", "net1"], 2, "which limit? give --ingress RATE, --egress RATE, or both"),
    ):
        found = main.main(["workload", "--socket", str(world.socket), "limit", *arguments])
        assert found == number
        assert told in world.capture.readouterr().err
    assert world.run("list") == before
    for rate in ("", "-1", "1.5M", "10m", "10 M", "10bits", "M", "1" * 14, "9999999999999G"):
        with pytest.raises(SystemExit) as exit_:
            world.run("limit", "web", "--ingress", rate)
        assert exit_.value.code == 2


def test_host_ports_are_listed(world: World) -> None:
    parts = (("h", "t8080-8085=80,u53=53@192.0.2.7,s9=9@2001:db8::7"),)
    world.kernel.local = {ip_address("192.0.2.7"), ip_address("2001:db8::7")}
    world.engine.attach(AttachIntent("web-1", "/0", "eth0", parts=parts))
    _, out = world.run("list")
    shown = [f"{8080 + n}->{80 + n}/tcp" for n in range(4)]
    assert ",".join([*shown, "and 4 more"]) in out
    _, out = world.run("list", "--json")
    assert json.loads(out)["attachments"][0]["ports"][4:] == [
        "8084->84/tcp", "8085->85/tcp", "192.0.2.7:53->53/udp", "[2001:db8::7]:9->9/sctp",
    ]  # fmt: skip


def start(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "metropolis.cli.metroctl.main", "workload", *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip


TIME = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"


def test_watch_is_a_line_for_each_event_and_ends_by_ctrl_c(world: World) -> None:
    made = world.engine.attach(AttachIntent("web-1", "/0", "eth0"))
    with start("watch", "--socket", str(world.socket)) as process:
        assert process.stdout is not None
        addresses = ",".join(map(str, made.ips))
        entry = f"web-1  eth0  {addresses}  {made.host_interface}  api  -  -"
        assert re.fullmatch(f"{TIME}  present   {entry}\n", process.stdout.readline())
        assert re.fullmatch(f"{TIME}  complete  attachments: 1\n", process.stdout.readline())
        world.engine.detach("web-1")
        assert re.fullmatch(f"{TIME}  detached  {entry}\n", process.stdout.readline())
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
        assert (process.returncode, out, err) == (0, "", "")


def test_watch_in_json_and_the_end_of_the_service(world: World) -> None:
    with start("watch", "--json", "--socket", str(world.socket)) as process:
        assert process.stdout is not None
        first = json.loads(process.stdout.readline())
        assert re.fullmatch(TIME, first.pop("time"))
        assert first == {"event": "complete", "attachments": 0}
        world.engine.attach(AttachIntent("web-1", "/0", "eth0"))
        second = json.loads(process.stdout.readline())
        assert (second["event"], second["attachment"]["workload"]) == ("attached", "web-1")
        world.server.stop(60)  # without a grace the reason may not arrive
        out, err = process.communicate(timeout=60)
        assert (process.returncode, out) == (3, "")
        assert err == (
            f"metroctl workload watch: {world.socket}: no answer, see "
            "/run/log/node-core/current: watch: the workload network service stops\n"
        )


def test_a_reader_that_goes_ends_a_watch(world: World) -> None:
    with start("watch", "--socket", str(world.socket)) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.stdout.close()
        world.engine.attach(AttachIntent("web-1", "/0", "eth0"))
        assert process.wait(60) == 1
        assert process.stderr is not None
        assert process.stderr.read() == ""


def test_a_reader_that_goes_ends_a_watch_without_events(world: World) -> None:
    with start("watch", "--socket", str(world.socket)) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.wait(60) == 1
        assert process.stderr is not None
        assert process.stderr.read() == ""


def test_an_output_that_takes_nothing(world: World) -> None:
    done = subprocess.run(
        ["sh", "-c", 'exec "$@" > /dev/full', "sh", sys.executable, "-m",
         "metropolis.cli.metroctl.main", "workload", "status", "--socket", str(world.socket)],
        check=False, capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr == "metroctl: standard output: No space left on device\n"


def test_an_output_that_has_not_all_characters(world: World) -> None:
    world.conditions.note("repairs", "\u00e4")
    done = subprocess.run(
        [sys.executable, "-m", "metropolis.cli.metroctl.main", "workload", "status",
         "--socket", str(world.socket)],
        check=False, capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "PYTHONIOENCODING": "ascii"},
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "ok\nnote: repairs: \\xe4\n")


def test_no_answer(tmp_path: Path, capsys: pytest.CaptureFixture[str], world: World) -> None:
    absent = tmp_path / "absent"
    assert main.main(["workload", "status", "--socket", str(absent)]) == 3
    assert capsys.readouterr().err == (
        f"metroctl workload status: {absent}: no answer, see /run/log/node-core/current: "
        "No such file or directory\n"
    )
    assert main.main(["workload", "check", "--socket", str(world.socket), "web-9"]) == 2
    said = capsys.readouterr().err
    assert said == "metroctl workload check: check 'web-9': has no interface\n"
    assert main.main(["workload", "check", "--socket", str(world.socket), "ü"]) == 2
    assert "must be printable ASCII" in capsys.readouterr().err


def one_line(capsys: pytest.CaptureFixture[str], path: Path, verb: str) -> str:
    """Fail unless the command ends with 3 and one line; return the line."""
    assert main.main(["workload", verb, "--socket", str(path)]) == 3
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(r"[ -~]*\n", err)
    assert "Traceback" not in err
    return err


VERBS = ("status", "list", "check", "watch")


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("name", ["s", "a b", "100%25", "q?#", "a,b", "x" * 120, "\x1b[2J"])
def test_a_socket_that_nothing_serves(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, verb: str
) -> None:
    path = tmp_path / name
    if len(name) < 100:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(str(path))
    assert ": no answer, see " in one_line(capsys, path, verb)


@pytest.fixture
def garbage(tmp_path: Path) -> Iterator[tuple[Path, list[bytes]]]:
    """Yield the socket of a gRPC server, and the answers that it gives."""
    answers: list[bytes] = []

    class Handler(grpc.GenericRpcHandler):
        def service(self, details: Any) -> Any:
            if details.method.endswith("/Watch"):
                return grpc.unary_stream_rpc_method_handler(lambda _, __: iter(answers))
            return grpc.unary_unary_rpc_method_handler(lambda _, __: answers[0])

    path = tmp_path / "a b%20#"
    server = grpc.server(ThreadPoolExecutor(2), handlers=[Handler()])
    server.add_insecure_port(f"unix:{quote(str(path))}")
    server.start()
    yield path, answers
    server.stop(0)


BAD_ADDRESS = pb.Attachment(workload_id="w", ip=[b"abc"])
BAD = {
    "status": b"\xff",
    "list": pb.ListResponse(attachments=[BAD_ADDRESS]).SerializeToString(),
    "check": pb.ListResponse(attachments=[BAD_ADDRESS]).SerializeToString(),
    "watch": pb.WatchEvent(attachment=BAD_ADDRESS).SerializeToString(),
}


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("bad", [True, False])
def test_garbage_is_one_line(
    garbage: tuple[Path, list[bytes]], capfd: pytest.CaptureFixture[str], verb: str, bad: bool
) -> None:
    """gRPC itself logs nothing, either."""
    path, answers = garbage
    answers.append(BAD[verb] if bad else b"\xff")
    assert "it sent what has no meaning" in one_line(capfd, path, verb)


def test_a_watch_that_just_ends(
    garbage: tuple[Path, list[bytes]], capfd: pytest.CaptureFixture[str]
) -> None:
    said = one_line(capfd, garbage[0], "watch")
    assert said.endswith("/run/log/node-core/current: the watch ended\n")


def test_an_answer_of_many_attachments(garbage: tuple[Path, list[bytes]]) -> None:
    """It is over the 4 MiB that gRPC takes by default."""
    path, answers = garbage
    one = pb.Attachment(workload_id="w" * 250, if_name="eth0", ip=[bytes(4), bytes(16)])
    answers.append(pb.ListResponse(attachments=[one] * 20_000).SerializeToString())
    assert main.main(["workload", "list", "--socket", str(path)]) == 0


@pytest.mark.parametrize("verb", VERBS)
def test_a_service_that_says_nothing(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], verb: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workload, "TIMEOUT_S", 0.2)
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(tmp_path / "s"))
        silent.listen()
        assert "no answer" in one_line(capfd, tmp_path / "s", verb)


texts = some.text(max_size=20)
attachments = some.builds(
    pb.Attachment,
    workload_id=texts,
    if_name=texts,
    host_interface=texts,
    owner=texts,
    ip=some.lists(some.binary(min_size=4, max_size=4) | some.binary(max_size=16), max_size=2),
    mac=some.binary(max_size=8),
    port_mapping=some.lists(
        some.builds(
            pb.PortMapping,
            host_port=some.integers(0, 2**32 - 1),
            protocol=texts,
            host_ip=some.binary(max_size=17),
        ),
        max_size=6,
    ),
)
notes = some.builds(pb.Note, name=texts, text=texts)
findings = some.builds(pb.Finding, what=texts, expected=texts, found=texts)


def is_harmless(answers: Sequence[Answer]) -> None:
    """The text has lines that are printable, and JSON is one line."""
    for answer in answers:
        assert all(line.isprintable() for line in answer.text.split("\n"))
        assert json.loads(answer.as_json()) == answer.data
        assert "\n" not in answer.as_json()


@given(
    some.builds(pb.StatusResponse, notes=some.lists(notes), problems=some.lists(notes)),
    some.lists(attachments, max_size=3),
    some.lists(findings, max_size=3),
    some.integers(0, 9),
)
def test_any_answer_is_printable_or_an_error(
    report: pb.StatusResponse, some_: list[pb.Attachment], found: list[pb.Finding], kind: int
) -> None:
    is_harmless([workload.status(report)])
    checks = [pb.CheckedAttachment(attachment=one, findings=found) for one in some_]
    event = pb.WatchEvent.FromString(b"\x08" + bytes([kind]))
    events = [event, *(pb.WatchEvent(attachment=one) for one in some_)]
    try:
        is_harmless([workload.listing(some_)])
        is_harmless([workload.checked(pb.CheckResponse(attachments=checks))])
        is_harmless(list(workload.watched(events, lambda: datetime(2026, 1, 2, tzinfo=UTC))))
    except ValueError:
        packed = [ip for one in some_ for ip in one.ip]
        packed += [at.host_ip for one in some_ for at in one.port_mapping if at.host_ip]
        assert any(len(one) not in {4, 16} for one in packed)


@pytest.mark.parametrize(
    "arguments",
    [
        *([], ["stat"], ["list", "x"], ["status", "--all"], ["status", "--js"]),
        *(["check", "\udcff"], ["--socket", "\udcff", "list"]),
    ],
)
def test_wrong_arguments(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as exited:
        main.main(["workload", *arguments])
    assert exited.value.code == 2


def test_it_imports_nothing_of_etcd(world: World) -> None:
    """A node that is short of everything still shows what is wrong."""
    script = (
        "import sys; from metropolis.cli.metroctl import main; "
        "main.main(sys.argv[1:]); print([one for one in sys.modules if 'curator' in one "
        "or 'etcd' in one or one == 'metropolis.node.core.config'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, "workload", "status", "--socket", str(world.socket)],
        check=True, capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert done.stdout == "ok\n[]\n"
