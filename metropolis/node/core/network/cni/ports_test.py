# SPDX-License-Identifier: Apache-2.0
"""portMappings as runtimes send them, what their users met, and garbage."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metropolis.node.core.network.cni import ports
from metropolis.node.core.network.workloads import host_ports
from metropolis.node.core.network.workloads.errors import InvalidArgument


def text(*entries: Any) -> str:
    """Return the text of the part; "": there is none."""
    part = ports.part_of(list(entries), "portMappings")
    assert [letter for letter, _ in part] == [host_ports.LETTER] * bool(part)
    return "".join(text for _, text in part)


def entry(host: Any, container: Any = 80, **more: Any) -> dict[str, Any]:
    return {"hostPort": host, "containerPort": container} | more


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        # containerd: go-cni's fields have no JSON names.
        ([{"HostPort": 8080, "ContainerPort": 80, "Protocol": "tcp", "HostIP": ""}], "t8080=80"),
        # ocicni.
        ([entry(53, 53, protocol="udp", hostIP="192.0.2.7")], "u53=53@192.0.2.7"),
        # Podman leaves out an empty hostIP; a range comes as single entries.
        ([entry(5000 + n, 80 + n, protocol="tcp") for n in range(3)], "t5000-5002=80"),
        # For both families: containernetworking/plugins#487.
        ([entry(80, hostIP="0.0.0.0"), entry(80, hostIP="::")], "t80=80@0.0.0.0,t80=80@::"),
        # cnitool's users write what the CRI has.
        ([entry(80, protocol="TCP"), entry(80, protocol="Sctp")], "t80=80,s80=80"),
        ([entry(80, protocol="")], "t80=80"),
        ([entry(80, protocol=None, hostIP=None)], "t80=80"),
        ([entry(80)], "t80=80"),
        # DNS, and the node's resolver: plugins#1210.
        (
            [entry(53, 53, protocol=p, hostIP="127.0.0.1") for p in ("tcp", "udp")],
            "t53=53@127.0.0.1,u53=53@127.0.0.1",
        ),
        # Two ports of the node to one of the container: podman#7062.
        ([entry(8081, 8080), entry(8080, 8080)], "t8080=8080,t8081=8080"),
        # The same port for other addresses: Kubernetes' own end-to-end test.
        (
            [entry(54323, hostIP="127.0.0.1"), entry(54323, hostIP="192.0.2.7")],
            "t54323=80@127.0.0.1,t54323=80@192.0.2.7",
        ),
        ([entry(80, hostIP="::ffff:192.0.2.1")], "t80=80@192.0.2.1"),
        ([entry(80, hostIP="2001:DB8:0::0001")], "t80=80@2001:db8::1"),
        # Ports that are only declared: kubernetes#47529.
        ([entry(0), entry(80), entry(None, 81), {"containerPort": 82}], "t80=80"),
        ([entry(0, 0, protocol="tcp")], ""),
        ([{}], ""),
        ([], ""),
    ],
)
def test_what_runtimes_send(entries: list[Any], expected: str) -> None:
    assert text(*entries) == expected
    assert text(*reversed(entries)) == expected


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        (7, r"\[1\] is 7: an object"),
        (["8080:80"], r"\[1\] is \['8080:80'\]: an object"),
        (entry("80"), r"\[1\]\.hostPort is '80': a number"),
        (entry(80, "http"), r"\[1\]\.containerPort is 'http': a number"),
        (entry(80.0), r"\[1\]\.hostPort is 80\.0: a number"),
        (entry(True), r"\[1\]\.hostPort is True: a number"),
        (entry([80]), r"\[1\]\.hostPort is \[80\]: a number"),
        (entry(-1), r"\[1\]\.hostPort is -1: a number from 1 to 65535"),
        (entry(65536), r"\[1\]\.hostPort is 65536"),
        (entry(80, -1), r"\[1\]\.containerPort is -1"),
        (entry(80, 65536), r"\[1\]\.containerPort is 65536"),
        # moby#51684: it was accepted, and led nowhere.
        (entry(80, 0), r"\[1\]\.containerPort is 0 or absent"),
        ({"hostPort": 80}, r"\[1\]\.containerPort is 0 or absent"),
        (entry(0, "x"), r"\[1\]\.containerPort is 'x'"),
        (entry(80, protocol="icmp"), r"\[1\]\.protocol is 'icmp': tcp, udp or sctp"),
        (entry(80, protocol="tcp,udp"), r"\[1\]\.protocol is 'tcp,udp'"),
        (entry(80, protocol=6), r"\[1\]\.protocol is 6: a string"),
        (entry(80, hostIP="nowhere"), r"\[1\]\.hostIP is 'nowhere': it is no IP address"),
        (entry(80, hostIP="[::]"), r"\[1\]\.hostIP is '\[::\]'"),
        (entry(80, hostIP="192.0.2.0/24"), r"\[1\]\.hostIP is '192\.0\.2\.0/24'"),
        (entry(80, hostIP="fe80::1%eth0"), r"\[1\]\.hostIP is 'fe80::1%eth0': a zone"),
        (entry(80, hostIP=2130706433), r"\[1\]\.hostIP is 2130706433: a string"),
        (entry(80, hostIP="\udcff"), r"\[1\]\.hostIP is '\\udcff'"),
        # Podman's own format: not CNI's.
        (entry(80, range=10), r"\[1\] has 'range': hostPort, containerPort, protocol, hostIP"),
        (entry(80, HostPort=81), r"\[1\] has hostPort twice"),
        # The kernel cannot do it: podman#12690.
        (entry(80, hostIP="::1"), r"\[1\]\.hostIP ::1: the kernel does not forward"),
        (entry(80, hostIP="fe80::1"), r"\[1\]\.hostIP fe80::1: "),
        (entry(80, hostIP="224.0.0.1"), r"\[1\]\.hostIP 224\.0\.0\.1: "),
        # The same port twice, also in other words.
        (entry(443, 443), r"\[1\]: tcp port 443: is asked for twice"),
        (entry(443, 8443, protocol="TCP", hostIP=""), "tcp port 443: is asked for twice"),
        (entry(443, hostIP="0.0.0.0"), "tcp port 443.*: is asked for twice"),
    ],
)
def test_errors_name_what_is_wrong(wrong: Any, why: str) -> None:
    with pytest.raises(InvalidArgument, match=why) as caught:
        text(entry(443, 443), wrong)
    assert caught.value.field == host_ports.FIELD


def test_all_entries_that_are_wrong_are_in_the_error() -> None:
    with pytest.raises(InvalidArgument) as caught:
        text(
            entry(443, hostIP="::1"),
            entry("80"),
            entry(81),
            entry(81, hostIP="0.0.0.0"),
            entry(82, protocol="icmp"),
        )
    assert str(caught.value).split("; ") == [
        "portMappings[0].hostIP ::1: the kernel does not forward what is sent to ::1",
        "use an address of the node",
        "portMappings[1].hostPort is '80': a number from 1 to 65535 is expected",
        "portMappings[3]: tcp port 81 of 0.0.0.0: is asked for twice",
        "portMappings[4].protocol is 'icmp': tcp, udp or sctp is expected",
    ]


def test_the_error_about_many_entries_has_a_limit() -> None:
    with pytest.raises(InvalidArgument, match=r"\[7\].*; and 992 more$") as caught:
        text(*[entry("80")] * 1000)
    assert "[8]" not in str(caught.value)


@pytest.mark.parametrize("wrong", [{"hostPort": 80}, "80:80", 7, True])
def test_a_list_is_expected(wrong: Any) -> None:
    with pytest.raises(InvalidArgument, match=r"^portMappings is .*: a list is expected"):
        ports.part_of(wrong, "portMappings")


def test_there_is_a_limit() -> None:
    most = [entry(port, port) for port in range(1000, 2024)]
    assert text(*most, entry(0)) == "t1000-2023=1000"
    with pytest.raises(InvalidArgument, match=r"^portMappings: more than 1024 ports"):
        text(*most, entry(2024))


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)
_value = st.sampled_from([0, 1, 80, 65535, "tcp", "UDP", "::", "", None]) | _json
_key = st.sampled_from(["hostPort", "HostPort", "containerPort", "protocol", "hostIP"]) | st.text()


@given(st.lists(st.dictionaries(_key, _value) | _json) | _json)
def test_garbage_is_refused_and_what_is_not_is_canonical(value: Any) -> None:
    try:
        part = ports.part_of(value, "portMappings")
    except InvalidArgument as error:
        assert error.field == host_ports.FIELD
        json.dumps(str(error))
        return
    assert [letter for letter, _ in part] == [host_ports.LETTER] * bool(part)
    for _, text in part:
        assert host_ports.text_of(host_ports.parse(text)) == text
