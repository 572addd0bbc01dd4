# SPDX-License-Identifier: Apache-2.0
"""The JSON of a result has go-cni's names; any input is survived."""

import json
from ipaddress import IPv4Address, IPv4Network, IPv6Address
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metropolis.node.containerd.cniproxy.errors import InvalidResultError
from metropolis.node.containerd.cniproxy.result import DNS, Config, IPConfig, Result, Route

_ips = st.ip_addresses()
_texts = st.text(max_size=10)
_lists = st.lists(_texts, max_size=2).map(tuple)
_results = st.builds(
    Result,
    interfaces=st.dictionaries(
        _texts,
        st.builds(
            Config,
            st.lists(st.builds(IPConfig, _ips, st.none() | _ips), max_size=2).map(tuple),
            _texts,
            _texts,
            _texts,
            _texts,
        ),
        max_size=3,
    ),
    dns=st.lists(st.builds(DNS, _lists, _texts, _lists, _lists), max_size=2).map(tuple),
    routes=st.lists(
        st.builds(
            Route,
            st.ip_addresses(v=4).map(IPv4Network),
            st.none() | _ips,
            st.none() | st.integers(0, 255),
        ),
        max_size=2,
    ).map(tuple),
)


@given(_results)
def test_json_and_back(result: Result) -> None:
    assert Result.from_json(result.to_json()) == result


def test_the_names_are_those_of_go_cni() -> None:
    result = Result(
        interfaces={
            "lo": Config(mac="00:00:00:00:00:00"),
            "eth0": Config(
                (
                    IPConfig(IPv4Address("10.0.0.1"), IPv4Address("169.254.77.1")),
                    IPConfig(IPv6Address("fd00::1")),
                ),
                "02:00:00:00:00:01",
                "/run/netns/blue",
            ),
        },
        dns=(DNS(), DNS(nameservers=("10.0.0.53",), search=("example",))),
        routes=(
            Route(IPv4Network("0.0.0.0/0"), IPv4Address("169.254.77.1")),
            Route(IPv4Network("169.254.77.1/32"), scope=253),
        ),
    )
    unused = {"PciID": "", "SocketPath": ""}
    assert json.loads(result.to_json()) == {
        "Interfaces": {
            "lo": {"IPConfigs": None, "Mac": "00:00:00:00:00:00", "Sandbox": ""} | unused,
            "eth0": {
                "IPConfigs": [
                    {"IP": "10.0.0.1", "Gateway": "169.254.77.1"},
                    {"IP": "fd00::1", "Gateway": ""},
                ],
                "Mac": "02:00:00:00:00:01",
                "Sandbox": "/run/netns/blue",
            }
            | unused,
        },
        "DNS": [{}, {"nameservers": ["10.0.0.53"], "search": ["example"]}],
        "Routes": [
            {"dst": "0.0.0.0/0", "gw": "169.254.77.1"},
            {"dst": "169.254.77.1/32", "scope": 253},
        ],
    }


def test_the_empty_result() -> None:
    assert json.loads(Result().to_json()) == {"Interfaces": {}, "DNS": None, "Routes": None}
    assert Result.from_json('{"Interfaces": null}') == Result()


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(
            st.sampled_from(["IP", "Mac", "IPConfigs", "eth0", "dst", "search"]), inner
        )
    ),
    max_leaves=6,
)


@given(
    st.binary(max_size=20)
    | st.fixed_dictionaries({"Interfaces": _json}, optional={"DNS": _json, "Routes": _json}).map(
        lambda value: json.dumps(value).encode()
    )
)
def test_anything_is_a_result_or_an_error(text: bytes) -> None:
    try:
        result = Result.from_json(text)
    except InvalidResultError:
        return
    assert Result.from_json(result.to_json()) == result


@pytest.mark.parametrize("value", [[], {}, {"Interfaces": {"eth0": {"Mac": 7}}}])
def test_what_is_no_result(value: Any) -> None:
    with pytest.raises(InvalidResultError):
        Result.from_json(json.dumps(value))
