# SPDX-License-Identifier: Apache-2.0
"""The shape of results, version by version, as the specification has them."""

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Any

import pytest

from metropolis.node.core.network.cni import result
from metropolis.node.core.network.cni.protocol import VERSIONS, Add, Check
from metropolis.node.core.network.workloads.model import Attachment, Checked, Finding, Route

ATTACHMENT = Attachment(
    workload_id="c0ffee",
    if_name="eth0",
    ips=(IPv4Address("10.192.0.7"), IPv6Address("fd00:10:192::7")),
    mac=bytes.fromhex("02ab00000001"),
    host_interface="wl1",
    host_ifindex=100,
    mtu=1420,
    gateways=(IPv4Address("169.254.77.1"), IPv6Address("fe80::1")),
    routes=(
        Route(IPv4Network("169.254.77.1/32"), None),
        Route(IPv4Network("0.0.0.0/0"), IPv4Address("169.254.77.1")),
        Route(IPv6Network("fe80::1/128"), None),
        Route(IPv6Network("::/0"), IPv6Address("fe80::1")),
    ),
)

# By version: the keys of an interface, an address, a route, besides those that
# all versions have.
SHAPES: dict[str, tuple[set[str], set[str], set[str]]] = {
    "0.3.1": (set(), {"version"}, set()),
    "0.4.0": (set(), {"version"}, set()),
    "1.0.0": (set(), set(), set()),
    "1.1.0": ({"mtu"}, set(), {"scope"}),
}


def add(version: str = "1.1.0", **more: Any) -> Add:
    return Add(version, "c0ffee", "eth0", "/run/netns/blue", **more)


@pytest.mark.parametrize("version", VERSIONS)
def test_the_shape_of_each_version(version: str) -> None:
    of_interface, of_ip, of_route = SHAPES[version]
    found = result.success(add(version), ATTACHMENT)
    assert list(found) == ["cniVersion", "interfaces", "ips", "routes"]
    assert found["cniVersion"] == version

    host, workload = found["interfaces"]
    assert host.keys() == {"name", "mac"} | of_interface
    assert workload.keys() == {"name", "mac", "sandbox"} | of_interface
    assert (workload["name"], workload["sandbox"]) == ("eth0", "/run/netns/blue")
    assert (host["name"], host["mac"]) == ("wl1", "02:9c:52:fe:6d:0a")
    assert workload["mac"] == "02:ab:00:00:00:01"

    assert [ip.keys() for ip in found["ips"]] == [{"address", "gateway", "interface"} | of_ip] * 2
    assert [ip["address"] for ip in found["ips"]] == ["10.192.0.7/32", "fd00:10:192::7/128"]
    assert [ip["gateway"] for ip in found["ips"]] == ["169.254.77.1", "fe80::1"]
    assert {ip["interface"] for ip in found["ips"]} == {1}
    assert [ip["version"] for ip in found["ips"] if of_ip] == (["4", "6"] if of_ip else [])

    via = [(r["dst"], r["gw"]) for r in found["routes"] if "gw" in r]
    assert via == [("0.0.0.0/0", "169.254.77.1"), ("::/0", "fe80::1")]
    on_link = [(r["dst"], r["scope"]) for r in found["routes"] if "gw" not in r]
    expected = [("169.254.77.1/32", 253), ("fe80::1/128", 253)]
    assert on_link == (expected if of_route else [])


@pytest.mark.parametrize("version", VERSIONS)
def test_a_previous_result_is_passed_on_before_ours(version: str) -> None:
    prev: dict[str, Any] = {
        "cniVersion": version,
        "interfaces": [{"name": "br0"}, {"name": "net0", "sandbox": "/run/netns/blue"}],
        "ips": [{"address": "192.0.2.1/24", "interface": 1}],
        "routes": [{"dst": "192.0.2.0/24"}],
        "dns": {"nameservers": ["192.0.2.53"]},
    }
    found = result.success(add(version, prev_result=prev), ATTACHMENT)
    assert found["interfaces"][:2] == prev["interfaces"]
    assert found["ips"][0] == prev["ips"][0]
    assert [ip["interface"] for ip in found["ips"]] == [1, 3, 3]
    assert found["interfaces"][3]["name"] == "eth0"
    assert found["routes"][0] == prev["routes"][0]
    assert found["dns"] == prev["dns"]
    assert len(prev["interfaces"]) == 2, "the input was changed"


def test_null_lists_are_empty_lists() -> None:
    prev = {"interfaces": None, "ips": None, "routes": None, "dns": None}
    assert result.success(add(prev_result=prev), ATTACHMENT) == result.success(add(), ATTACHMENT)


def test_dns_is_in_the_result() -> None:
    dns = {"nameservers": ["10.0.0.1"]}
    assert result.success(add(dns=dns), ATTACHMENT)["dns"] == dns


def differences(
    prev: dict[str, Any], *findings: tuple[str, str, str], version: str = "1.1.0"
) -> list[str]:
    """Return CHECK's findings for this prevResult and engine's findings."""
    check = Check(version, "c0ffee", "eth0", "/run/netns/blue", prev)
    checked = Checked(ATTACHMENT, tuple(Finding(*one) for one in findings), entered=True)
    return result.differences(check, checked)


@pytest.mark.parametrize("version", VERSIONS[1:])
def test_check_holds_for_what_add_returned(version: str) -> None:
    prev = result.success(add(version), ATTACHMENT)
    assert differences(prev, version=version) == []


def test_check_leaves_other_plugins_alone() -> None:
    prev = result.success(add(), ATTACHMENT)
    prev["interfaces"].append({"name": "net1", "mac": "x", "sandbox": "/run/netns/blue"})
    prev["ips"].append({"address": "192.0.2.1/24", "interface": 2})
    prev["ips"].append({"address": "192.0.2.2/24", "interface": 1})
    prev["routes"].clear()
    assert differences(prev) == []


@pytest.mark.parametrize("interface", [None, "absent"])
def test_an_address_need_not_say_of_which_interface_it_is(interface: Any) -> None:
    prev = result.success(add(), ATTACHMENT)
    for ip in prev["ips"]:
        del ip["interface"]
        if interface is None:
            ip["interface"] = None
    assert differences(prev) == []
    del prev["ips"][0]
    assert differences(prev) == ["eth0 has address 10.192.0.7, prevResult has it not"]


MAC = ("MAC of 'eth0' inside", "02:ab:00:00:00:01", "02:ab:00:00:00:02")
MTU = ("MTU of 'eth0' inside", "1420", "1300")
ROUTE = ("route to ::/0 inside", "via fe80::1 src fd00:10:192::7", "nothing")
ON_LINK = ("route to fe80::1/128 inside", "dev 'eth0'", "nothing")


@pytest.mark.parametrize("version", VERSIONS[1:])
@pytest.mark.parametrize("finding", [MAC, MTU, ROUTE, ON_LINK])
def test_a_change_that_no_result_has_is_found(version: str, finding: tuple[str, str, str]) -> None:
    prev = result.success(add(version), ATTACHMENT)
    has_no_mtu = finding == MTU and version != "1.1.0"
    assert bool(differences(prev, finding, version=version)) is not has_no_mtu


@pytest.mark.parametrize("version", VERSIONS[1:])
def test_what_a_later_plugin_changed_is_right(version: str) -> None:
    """And wrong again when it differs from that plugin's result."""
    prev = result.success(add(version), ATTACHMENT)
    prev["interfaces"][1] |= {"mac": "02:AB:00:00:00:02", "mtu": 1300}
    prev["routes"] = [one for one in prev["routes"] if one["dst"] != "::/0"]
    assert differences(prev, MAC, MTU, ROUTE, version=version) == []
    assert differences(prev, MTU, version=version) == [
        "MAC of eth0 is 02:ab:00:00:00:01, not '02:AB:00:00:00:02'"
    ]
    assert "found 1299" in differences(prev, MAC, (*MTU[:2], "1299"), version=version)[0]
    state = ("state of 'eth0' inside", "up", "down")
    assert "found down" in differences(prev, MAC, state, version=version)[0]


@pytest.mark.parametrize(
    ("what", "index", "key", "value", "said"),
    [
        ("interfaces", 0, "name", "wl9", "host interface is wl1"),
        ("interfaces", 1, "name", "eth1", "no interface eth0"),
        ("interfaces", 1, "sandbox", "", "no interface eth0"),
        ("interfaces", 1, "mac", "02:ab:00:00:00:02", "MAC of eth0 is 02:ab:00:00:00:01"),
        ("ips", 0, "address", "10.192.0.8/32", "eth0 has address 10.192.0.7, prevResult has"),
        ("ips", 0, "interface", 0, "eth0 has address 10.192.0.7, prevResult has it not"),
        ("ips", 0, "address", 7.5, "prevResult has address 7.5"),
    ],
)
def test_check_says_what_differs(what: str, index: int, key: str, value: Any, said: str) -> None:
    prev = result.success(add(), ATTACHMENT)
    prev[what][index][key] = value
    assert said in "; ".join(differences(prev))


def test_version() -> None:
    assert result.versions("0.4.0") == {
        "cniVersion": "0.4.0",
        "supportedVersions": ["0.3.1", "0.4.0", "1.0.0", "1.1.0"],
    }
