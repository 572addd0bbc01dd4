# SPDX-License-Identifier: Apache-2.0
"""Which time servers chronyd gets, with the real node core and DHCP. That
it uses them, and sets the clock, is in //metropolis/test/e2e:time_test.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from metropolis.node.core.network.testing.nodecore import NodeCore, add_uplink, dnsmasq
from metropolis.node.core.network.workloads.spec import workload_pb2

DYNAMIC = 'uplink { name: "up0" dhcp4 {} }'
LOG = "root.network.time: time servers: "


def network(text: str) -> str:
    return f'network {{ {text} pod_prefix: "10.192.0.0/24" }}'


@pytest.fixture
def sources(core: NodeCore) -> Path:
    """The file, of an image that has chronyd."""
    path = core.runtime.parent / "time" / "node.sources"
    path.parent.mkdir(parents=True)
    return path


def reported(sources: Path) -> list[str]:
    return re.findall(r"^server (\S+) iburst$", sources.read_text(), re.MULTILINE)


def test_those_of_dhcp_until_others_come(
    world: None, core: NodeCore, sources: Path, tmp_path: Path
) -> None:
    core.config = network(DYNAMIC)
    core.start(ready=False)
    add_uplink()
    option = "--dhcp-option=option:ntp-server,"
    with dnsmasq(tmp_path, f"{option}192.0.2.123,192.0.2.124"):
        core.wait_for(f"{LOG}192.0.2.123, 192.0.2.124")
        assert reported(sources) == ["192.0.2.123", "192.0.2.124"]
    assert core.stop() == 0
    # Nobody answers: what is known stays.
    core.start()
    core.wait_for("root.network.uplink.addresses")
    assert reported(sources) == ["192.0.2.123", "192.0.2.124"]
    with dnsmasq(tmp_path, f"{option}192.0.2.200"):
        core.wait_for(f"{LOG}192.0.2.200")
        assert reported(sources) == ["192.0.2.200"]


def test_those_of_the_configuration(
    world: None, core: NodeCore, sources: Path, tmp_path: Path
) -> None:
    """Without an uplink, too; DHCP's do not count. That chronyd is unreachable
    is in the log.
    """
    core.config = network('ntp_server: "2001:db8::7" ntp_server: "ntp.example.org"')
    core.start()
    core.wait_for(f"{LOG}2001:db8::7, ntp.example.org")
    core.wait_for("chronyc: No such file or directory")
    assert reported(sources) == ["2001:db8::7", "ntp.example.org"]
    assert core.stop() == 0
    core.config = network(f'{DYNAMIC} ntp_server: "192.0.2.9"')
    core.start()
    add_uplink()
    with dnsmasq(tmp_path, "--dhcp-option=option:ntp-server,192.0.2.123"):
        core.wait_for("root.network.names: name servers: 192.0.2.53")
        assert reported(sources) == ["192.0.2.9"]


def test_none(world: None, core: NodeCore, sources: Path) -> None:
    """This is no problem, and is in Status."""
    core.config = network("")
    core.start()
    assert core.problem() == ""
    notes = core.stub().Status(workload_pb2.StatusRequest(), timeout=30).notes
    assert "no time servers (NTP)" in str(notes)
    assert not sources.exists()


def test_an_image_without_chronyd(world: None, core: NodeCore) -> None:
    core.config = network('ntp_server: "192.0.2.9"')
    core.start()
    assert not (core.runtime.parent / "time").exists()
