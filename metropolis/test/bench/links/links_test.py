# SPDX-License-Identifier: Apache-2.0
"""The comparison of links, with few samples, in a real machine.

The answers about features are compared word for word: if a new kernel can do
more, or less, the verdict in PERFORMANCE.md has to be reviewed.
"""

import json
import math

import pytest

from metropolis.test.bench.links import links
from metropolis.test.bench.links.model import Kind
from metropolis.test.bench.links.report import to_json

FIGURES = {
    "attach",
    "attach, pair",
    "attach, pod's side",
    "attach, host's side",
    "delete one",
    "delete 2 by group",
    *(
        f"{test} IPv{version} {value}"
        for version in (4, 6)
        for test, values in (
            ("TCP_RR", ("rate", "mean", "p50", "p99", "net_rx")),
            ("TCP_STREAM", ("rate", "per MiB")),
        )
        for value in values
    ),
}
NO_MAC = "without a MAC: to 00:00:00:00:00:00"
NO_ATTRIBUTE = "no such attribute"
# (question's beginning, kind): the answer in place of "yes".
EXPECTED = {
    ("MAC at creation", Kind.NETKIT_L3): "ENOTSUP",
    ("AF_PACKET frames arrive", Kind.NETKIT_L3): NO_MAC,
    **{
        (question, kind): NO_ATTRIBUTE
        for question in ("black hole", "marks and priorities")
        for kind in (Kind.VETH, Kind.VETH_1Q)
    },
    **{("altname at creation", kind): "accepted, without effect" for kind in Kind},
}


def test_every_kind_carries_traffic_and_is_measured() -> None:
    machine, found = links.run(links.plan(1, 2), cpus=2, instructions=False)
    told = json.loads(json.dumps(to_json(machine, found)))

    assert {"cpu", "cores", "accel", "guest_kernel", "netperf"} <= told["machine"].keys()
    by_name: dict[str, set[str]] = {}
    for figure in told["figures"]:
        by_name.setdefault(figure["figure"], set()).add(figure["subject"])
        values = [figure[key] for key in ("p50", "p95", "p99", "ratio_to_veth")]
        assert all(math.isfinite(value) and value > 0 for value in values), figure
    assert by_name == {name: set(Kind) for name in FIGURES}

    for ability in found.abilities:
        for kind, answer in ability.answers.items():
            known = [
                want
                for (question, of), want in EXPECTED.items()
                if of is kind and ability.what.startswith(question)
            ]
            assert answer == (known[0] if known else "yes"), (ability.what, kind)
    assert found.abilities


@pytest.mark.parametrize("arguments", [["--rounds", "0"], ["--samples", "many"]])
def test_nonsense_is_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        links.main(arguments)
    assert f"argument {arguments[0]}" in capsys.readouterr().err
