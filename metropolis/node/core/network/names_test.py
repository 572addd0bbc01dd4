# SPDX-License-Identifier: Apache-2.0
"""For how long Status waits for name servers, with the real node core."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from google.protobuf import text_format

from metropolis.node.core.network.names import expected, has_servers
from metropolis.node.core.network.testing.nodecore import NodeCore, add_uplink, dnsmasq
from osbase.net import config as net_config
from osbase.net.config import Interface, Problems
from osbase.net.spec import net_pb2

DYNAMIC = 'uplink { name: "up0" dhcp4 {} }'
PODS = 'pod_prefix: "10.192.0.0/24" pod_prefix: "fd00:10:192::/112"'
WAITING = "waiting for name servers by DHCP, for at most "


def network(text: str) -> str:
    return f"network {{ {text} {PODS} }}"


def test_a_pod_is_not_started_before_names(world: None, core: NodeCore, tmp_path: Path) -> None:
    """Attach and Detach are served meanwhile; a restart does not wait again."""
    core.config = network(f"{DYNAMIC} names_wait_s: 600")
    core.start()
    problem = core.problem()
    assert problem.startswith(WAITING), problem
    left = int(problem.removeprefix(WAITING).removesuffix(" s more"))
    assert 0 < left <= 600
    core.attach("pod-a")
    add_uplink()
    with dnsmasq(tmp_path):
        core.wait_for("root.network.names: name servers: 192.0.2.53")
        assert core.problem() == ""
        assert has_servers(str(core.runtime.parent / "resolv.conf"))
    # The server is away, the lease is not over.
    assert core.stop() == 0
    core.start()
    assert core.problem() == ""


def test_it_waits_for_a_bounded_time(world: None, core: NodeCore) -> None:
    core.config = network(f"{DYNAMIC} names_wait_s: 8")
    began = time.monotonic()
    core.start()
    problem = core.problem()
    if time.monotonic() - began < 8:
        assert problem.startswith(WAITING), problem
    core.wait_for("no name servers by DHCP in time")
    assert core.problem() == ""


@pytest.mark.parametrize(
    "text",
    [
        DYNAMIC + " names_wait_s: 0",
        'uplink { name: "up0" dhcp4 {} static { dns: "192.0.2.53" } }',
        'uplink { name: "up0" dhcp4 { ignore_dns: true } }',
        'uplink { name: "up0" static { address: "192.0.2.7/24" } }',
        "",
    ],
)
def test_nothing_is_waited_for_that_does_not_come(world: None, core: NodeCore, text: str) -> None:
    """There is no link at all. Names that are known are written at once."""
    core.config = network(text)
    core.start()
    assert core.problem() == ""
    known = has_servers(str(core.runtime.parent / "resolv.conf"))
    assert known == ("static { dns" in text)


def test_who_expects_names() -> None:
    """Only with DHCP, and only if nothing else is said of names."""

    def uplink(text: str) -> Interface:
        problems = Problems()
        message = text_format.Parse(text, net_pb2.Interface(name="up0"))
        found = net_config.interface(message, "x", problems)
        assert found is not None
        assert not problems.found
        return found

    assert expected(uplink("dhcp4 {}"))
    assert not expected(uplink("dhcp4 { ignore_dns: true }"))
    assert not expected(uplink('dhcp4 {} static { dns: "192.0.2.1" }'))
    assert not expected(uplink('static { address: "192.0.2.7/24" }'))
    assert not expected(None)


@pytest.mark.parametrize(
    ("text", "has"),
    [
        ("nameserver 192.0.2.1\n", True),
        ("search x\n  nameserver\t::1", True),
        ("# nameserver 192.0.2.1\nsearch x\n", False),
        ("", False),
        (None, False),
    ],
)
def test_which_files_have_servers(tmp_path: Path, text: str | None, has: bool) -> None:
    path = tmp_path / "resolv.conf"
    if text is not None:
        path.write_text(text)
    assert has_servers(str(path)) == has
