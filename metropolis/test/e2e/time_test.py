# SPDX-License-Identifier: Apache-2.0
"""The node's clock is right, by the time server that DHCP names."""

import time

import pytest

from metropolis.test.launch.cri import sandbox_config
from metropolis.test.launch.lab import ROUTER_IPV4
from metropolis.test.launch.node import Node

pytestmark = pytest.mark.asyncio(loop_scope="session")

_YEAR_S = 365 * 86400
# Seconds; includes the time that a busy emulated machine takes for a command.
_RIGHT_S = 60.0
_LOG = "/run/log/time/current"


async def is_right(node: Node) -> bool:
    return abs(float(await node.shell("date +%s")) - time.time()) < _RIGHT_S


async def test_the_server_is_that_of_dhcp(node: Node) -> None:
    assert f"server {ROUTER_IPV4.ip} iburst" in await node.shell(
        "cat /run/metropolis/time/node.sources"
    )
    # Until it is synchronised: at most a minute, each try a second.
    await node.shell("chronyc -n waitsync 60 0 0 1")
    assert str(ROUTER_IPV4.ip) in await node.shell("chronyc -n sources")
    assert await is_right(node)


@pytest.mark.parametrize("wrong_s", [-20 * _YEAR_S, -5 * 3600, 3600, 9 * _YEAR_S])
async def test_a_clock_that_is_wrong_is_set(node: Node, wrong_s: int) -> None:
    """The clock is set as at a boot; a running pod is not affected."""
    pod = await node.cri.run_sandbox(sandbox_config(f"pod-{wrong_s}"))
    await node.shell("sv -w 20 stop /run/sv/time")
    await node.shell(f"date -s @{int(time.time()) + wrong_s}")
    assert not await is_right(node)
    await node.shell("sv -w 20 start /run/sv/time")
    await node.shell("until chronyc -n tracking; do sleep 0.1; done")
    await node.shell("chronyc -n waitsync 60 0 0 1")
    assert await is_right(node)
    assert "System clock was stepped by" in await node.shell(f"tail -n 20 {_LOG}")
    await node.cri.remove_pod(pod)


async def test_it_serves_nobody_and_is_not_root(node: Node) -> None:
    assert await node.shell("ps -o user,comm | grep '^_chrony *chronyd$' | wc -l") != "0\n"
    sockets = await node.shell("netstat -lnu; netstat -lnt")
    assert ":123 " not in sockets
    assert ":323 " not in sockets
