# SPDX-License-Identifier: Apache-2.0
"""The CNI exec protocol as the specification has it, without an engine."""

import json
from ipaddress import IPv4Address, IPv6Address
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metropolis.node.core.network.cni import protocol
from metropolis.node.core.network.cni.capabilities import CAPABILITIES, Support
from metropolis.node.core.network.cni.protocol import (
    VERSIONS,
    Add,
    Check,
    CniError,
    Code,
    Del,
    Gc,
    Status,
    Version,
)
from metropolis.node.core.network.cni.wire import Request

ENV = {
    "CNI_CONTAINERID": "c0ffee",
    "CNI_IFNAME": "eth0",
    "CNI_NETNS": "/run/netns/blue",
    "CNI_PATH": "/opt/cni/bin",
}


def execution(command: str, version: str = "1.1.0", /, **config: Any) -> Request:
    """Return a request; upper-case keywords go into the environment."""
    env = ENV | {"CNI_COMMAND": command}
    env |= {f"CNI_{k}": v for k, v in config.items() if k.isupper()}
    body = {"cniVersion": version, "name": "metropolis", "type": "cniproxy"}
    body |= {k: v for k, v in config.items() if not k.isupper()}
    return Request(("cniproxy",), env, json.dumps(body).encode())


def refusal(request: Request) -> CniError:
    with pytest.raises(CniError) as info:
        protocol.parse(request)
    error = json.loads(info.value.answer().stdout)
    assert {"cniVersion", "code", "msg"} <= error.keys() <= {"cniVersion", "code", "msg", "details"}
    assert info.value.answer().exit_code == 1
    return info.value


@pytest.mark.parametrize("version", VERSIONS)
def test_add(version: str) -> None:
    assert protocol.parse(execution("ADD", version)) == Add(
        version, "c0ffee", "eth0", "/run/netns/blue", network="metropolis"
    )


def test_owners_are_names_of_networks_and_each_has_its_own() -> None:
    assert protocol.owner_of("podman") == "cni podman"
    longest = "n" * 251
    assert protocol.owner_of(longest) == f"cni {longest}"
    owners = {protocol.owner_of(longest + more) for more in ("n", "nn", "m")}
    assert len(owners) == 3
    for owner in owners:
        assert len(owner) == 255
        assert owner.startswith("cni nnn")
        assert "~" in owner  # no name has it
        assert owner.isascii()
        assert owner.isprintable()


@pytest.mark.parametrize("version", VERSIONS)
def test_del(version: str) -> None:
    assert protocol.parse(execution("DEL", version)) == Del(
        version, "c0ffee", "eth0", "/run/netns/blue"
    )


@pytest.mark.parametrize(
    ("command", "since"), [("CHECK", "0.4.0"), ("GC", "1.1.0"), ("STATUS", "1.1.0")]
)
@pytest.mark.parametrize("version", VERSIONS)
def test_commands_exist_from_their_version_on(command: str, since: str, version: str) -> None:
    extra: dict[str, Any] = {"prevResult": {}, "cni.dev/valid-attachments": []}
    request = execution(command, version, **extra)
    if VERSIONS.index(version) >= VERSIONS.index(since):
        assert isinstance(protocol.parse(request), Check | Gc | Status)
    else:
        error = refusal(request)
        assert error.code == Code.INCOMPATIBLE_VERSION
        assert since in str(error)


@pytest.mark.parametrize("version", [None, "", "0.1.0", "0.2.0", "0.3.0", "1.2.0", 1, [], {}, "x"])
def test_other_versions_are_incompatible(version: Any) -> None:
    error = refusal(execution("ADD", version))
    assert error.code == Code.INCOMPATIBLE_VERSION
    assert ", ".join(VERSIONS) in error.details


@pytest.mark.parametrize(
    ("stdin", "answered"),
    [
        (b'{"cniVersion": "0.4.0"}', "0.4.0"),
        (b'{"cniVersion": "2.0.0"}', "2.0.0"),
        (b'{"cniVersion": "two"}', "1.1.0"),
        (b"", "1.1.0"),
        (b"[]", "1.1.0"),
        (b"\xff", "1.1.0"),
    ],
)
def test_version_always_answers(stdin: bytes, answered: str) -> None:
    request = Request(("cniproxy",), {"CNI_COMMAND": "VERSION"}, stdin)
    assert protocol.parse(request) == Version(answered)


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("COMMAND", ""),
        ("COMMAND", "add"),
        ("COMMAND", "PING"),
        ("CONTAINERID", ""),
        ("CONTAINERID", "-c0ffee"),
        ("CONTAINERID", "../etc"),
        ("CONTAINERID", "a" * 256),
        ("CONTAINERID", "é"),
        ("CONTAINERID", "c0ffee\n"),
        ("IFNAME", ""),
        ("IFNAME", "sixteen-chars-xx"),
        ("IFNAME", "e/0"),
        ("IFNAME", "e:0"),
        ("IFNAME", "e 0"),
        ("IFNAME", "e\n0"),
        ("IFNAME", ".."),
        ("IFNAME", "\udcff"),
        ("NETNS", ""),
        ("NETNS", "run/netns/blue"),
        ("NETNS", "/" + "x" * 5000),
        ("NETNS", "/run/\udcff"),
        ("ARGS", "IP"),
        ("ARGS", "=x"),
        ("ARGS", "COLOUR=blue"),
    ],
)
def test_the_environment_is_checked_and_the_variable_named(variable: str, value: str) -> None:
    error = refusal(execution("ADD", **{variable: value}))
    assert error.code == Code.INVALID_ENVIRONMENT
    assert f"CNI_{variable}" in error.msg


def test_arguments_are_refused() -> None:
    request = execution("ADD")
    error = refusal(Request(("cniproxy", "--help"), request.env, request.stdin))
    assert error.code == Code.INVALID_ENVIRONMENT


@pytest.mark.parametrize("stdin", [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"a": NaN}'])
def test_stdin_that_is_no_object_is_undecodable(stdin: bytes) -> None:
    assert refusal(Request((), ENV | {"CNI_COMMAND": "ADD"}, stdin)).code == Code.UNDECODABLE


def test_nesting_and_huge_numbers_are_survived() -> None:
    for value in (b"[" * 200_000 + b"]" * 200_000, b"1e999", b"9" * 5000):
        stdin = b'{"cniVersion": "1.1.0", "name": "n", "prevResult": {"ips": %s}}' % value
        assert refusal(Request((), ENV | {"CNI_COMMAND": "ADD"}, stdin)).code == Code.UNDECODABLE


@pytest.mark.parametrize("name", [None, "", "-x", "a/b", 7, "x" * 20 + "\n"])
def test_the_network_needs_a_name(name: Any) -> None:
    assert refusal(execution("ADD", "0.4.0", name=name)).code == Code.INVALID_CONFIG


def test_an_error_is_of_the_version_in_use() -> None:
    assert refusal(execution("ADD", "0.4.0", IFNAME="e/0")).version == "0.4.0"
    assert refusal(execution("CHECK", "0.4.0")).version == "0.4.0"


def test_requested_addresses_and_mac() -> None:
    runtime = {"ips": ["fd00::7/64", "10.192.0.7"], "mac": "02:AB:00:00:00:01"}
    add = protocol.parse(execution("ADD", runtimeConfig=runtime))
    assert isinstance(add, Add)
    assert add.requested_ips == (IPv4Address("10.192.0.7"), IPv6Address("fd00::7"))
    assert add.requested_mac == bytes.fromhex("02ab00000001")


def test_requested_addresses_and_mac_by_arguments() -> None:
    args = "IgnoreUnknown=1;K8S_POD_NAME=a=b;IP=10.192.0.7;MAC=02-ab-00-00-00-01;COLOUR=blue;"
    add = protocol.parse(execution("ADD", ARGS=args))
    assert isinstance(add, Add)
    assert add.requested_ips == (IPv4Address("10.192.0.7"),)
    assert add.requested_mac == bytes.fromhex("02ab00000001")


@pytest.mark.parametrize(
    "runtime",
    [
        {"ips": "10.192.0.7"},
        {"ips": ["10.192.0.300"]},
        {"ips": [7]},
        {"ips": ["10.192.0.7", "10.192.0.8"]},
        {"ips": ["fe80::7%eth0"]},
        {"mac": "02:ab:00:00:00"},
        {"mac": "02:ab-00:00:00:01"},
        {"mac": 7},
        {"dns": {"servers": "10.0.0.1"}},
        {"dns": 7},
        {"dns": ["10.0.0.1"]},
        {"portMappings": {"hostPort": 80, "containerPort": 80}},
        {"portMappings": [{"hostPort": "80", "containerPort": 80}]},
        {"portMappings": [{"hostPort": 80, "containerPort": 80}] * 2},
        {"bandwidth": {"ingressRate": 1000}},
        {"bandwidth": {"ingressRate": "1M"}},
        {"bandwidth": 1},
        "x",
    ],
)
def test_wrong_capabilities_are_invalid(runtime: Any) -> None:
    assert refusal(execution("ADD", runtimeConfig=runtime)).code == Code.INVALID_CONFIG


REFUSED: dict[str, Any] = {
    "ipRanges": [[{"subnet": "10.0.0.0/8"}]],
    "aliases": ["web"],
    "deviceID": "0000:03:02.3",
    "infinibandGUID": "c2:11:22:33:44:55:66:77",
    "of.the.future": True,
}
IGNORED: dict[str, Any] = {
    "io.kubernetes.cri.pod-annotations": {"a": "b"},
    "cgroupPath": "/kubepods/pod1",
}
DONE: dict[str, Any] = {
    "ips": ["10.192.0.7/24"],
    "mac": "02:ab:00:00:00:01",
    "dns": {"servers": ["10.0.0.1"]},
    "portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}],
    "bandwidth": {"ingressRate": 1000000},
}


def test_the_table_has_the_capabilities_of_the_conventions() -> None:
    of = {
        fate: {name for name, one in CAPABILITIES.items() if one.fate is fate} for fate in Support
    }
    assert of == {
        Support.DONE: set(DONE),
        Support.IGNORED: set(IGNORED),
        Support.REFUSED: set(REFUSED) - {"of.the.future"},
    }
    assert all(one.why for one in CAPABILITIES.values())


@pytest.mark.parametrize(("name", "value"), REFUSED.items())
def test_a_refused_capability_is_refused_by_name_and_value(name: str, value: Any) -> None:
    error = refusal(execution("ADD", runtimeConfig={name: value}))
    assert error.code == Code.UNSUPPORTED_FIELD
    assert name in error.msg
    assert repr(value) in error.details


def test_all_refused_capabilities_are_named() -> None:
    error = refusal(execution("ADD", runtimeConfig=REFUSED | DONE))
    assert error.code == Code.UNSUPPORTED_FIELD
    assert all(name in error.msg and name in error.details for name in REFUSED)


@pytest.mark.parametrize("name", [*REFUSED, *IGNORED, *DONE])
@pytest.mark.parametrize("value", [None, [], {}, "", 0, False, [[]], {"ingressRate": 0, "x": ""}])
def test_capabilities_that_ask_for_nothing_are_not_refused(name: str, value: Any) -> None:
    plain = protocol.parse(execution("ADD"))
    assert protocol.parse(execution("ADD", runtimeConfig={name: value})) == plain


def test_an_ignored_capability_changes_nothing() -> None:
    plain = protocol.parse(execution("ADD"))
    assert protocol.parse(execution("ADD", runtimeConfig=IGNORED)) == plain


def test_a_capability_that_is_done_is_in_the_command() -> None:
    assert protocol.parse(execution("ADD", runtimeConfig=DONE)) == Add(
        version="1.1.0",
        container_id="c0ffee",
        if_name="eth0",
        netns="/run/netns/blue",
        requested_ips=(IPv4Address("10.192.0.7"),),
        requested_mac=bytes.fromhex("02ab00000001"),
        dns={"nameservers": ["10.0.0.1"]},
        network="metropolis",
        parts=(("b", "i1000000"), ("h", "t8080=80")),
    )


def test_the_ways_to_ask_for_an_address_have_an_order() -> None:
    """As in the CNI project's `static`."""
    ways: list[dict[str, Any]] = [
        {"ARGS": "IP=10.192.0.1;MAC=02:00:00:00:00:01"},
        {"args": {"cni": {"ips": ["10.192.0.2"], "mac": "02:00:00:00:00:02", "labels": ["x"]}}},
        {"runtimeConfig": {"ips": ["10.192.0.3"], "mac": "02:00:00:00:00:03"}},
    ]
    for last in range(1, 4):
        chosen: dict[str, Any] = {}
        for way in ways[:last]:
            chosen |= way
        add = protocol.parse(execution("ADD", **chosen))
        assert isinstance(add, Add)
        assert add.requested_ips == (IPv4Address(f"10.192.0.{last}"),)
        assert add.requested_mac == bytes([2, 0, 0, 0, 0, last])


@pytest.mark.parametrize("args", [None, 7, [], {}, {"cni": 7}, {"cni": []}, {"other": {"ips": 7}}])
def test_args_that_are_not_for_us_are_ignored(args: Any) -> None:
    assert protocol.parse(execution("ADD", args=args)) == protocol.parse(execution("ADD"))


def test_wrong_args_are_invalid() -> None:
    for wrong in ({"ips": "10.192.0.7"}, {"mac": 7}):
        error = refusal(execution("ADD", args={"cni": wrong}))
        assert error.code == Code.INVALID_CONFIG
        assert "args.cni" in error.msg


def test_dns_is_configured_and_overridden() -> None:
    own = {"nameservers": ["10.0.0.1"], "search": ["a.example"], "domain": "example"}
    asked = {"Servers": ["10.0.0.2"], "Searches": None, "options": ["ndots:5"]}
    add = protocol.parse(execution("ADD", dns=own, runtimeConfig={"dns": asked}))
    assert isinstance(add, Add)
    assert add.dns == {
        "nameservers": ["10.0.0.2"],
        "search": ["a.example"],
        "options": ["ndots:5"],
        "domain": "example",
    }


@pytest.mark.parametrize("prev", [[], "x", {"ips": 7}, {"interfaces": [7]}, {"dns": []}])
def test_a_malformed_previous_result_is_invalid(prev: Any) -> None:
    for command in ("ADD", "CHECK"):
        assert refusal(execution(command, prevResult=prev)).code == Code.INVALID_CONFIG


def test_check_needs_a_previous_result() -> None:
    assert refusal(execution("CHECK")).code == Code.INVALID_CONFIG


@pytest.mark.parametrize("netns", ["", "relative", "/run/\udcff", "/" + "x" * 5000])
def test_del_takes_any_namespace_and_any_configuration(netns: str) -> None:
    odd: dict[str, Any] = {"runtimeConfig": 7, "prevResult": "x", "dns": 7, "ARGS": "x"}
    command = protocol.parse(execution("DEL", NETNS=netns, **odd))
    assert command == Del("1.1.0", "c0ffee", "eth0", "")


@pytest.mark.parametrize(
    ("stdin", "answered"),
    [
        (b"", "1.1.0"),
        (b"{", "1.1.0"),
        (b"null", "1.1.0"),
        (b"\xff", "1.1.0"),
        (b"[" * 200_000, "1.1.0"),
        (b'{"cniVersion": "0.4.0"}', "0.4.0"),
        (b'{"cniVersion": "0.2.0"}', "1.1.0"),
        (b'{"cniVersion": "9.0.0", "name": "n"}', "1.1.0"),
        (b'{"cniVersion": 7, "name": 7}', "1.1.0"),
    ],
)
def test_del_goes_by_the_environment_alone(stdin: bytes, answered: str) -> None:
    env = ENV | {"CNI_COMMAND": "DEL"}
    expected = Del(answered, "c0ffee", "eth0", "/run/netns/blue")
    assert protocol.parse(Request(("cniproxy", "--odd"), env, stdin)) == expected
    error = refusal(Request((), env | {"CNI_CONTAINERID": ""}, stdin))
    assert (error.code, error.version) == (Code.INVALID_ENVIRONMENT, answered)


def test_gc_by_either_name() -> None:
    one = {"containerID": "a", "ifname": "eth0"}
    two = {"containerID": "b", "ifname": "eth0"}
    new, old = "cni.dev/valid-attachments", "cni.dev/attachments"
    assert protocol.parse(execution("GC", **{new: [one, two], old: [one]})) == Gc(
        "1.1.0", frozenset({("a", "eth0"), ("b", "eth0")}), "metropolis"
    )
    assert protocol.parse(execution("GC", **{old: [one]})) == Gc(
        "1.1.0", frozenset({("a", "eth0")}), "metropolis"
    )


@pytest.mark.parametrize("value", [[], None])
def test_gc_of_everything_is_said_explicitly(value: Any) -> None:
    extra = {"cni.dev/valid-attachments": value}
    assert protocol.parse(execution("GC", **extra)) == Gc("1.1.0", frozenset(), "metropolis")
    assert refusal(execution("GC")).code == Code.INVALID_CONFIG


@pytest.mark.parametrize("value", [7, "x", {}, [7], [{}], [{"containerID": "a", "ifname": 7}]])
def test_gc_with_a_malformed_list_removes_nothing(value: Any) -> None:
    extra = {"cni.dev/valid-attachments": value}
    assert refusal(execution("GC", **extra)).code == Code.INVALID_CONFIG


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)
_objects = st.fixed_dictionaries(
    {"cniVersion": st.sampled_from(VERSIONS), "name": st.just("n")},
    optional={
        "runtimeConfig": _json | st.fixed_dictionaries({}, optional={"ips": _json, "mac": _json}),
        "prevResult": _json | st.fixed_dictionaries({}, optional={"ips": _json, "dns": _json}),
        "dns": _json,
        "cni.dev/valid-attachments": _json,
    },
)


@given(
    env=st.dictionaries(
        st.sampled_from(["CNI_CONTAINERID", "CNI_IFNAME", "CNI_NETNS", "CNI_ARGS"]),
        st.text(st.characters(codec=None), max_size=20),
    ),
    command=st.sampled_from(["ADD", "DEL", "CHECK", "GC", "STATUS", "VERSION", "x"]),
    stdin=st.binary(max_size=50)
    | _json.map(lambda v: json.dumps(v).encode())
    | _objects.map(lambda v: json.dumps(v).encode()),
)
def test_anything_is_a_command_or_a_cni_error(
    env: dict[str, str], command: str, stdin: bytes
) -> None:
    request = Request(("cniproxy",), ENV | env | {"CNI_COMMAND": command}, stdin)
    error: CniError | None = None
    try:
        protocol.parse(request)
    except CniError as raised:
        error = raised
    assert error is None or json.loads(error.answer().stdout)["code"] == error.code
