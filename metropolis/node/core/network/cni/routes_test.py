# SPDX-License-Identifier: Apache-2.0
"""MTU and routes as configurations have them, and garbage."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metropolis.node.core.network.cni import routes
from metropolis.node.core.network.workloads.errors import InvalidArgument


def made(**config: Any) -> list[str]:
    return [f"{one.destination} via {one.gateway}" for one in routes.routes_of(config)]


@pytest.mark.parametrize(
    ("config", "args", "expected"),
    [
        ({}, {}, 0),
        ({"mtu": None}, {}, 0),
        ({"mtu": 0}, {}, 0),  # bridge and ptp: the default
        ({"mtu": 1400}, {}, 1400),
        ({"mtu": 1400}, {"mtu": 1300}, 1300),
        ({"mtu": 1400}, {"mtu": 0}, 1400),
        ({}, {"mtu": 9000}, 9000),
    ],
)
def test_mtu(config: dict[str, Any], args: dict[str, Any], expected: int) -> None:
    assert routes.mtu_of(config, args) == expected


@pytest.mark.parametrize("value", ["1400", 1400.0, True, -1, 1 << 32, [], {}])
def test_mtus_that_are_none(value: Any) -> None:
    with pytest.raises(InvalidArgument, match="number is expected") as refused:
        routes.mtu_of({"mtu": value}, {})
    assert refused.value.field == "mtu"


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, []),
        ({"ipam": {}}, []),
        ({"ipam": None, "routes": None}, []),
        # The configurations of most clusters, and of Podman.
        ({"ipam": {"routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]}}, []),
        ({"ipam": {"type": "static", "routes": [{"dst": "0.0.0.0/0"}]}}, []),
        (
            {"ipam": {"routes": [{"dst": "192.0.2.0/24"}]}},
            ["192.0.2.0/24 via 169.254.77.1"],
        ),
        (
            {"routes": [{"dst": "192.0.2.0/24", "gw": "169.254.77.1"}]},
            ["192.0.2.0/24 via 169.254.77.1"],
        ),
        (
            {
                "ipam": {"routes": [{"dst": "192.0.2.9/24", "gw": ""}]},
                "routes": [{"dst": "2001:db8::/32", "gw": None}],
            },
            ["192.0.2.0/24 via 169.254.77.1", "2001:db8::/32 via fe80::1"],
        ),
        # Go writes absent values of CNI 1.1.0 so.
        ({"routes": [{"dst": "192.0.2.0/24", "mtu": 0}]}, ["192.0.2.0/24 via 169.254.77.1"]),
    ],
)
def test_routes(config: dict[str, Any], expected: list[str]) -> None:
    assert made(**config) == expected


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ({"ipam": []}, r"ipam is \[\]: an object"),
        ({"ipam": {"type": "host-local", "subnet": "10.88.0.0/16"}}, "'subnet'.*by `ips`"),
        (
            {"ipam": {"type": "static", "subnet": "10.88.0.0/16", "gateway": "10.88.0.1"}},
            "'subnet' is '10.88.0.0/16'; ipam 'gateway' is '10.88.0.1': no IPAM plugin",
        ),
        ({"ipam": {"ranges": [[{"subnet": "10.88.0.0/16"}]]}}, "'ranges'.*no IPAM plugin"),
        ({"ipam": {"addresses": [{"address": "10.4.5.6/16"}]}}, "'addresses'.*10.4.5.6"),
        ({"routes": {}}, "routes is {}: a list"),
        ({"ipam": {"routes": "all"}}, "ipam.routes is 'all': a list"),
        ({"routes": ["192.0.2.0/24"]}, r"routes\[0\] is '192.0.2.0/24': an object"),
        ({"routes": [{}]}, r"routes\[0\].dst is None"),
        ({"routes": [{"dst": "192.0.2.0"}]}, "a prefix length"),
        ({"routes": [{"dst": "192.0.2.0/33"}]}, "192.0.2.0/33"),
        ({"routes": [{"dst": "192.0.2.0/255.255.255.0"}]}, "a prefix length"),
        ({"routes": [{"dst": "192.0.2.0/0.0.0.255"}]}, "a prefix length"),
        ({"routes": [{"dst": "7"}]}, "a prefix length"),
        ({"routes": [{"dst": "fe80::%eth0/64"}]}, "fe80::%eth0/64"),
        ({"routes": [{"dst": 7}]}, "dst is 7"),
        ({"routes": [{"dst": "192.0.2.0/24", "gw": "here"}]}, "gw is 'here'"),
        ({"routes": [{"dst": "192.0.2.0/24", "gw": 1}]}, "gw is 1"),
        ({"routes": [{"dst": "192.0.2.0/24", "gw": "10.1.0.1"}]}, "10.1.0.1 is not reachable"),
        ({"routes": [{"dst": "192.0.2.0/24", "mtu": 1400}]}, "'mtu': dst and gw"),
        ({"routes": [{"dst": "192.0.2.0/24", "table": 7}]}, "'table'"),
        ({"routes": [{"dst": "192.0.2.0/24"}], "ipam": {"routes": [{"dst": "192.0.2.0/24"}]}},
         "is there twice"),
        ({"routes": [{"dst": "0.0.0.0/0"}, {"dst": "0.0.0.0/0"}]}, "0.0.0.0/0: is there twice"),
    ],
)  # fmt: skip
def test_routes_that_cannot_be(config: dict[str, Any], why: str) -> None:
    with pytest.raises(InvalidArgument, match=why) as refused:
        made(**config)
    assert refused.value.field == "routes"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["dst", "gw", "x"]), inner),
    max_leaves=6,
)


@given(JSON, JSON, JSON)
def test_garbage(mtu: Any, some: Any, ipam: Any) -> None:
    """It is understood or refused, and nothing else."""
    try:
        routes.mtu_of({"mtu": mtu}, {})
        made(routes=some, ipam={"routes": ipam})
    except InvalidArgument as error:
        assert error.field in ("mtu", "routes")
