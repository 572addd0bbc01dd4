# SPDX-License-Identifier: Apache-2.0
"""All faults of a text at once, with their places."""

from __future__ import annotations

import re
import subprocess
import sys
from ipaddress import ip_address

import pytest
from google.protobuf import text_format
from hypothesis import given
from hypothesis import strategies as some

from metropolis.node.core import config_faults
from metropolis.node.core.config import ConfigError, parse, summary
from metropolis.node.core.spec import config_pb2

GOOD = """\
# A node.
network {
  uplink {
    name: "eth0"
    static { address: ["192.0.2.7/24", "2001:db8::7/64"] gateway: "192.0.2.1" }
  }
  pod_prefix: "10.192.0.0/24"; pod_prefix: 'fd00:10:192::/112',
  mtu: 0x578
  routed_pods: true
  node_access: < mode: "listed" port: "10250/tcp" "" >
  names_wait_s: 5
}
"""


def faults(text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse(text.encode(), "f")
    return str(caught.value).splitlines()


def test_a_good_text_is_read_as_protobuf_reads_it() -> None:
    ours, theirs = config_pb2.NodeConfig(), config_pb2.NodeConfig()
    assert config_faults.read(GOOD, ours).faults == []
    text_format.Parse(GOOD, theirs)
    assert ours == theirs
    assert summary(parse(GOOD.encode(), "f")) == (
        "uplink eth0, static; pod prefixes 10.192.0.0/24, fd00:10:192::/112"
    )


def test_typos_of_all_kinds_at_once() -> None:
    text = """\
network {
  uplnk { dhcp4 {} }
  pod_prefx: "10.0.0.0/24"
  pod_prefix: 10.1.0.0/24
  mtu: "1400"
  mtu: 1500
  routed_pods: yes
  node_access { mode: "lsited" ports: "80/tcp" }
  ipv6 "optional"
  names_wait_s: -1
  pod_prefix: "10.2.0.1/24"
  wombat: [1, 2, { x: 3 }]
}
clster { node_id: "a" }
}
"""
    assert faults(text) == [
        'f:2:3: network has no field "uplnk"; did you mean "uplink"?',
        'f:3:3: network has no field "pod_prefx"; did you mean "pod_prefix"?',
        'f:4:15: network.pod_prefix[0]: 10.1.0.0/24 is not a text in quotes, such as "a"',
        'f:5:8: network.mtu: "1400" is not a number from 0 to 4294967295',
        "f:6:3: network.mtu is there twice; the first is in line 5",
        "f:7:16: network.routed_pods: yes is not true or false",
        'f:8:17: network.node_access.mode: "lsited" is not one of nothing, listed, all',
        'f:8:32: network.node_access has no field "ports"; did you mean "port"?',
        'f:9:3: network.ipv6: ":" is missing after the name',
        "f:10:17: network.names_wait_s: -1 is not a number from 0 to 4294967295",
        'f:11:3: network.pod_prefix[0]: "10.2.0.1/24" has host bits set; the prefix is '
        '"10.2.0.0/24"',
        'f:12:3: network has no field "wombat"; it has uplink, pod_prefix, reserved_address, mtu, '
        "node_access, forwarded_destination, routed_pods, ipv6, names_wait_s, "
        "new_flows_per_second, ntp_server",
        'f:14:1: the configuration has no field "clster"; did you mean "cluster"?',
        'f:15:1: "}" closes nothing',
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("network {\n  mtu: 1400\n", ['f:2:12: the "{" of network is not closed']),
        ('network {\n  ipv6: "optional\n  mtu: 1\n}', [
            "f:2:9: network.ipv6: the quotes are not closed",
            "f:3:3: network.mtu: 1 is not between 1280 and 65535",
        ]),
        ("network { mtu: }", [
            "f:1:16: network.mtu: the value is missing: a number from 0 to 4294967295"]),
        ("network { uplink: 3 mtu: 1400 }", ['f:1:11: network.uplink: "{" is missing']),
        ("network\nmtu: 1400", [
            'f:1:1: network: "{" is missing',
            'f:2:1: the configuration has no field "mtu"; it has network, cluster']),
        ('network { pod_prefix: ["10.0.0.0/24" mtu: 1400 }', [
            'f:1:38: network.pod_prefix: "," or "]" is missing']),
        ('network { pod_prefix: ["10.0.0.0/24", ', [
            'f:1:23: the "[" of network.pod_prefix is not closed',
            'f:1:38: the "{" of network is not closed']),
        ("network { uplink < dhcp4 {} } }", ['f:1:29: "}" where ">" is expected']),
        ("network { new_flows_per_second: 99999999999 }", [
            'f:1:33: network.new_flows_per_second: 99999999999 is not a number from 0 to '
            "4294967295"]),
        ("cluster { etcd_endpont: \"a\" node_id: \"A\" }", [
            'f:1:11: cluster has no field "etcd_endpont"; did you mean "etcd_endpoint"?',
            'f:1:29: cluster.node_id: "A" is not 1 to 63 of a-z, 0-9 and, inside, -']),
        ('cluster { node_id: "a" }', [
            "f:1:1: cluster.etcd_endpoint: is missing; at least one is needed"]),
    ],
)  # fmt: skip
def test_each_fault_has_its_place(text: str, said: list[str]) -> None:
    assert faults(text) == said


def test_what_is_no_configuration_has_a_bounded_report() -> None:
    assert len(faults("x: 1\n" * 5000)) == config_faults.FAULTS_MAX + 1
    assert len(faults("\x1b[2J\n" * 5000)) <= config_faults.FAULTS_MAX + 1


PIECES = some.sampled_from(
    [
        *("network", "uplink", "dhcp4", "static", "pod_prefix", "mtu", "cluster", "node_id", "x"),
        *(" ", "\n", ":", "{", "}", "<", ">", "[", "]", ",", ";", "-", "#", '"', "'", "\\", "/"),
        *('"10.0.0.0/24"', "1400", "true", "0x5", "1.5", '"a', "é", "\x00", "\x1b"),
    ]
)


@given(
    some.lists(PIECES, max_size=40).map("".join)
    | some.builds(
        lambda at, cut, more: GOOD[:at] + more + GOOD[at + cut :],
        some.integers(0, len(GOOD)), some.integers(0, 9), PIECES,
    )
    | some.text(max_size=80)
)  # fmt: skip
def test_garbage(text: str) -> None:
    """A fault exactly where protobuf has one, each line with a place in the
    text; and nothing that a terminal obeys.
    """
    message = config_pb2.NodeConfig()
    try:
        text_format.Parse(text, message)
        is_right = True
    except text_format.ParseError, ValueError:
        is_right = False
    assert is_right == (config_faults.read(text, config_pb2.NodeConfig()).faults == [])
    try:
        parse(text.encode(), "f")
    except ConfigError as error:
        lines = text.split("\n")
        for line in str(error).splitlines():
            assert line.isprintable()
            found = re.match(r"f:(\d+):(\d+): .", line)
            if found:
                assert 1 <= int(found[1]) <= len(lines) + 1
                assert 1 <= int(found[2]) <= len(lines[min(int(found[1]), len(lines)) - 1]) + 1
            else:
                assert is_right
    else:
        assert is_right


def test_a_text_that_is_right_needs_no_second_reading() -> None:
    """Node core starts without it."""
    script = (
        "import sys; from metropolis.node.core.config import parse; "
        "parse(b'network { mtu: 1400 }', 'f'); "
        "print([m for m in sys.modules if 'config_faults' in m or m == 'difflib'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True,
        env={"PYTHONPATH": ":".join(sys.path)},
    )  # fmt: skip
    assert done.stdout == "[]\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("\x00", [r'f:1:1: "\x00" where the name of a field is expected']),
        ("network { mtu: 1400\x00 }", [
            r'f:1:20: "\x00" where the name of a field is expected']),
        ("\ufeffnetwork { mtu: 1 }", [
            "f:1:1: a byte order mark where the name of a field is expected: save the file "
            "without it",
            "f:1:12: network.mtu: 1 is not between 1280 and 65535"]),
        ('network { pod_prefix: ["10.0.0.0/24",] mtu: 1 }', [
            'f:1:37: network.pod_prefix: "," before the "]"',
            "f:1:40: network.mtu: 1 is not between 1280 and 65535"]),
        ('network { pod_prefix ["10.0.0.0/24"] mtu: 1 }', [
            'f:1:11: network.pod_prefix: ":" is missing after the name',
            "f:1:38: network.mtu: 1 is not between 1280 and 65535"]),
        ("network { mtu: [1400] }", [
            "f:1:16: network.mtu: a list, where a number from 0 to 4294967295 is expected"]),
        ("network { mtu: 1400/x }", [
            "f:1:16: network.mtu: 1400/x is not a number from 0 to 4294967295"]),
        ("network { mtu: ١٤ ipv6: \"x\" }", [
            r"f:1:16: network.mtu: \u0661\u0664 is not a number from 0 to 4294967295",
            'f:1:19: network.ipv6: "x" is not "required" or "optional"']),
        (r'network { ipv6: "\ud800" }', [
            r'f:1:17: network.ipv6: "\ud800" is not UTF-8 with escapes as in C']),
        ('network { ipv6: "a\\\n" }', [
            "f:1:17: network.ipv6: the quotes are not closed",
            "f:2:1: the quotes are not closed",
            'f:2:4: the "{" of network is not closed']),
        ("network { [a.b/c.d] { x: 1 } mtu: 1 }", [
            'f:1:11: "[" where the name of a field is expected',
            "f:1:30: network.mtu: 1 is not between 1280 and 65535"]),
    ],
)  # fmt: skip
def test_what_protobuf_alone_refused(text: str, said: list[str]) -> None:
    assert faults(text) == said


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('uplink { static { adress: "192.0.2.7/24" gateway: "192.0.2.1" } }', ["adress"]),
        ("uplink { vlan { idd: 5 } }", ["idd"]),
        ('uplink { bond { mode: "802.3ad" membr: "a" min_links: 1 } }', ["membr"]),
        ('uplink { static { route { destinaton: "10.0.0.0/8" } } }', ["destinaton"]),
        ('pod_prefx: "10.0.0.0/24" reserved_address: "10.0.0.9"', ["pod_prefx"]),
        ('pod_prefix: "10.0.0.0/33" reserved_address: "10.0.0.9"', ["pod_prefix"]),
        ('node_access { mod: "listed" port: "80/tcp" }', ["mod"]),
        ('} cluster { nod_id: "a" etcd_endpoint: "h" ', ["nod_id"]),
    ],
)
def test_one_typo_is_one_fault(text: str, said: list[str]) -> None:
    """What follows from it in other fields is no fault."""
    found = faults(f"network {{ {text} }}")
    assert len(found) == 1, found
    assert said[0] in found[0]


MANY = 20_000


@pytest.mark.parametrize(
    ("before", "each", "after"),
    [
        ("network {", 'pod_prefix: "{}/32"', "}"),
        ("network { mtu: 1 ", 'reserved_address: "{}"', "}"),
        ("network { uplink { static {", 'address: "{}/32"', "}}}"),
        ("network { uplink { static {", 'gateway: "{}"', "}}}"),
        ('network { uplink { bond { mode: "802.3ad"', 'member: "{}"', "}}}"),
        ('cluster { node_id: "a"', 'etcd_endpoint: "{}"', "}"),
    ],
)
def test_many_entries_take_no_hour(before: str, each: str, after: str) -> None:
    """Entries are compared with each other, so their number has a bound."""
    many = "\n".join(each.format(ip_address(0x0A000000 + number)) for number in range(MANY))
    found = faults(f"{before}\n{many}{after}")
    assert len(found) <= config_faults.FAULTS_MAX + 1


def test_the_name_of_the_file_is_printable() -> None:
    with pytest.raises(ConfigError) as caught:
        parse(b"network { mtu: 1 }", "a\n\x1b[2J")
    assert str(caught.value).startswith(r"a\n\x1b[2J:1:11: ")
