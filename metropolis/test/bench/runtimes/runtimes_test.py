# SPDX-License-Identifier: Apache-2.0
"""The comparison of runtimes, with few samples, in a real machine."""

import json

from metropolis.test.bench.runtimes import report, runtimes
from metropolis.test.bench.runtimes.model import Subject

BOTH = ("RunPodSandbox", "Stop+RemovePodSandbox")
ALL = {
    *(f"{call}{what}" for call in BOTH for what in ("", ": network", " at 2", " at 2: network")),
    *(f"{call}: {what}" for call in BOTH for what in ("processes", "programs executed")),
    *(f"{call}: network's share" for call in BOTH),
}


def test_all_are_measured() -> None:
    machine, found = runtimes.run(runtimes.plan(runtimes.parse(["--quick"])), cpus=2)
    told = json.loads(json.dumps(report.to_json(machine, found, runtimes.sizes())))

    assert {"cpu", "accel", "containerd_ours", "containerd_stock"} <= told["machine"].keys()
    assert machine["containerd_ours"] != machine["containerd_stock"]
    by_name: dict[str, dict[str, float]] = {}
    for figure in told["figures"]:
        by_name.setdefault(figure["figure"], {})[figure["subject"]] = figure["p50"]
    assert {name for name in by_name if not name.startswith("size")} == ALL
    for name in ALL:
        assert by_name[name].keys() == set(Subject), name
        network = "network" in name
        for subject, value in by_name[name].items():
            assert (value > 0) is not (network and subject == Subject.HOST), (name, subject)
    assert by_name["size in an image"].keys() == set(Subject) - {Subject.HOST}

    # Executed for a network: nothing, the shim, or the plugins and theirs.
    programs = {(one.figure, one.subject): set(one.executed) for one in found.programs}
    for call in BOTH:
        floor = programs[call, Subject.HOST]
        assert programs[call, Subject.OURS] - floor == set()
        assert programs[call, Subject.SHIM] - floor == {"cniproxy"}
        assert programs[call, Subject.CNI] - floor >= {"bridge", "host-local", "portmap"}
        assert "iptables" in programs[call, Subject.CNI]
