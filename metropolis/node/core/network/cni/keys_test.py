# SPDX-License-Identifier: Apache-2.0
"""Keys of configurations that were written for other plugins."""

import json
import logging
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some

from metropolis.node.core.network.cni import keys, protocol
from metropolis.node.core.network.cni.adapter import Adapter
from metropolis.node.core.network.cni.protocol import Add, CniError, Code, Status
from metropolis.node.core.network.cni.wire import Answer, Request
from metropolis.node.core.network.workloads.errors import Unavailable

# What people copy: a configuration of `bridge` or `ptp` that asks for nothing
# that is not done. And what runtimes and libcni write beside it.
USUAL: dict[str, Any] = {
    "isGateway": True,
    "isDefaultGateway": True,
    "forceAddress": False,
    "ipMasq": True,
    "hairpinMode": True,
    "promiscMode": False,
    "vlan": 0,
    "vlanTrunk": None,
    "backend": "nftables",
    "snat": True,
    "mtu": 1400,
    "ipam": {"type": "host-local"},
    "dns": {},
    "capabilities": {"portMappings": True},
    "disableCheck": True,
    "cniVersions": ["1.0.0", "1.1.0"],
    "cni.dev/of-the-future": [7],
    "args": {"cni": {}},
}


def request(command: str = "ADD", /, **config: Any) -> Request:
    env = {"CNI_COMMAND": command, "CNI_CONTAINERID": "c1", "CNI_IFNAME": "eth0"}
    body = {"cniVersion": "1.1.0", "name": "blue", "type": "cniproxy", **config}
    return Request(("cniproxy",), env | {"CNI_NETNS": "/run/netns/blue"}, json.dumps(body).encode())


def add(**config: Any) -> Add:
    made = protocol.parse(request(**config))
    assert isinstance(made, Add)
    return made


@pytest.mark.parametrize(
    "key", ["isGateway", "isDefaultGateway", "hairpinMode", "forceAddress", "macspoofchk"]
)
@pytest.mark.parametrize("value", [True, False])
def test_what_is_done_anyhow_is_accepted(key: str, value: bool) -> None:
    assert add(**{key: value}) == add()


def test_a_usual_configuration_is_accepted_in_silence() -> None:
    made = add(**USUAL)
    assert made.requested_mtu == 1400
    assert made.unknown == ()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        # bridge, ptp
        *(("bridge", "cni0"), ("vlan", 7), ("vlanTrunk", [{"id": 7}]), ("promiscMode", True)),
        *(("ipMasq", False), ("ipMasqBackend", "iptables"), ("ipmasq", False)),
        *(("portIsolation", True), ("disableContainerInterface", True)),
        # macvlan, vlan, host-device, tap
        *(("master", "eth0"), ("vlanId", 5), ("device", "eth1"), ("owner", 7)),
        # portmap, bandwidth, firewall
        *(("snat", False), ("masqAll", True), ("backend", "iptables"), ("conditionsV4", ["-s"])),
        *(("shapedSubnets", ["192.0.2.0/24"]), ("ingressPolicy", "same-bridge")),
        ("firewalldZone", "trusted"),
        # tuning, sbr, vrf
        *(("sysctl", {"net.core.somaxconn": "500"}), ("txQLen", 9), ("allmulti", True)),
        *(("table", 7), ("vrfname", "blue")),
        # What is a capability.
        *(("portMappings", [{"hostPort": 80}]), ("mac", "02:00:00:00:00:01")),
        *(("ips", ["10.0.0.7"]), ("bandwidth", {"ingressRate": 9}), ("deviceID", "0000:03:02.3")),
    ],
)
@pytest.mark.parametrize("command", ["ADD", "STATUS"])
def test_what_is_not_done_is_refused_by_name_value_and_reason(
    key: str, value: Any, command: str
) -> None:
    with pytest.raises(CniError) as caught:
        protocol.parse(request(command, **{key: value}))
    assert caught.value.code == Code.UNSUPPORTED_FIELD
    assert repr(key) in caught.value.msg
    assert f"{key} is {value!r}: " in caught.value.details
    assert "; remove" in caught.value.details


def test_all_are_named() -> None:
    with pytest.raises(CniError) as caught:
        add(bridge="cni0", vlan=7, ipMasq=False)
    assert all(key in str(caught.value) for key in ("bridge is 'cni0'", "vlan is 7", "ipMasq is F"))
    with pytest.raises(CniError, match="and 6 more; remove"):
        add(**dict.fromkeys(list(keys.REFUSED)[:14], "x"))


def test_other_calls_do_not_depend_on_it() -> None:
    """What is attached can be checked and removed after a change."""
    for command in ("CHECK", "DEL"):
        protocol.parse(request(command, vlan=7, prevResult={}))
    assert isinstance(protocol.parse(request("STATUS", colour="blue")), Status)


def test_the_keys_of_bandwidth() -> None:
    """As CNI's `bandwidth`: the configuration's own come first."""
    assert add(ingressRate=10**6, EgressRate=2 * 10**6).parts == (("b", "i1000000,e2000000"),)
    asked: dict[str, Any] = {"runtimeConfig": {"bandwidth": {"egressRate": 10**6}}}
    assert add(ingressRate=10**6, **asked).parts == (("b", "i1000000"),)
    assert add(ingressRate=0, ingressBurst=0, **asked).parts == (("b", "e1000000"),)
    for wrong in ("1M", -1, 7):
        with pytest.raises(CniError, match=f"egressRate.*{wrong}") as caught:
            add(egressRate=wrong)
        assert caught.value.code == Code.INVALID_CONFIG


def test_unknown_keys_are_listed() -> None:
    assert add(colour="blue", MTU=1400, vlan=0, ipMasq=True).unknown == ("colour", "MTU")


def test_no_key_is_in_two_tables() -> None:
    names = [key.lower() for one in (keys.ACCEPTED, keys.ONE_VALUE, keys.REFUSED) for key in one]
    assert len(names) == len(set(names))


class NotReady:
    """An engine that attaches nothing."""

    def __getattr__(self, name: str) -> Any:
        raise Unavailable("not now")


async def test_an_unknown_key_is_logged_once_for_each_network(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def deliver(answer: Answer) -> bool:
        return True

    with ThreadPoolExecutor(1) as executor, caplog.at_level(logging.WARNING):
        adapter = Adapter(NotReady(), executor)
        lines = []
        for config in (
            {"colour": "blue", "sh\nape": 1},
            {"colour": "red"},
            {"colour": "red", "size": 1},
            {"colour": "red", "name": "green"},
            {f"key{n}": n for n in range(2000)},
            {"colour": "blue"},
        ):
            caplog.clear()
            await adapter.serve(request(**config), deliver, lambda: False)
            said = [one.getMessage() for one in caplog.records if "ignored" in one.getMessage()]
            lines.append(said)
    ignored = "ignored keys that are not known here:"
    assert lines[:4] == [
        [f"network 'blue': {ignored} 'colour'; 'sh\\nape'"],
        [],
        [f"network 'blue': {ignored} 'size'"],
        [f"network 'green': {ignored} 'colour'"],
    ]
    # Many are one line; and what is kept has a limit.
    assert lines[4][0].endswith("'key7'; and 1992 more")
    assert lines[5] == [f"network 'blue': {ignored} 'colour'"]


VALUES = some.sampled_from([None, True, False, 0, 1, "", "x", [], [0], {"a": 0}, {"a": 1}, 1.5])
NAMES = some.sampled_from([*keys.ACCEPTED, *keys.ONE_VALUE, *keys.REFUSED, "ingressRate", "x"])


@given(some.dictionaries(NAMES, VALUES, max_size=5))
def test_any_value_is_accepted_or_refused_by_name(config: dict[str, Any]) -> None:
    try:
        assert add(**config).unknown == (("x",) if "x" in config else ())
    except CniError as error:
        assert error.code in (Code.UNSUPPORTED_FIELD, Code.INVALID_CONFIG)
        assert any(key in str(error) for key in config)
