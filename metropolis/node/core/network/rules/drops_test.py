# SPDX-License-Identifier: Apache-2.0
"""Every drop has a reason in the list, and every reason a drop."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from ipaddress import ip_network

import pytest

from metropolis.node.core.config import AccessMode, NodeAccess, Ports
from metropolis.node.core.network.rules import base
from metropolis.node.core.network.rules.drops import ARP, INET, Reason
from metropolis.node.core.network.rules.settings import Settings

FULL = Settings(
    networks=(ip_network("10.192.0.0/16"), ip_network("fd00:10:192::/64")),
    node_access=NodeAccess(AccessMode.LISTED, (Ports("tcp", 1, 9), Ports("udp", 5, 5))),
    forwarded=(ip_network("169.254.1.1"), ip_network("fd00:ec2::254")),
    resolvers=(ip_network("169.254.1.1")[0], ip_network("fd00:ec2::254")[0]),
    strict=((4, "up0"), (6, "up0")),
    overlay=True,
    cgroup="node/core",
)
ALL_SETTINGS = {
    "none": Settings(),
    "full": FULL,
    "routed": replace(FULL, routed_pods=True),
    "all": replace(FULL, node_access=NodeAccess(AccessMode.ALL)),
    "one family": Settings(networks=(ip_network("10.192.0.0/16"),), strict=((6, "up0"),)),
}
WRITTEN = [base.render, base.render_update]


@pytest.mark.parametrize("settings", ALL_SETTINGS.values(), ids=ALL_SETTINGS)
@pytest.mark.parametrize("write", WRITTEN)
def test_every_drop_is_counted_by_a_reason(
    settings: Settings, write: Callable[[Settings], str]
) -> None:
    """In each table by a counter of its own, and by no policy."""
    text = write(settings)
    for table, reasons in (("inet", INET), ("arp", ARP)):
        part = next(
            one for one in text.split("\ntable ") if one.startswith(f"{table} metropolis {{")
        )
        labels = {reason.label for reason in reasons}
        drops = [line for line in part.splitlines() if re.search(r"\bdrop\b", line)]
        assert drops
        for line in drops:
            found = re.search(r"counter name (\w+) drop$", line)
            assert found is not None, line
            assert found[1] in labels, line
    assert "reject" not in text
    assert "policy drop" not in text


def test_every_reason_is_used_and_declared() -> None:
    """With all settings; each name and comment is one."""
    text = base.render(FULL)
    for reason in Reason:
        assert text.count(f"counter name {reason.label} drop") >= 1, reason
        assert text.count(f"counter {reason.label} {{") == 1, reason
    assert len({reason.label for reason in Reason}) == len(Reason)
    assert set(INET) | set(ARP) == set(Reason)


@pytest.mark.parametrize("settings", ALL_SETTINGS.values(), ids=ALL_SETTINGS)
def test_the_layout_does_not_depend_on_settings(settings: Settings) -> None:
    """Else an update would leave a chain or set behind."""

    def layout(text: str) -> list[str]:
        lines = (re.sub(" elements = {.*?};", "", line) for line in text.splitlines())
        return re.findall(r"^ {4}(?:chain|set|counter) .*$", "\n".join(lines), re.MULTILINE)

    assert layout(base.render(settings)) == layout(base.render(FULL))
