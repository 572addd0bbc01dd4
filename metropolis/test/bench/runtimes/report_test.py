# SPDX-License-Identifier: Apache-2.0
"""Figures and output of the comparison of runtimes, without a machine."""

import json
import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metropolis.test.bench.runtimes import metrics, report, runtimes, trace
from metropolis.test.bench.runtimes.config import BRIDGE, Place, config, to_toml
from metropolis.test.bench.runtimes.metrics import MetricsError, Network
from metropolis.test.bench.runtimes.model import Measured, Plan, Programs, Runtime, Samples, Subject
from metropolis.test.bench.runtimes.report import Size
from metropolis.test.bench.runtimes.trace import TraceError

RUN = "RunPodSandbox"


def of(subject: Subject, round_: int, *values: float, figure: str = RUN) -> Samples:
    return Samples(figure, "ms", subject, round_, values)


FOUND = Measured(
    {"containerd_ours": "2.1.9"},
    (
        of(Subject.OURS, 0, 100, 200, 300),
        of(Subject.OURS, 1, 1000, 2000, 3000),
        of(Subject.CNI, 0, 400, 400, 400),
        of(Subject.CNI, 1, 4000, 4000, 4000),
        of(Subject.HOST, 0, 90),
        of(Subject.HOST, 1, 90),
        of(Subject.OURS, 0, 10, figure=f"{RUN}: network"),
        of(Subject.CNI, 0, 220, figure=f"{RUN}: network"),
        of(Subject.HOST, 0, 0, figure=f"{RUN}: network"),
    ),
    (Programs(RUN, Subject.CNI, {"bridge": 1.0, "iptables": 13.0}),),
)
SIZES = {
    Subject.OURS: Size(10_000_000, {"/usr/libexec/ours/containerd": 40_000_000}),
    Subject.CNI: Size(
        20_000_000, {"/usr/bin/containerd": 42_000_000, "/usr/lib/cni/bridge": 5_000_000}
    ),
}


def test_a_ratio_is_of_the_same_round() -> None:
    found = {one.subject: one for one in report.figures(FOUND.samples[:6])}
    assert (found[Subject.OURS].p50, found[Subject.OURS].ratio_to_ours) == (1100, 1)
    assert found[Subject.CNI].ratio_to_ours == 2
    # 90 / 200 and 90 / 2,000.
    assert found[Subject.HOST].ratio_to_ours == pytest.approx((0.45 + 0.045) / 2)
    # (290 + 2,900) / 2
    assert found[Subject.OURS].p95 == pytest.approx(1595)
    assert Subject.SHIM not in found


def test_nothing_is_no_ratio() -> None:
    zero = (of(Subject.OURS, 0, 0), of(Subject.CNI, 0, 5))
    assert [one.ratio_to_ours for one in report.figures(zero)] == [None, None]


def test_the_networks_share() -> None:
    measured = report.figures(FOUND.samples)
    shares = {one.subject: one for one in report.shares(measured)}
    assert shares[Subject.CNI].p50 == pytest.approx(10)
    assert shares[Subject.CNI].ratio_to_ours == pytest.approx(11)
    assert shares[Subject.HOST].p50 == 0


def test_sizes_are_by_what_they_are_for() -> None:
    found = {(one.figure, one.subject): one for one in report.sizes(SIZES)}
    assert found["size in an image", Subject.CNI].ratio_to_ours == 2
    network = found["size unpacked: for networks", Subject.CNI]
    assert (network.p50, network.ratio_to_ours) == (5, None)
    assert found["size unpacked: for networks", Subject.OURS].p50 == 0


def test_json_and_table_tell_the_same() -> None:
    told = json.loads(json.dumps(report.to_json({"accel": "tcg"}, FOUND, SIZES)))
    assert set(told) == {"machine", "figures", "programs"}
    keys = {"figure", "subject", "unit", "p50", "p95", "ratio_to_ours"}
    assert all(set(figure) == keys for figure in told["figures"])
    table = report.table({"accel": "tcg"}, FOUND, SIZES)
    assert {figure["figure"] for figure in told["figures"]} == {
        figure["figure"] for figure in told["figures"] if figure["figure"] in table
    }
    assert "is emulated (tcg)" in table
    assert "iptables x 13, bridge" in table
    assert "emulated" not in report.table({"accel": "kvm"}, FOUND, SIZES)


def test_what_host_and_guest_say_arrives() -> None:
    plan = runtimes.plan(runtimes.parse([]))
    assert Plan.from_json(plan.to_json()) == plan
    assert Measured.from_json(FOUND.to_json()) == FOUND


@pytest.mark.parametrize("arguments", [["--rounds", "0"], ["--samples", "x"], ["--cpus", "-1"]])
def test_nonsense_is_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        runtimes.main(arguments)
    assert f"argument {arguments[0]}" in capsys.readouterr().err


METRICS = """\
# HELP containerd_cri_network_plugin_operations_duration_seconds_seconds latency
# TYPE containerd_cri_network_plugin_operations_duration_seconds_seconds histogram
containerd_cri_network_plugin_operations_duration_seconds_seconds_bucket\
{operation_type="set_up_pod",le="0.005"} 0
containerd_cri_network_plugin_operations_duration_seconds_seconds_sum\
{operation_type="set_up_pod"} 1.25
containerd_cri_network_plugin_operations_duration_seconds_seconds_count\
{operation_type="set_up_pod"} 5
containerd_cri_network_plugin_operations_duration_seconds_seconds_sum\
{operation_type="tear_down_pod"} 9e-1
containerd_cri_network_plugin_operations_errors_total{operation_type="set_up_pod"} 2
containerd_cri_network_plugin_operations_total{operation_type="set_up_pod"} 7
go_info{version="go\\"1",a="b"} 1 1700000000
go_gc NaN
"""


def test_metrics_of_the_network_plugin() -> None:
    found = metrics.network(METRICS, metrics.SET_UP)
    assert found == Network(5, 1.25, 2)
    assert found.since(Network(4, 1.0, 2)) == Network(1, 0.25, 0)
    assert metrics.network(METRICS, metrics.TEAR_DOWN) == Network(0, 0.9, 0)
    assert metrics.network("", metrics.SET_UP) == Network()


def test_labels_may_be_quoted() -> None:
    found = {name: labels for name, labels, _ in metrics.values(METRICS)}
    assert found["go_info"] == {"version": 'go\\"1', "a": "b"}


@given(st.text())
def test_garbage_is_no_metrics(text: str) -> None:
    try:
        metrics.network(text, metrics.SET_UP)
    except MetricsError as error:
        assert "not a metric" in str(error)


TRACE = """\
# tracer: nop
#           TASK-PID     CPU#  |||||  TIMESTAMP  FUNCTION
      containerd-312     [001] .....    61.1: task_newtask: pid=400 comm=containerd \
clone_flags=4100 oom_score_adj=0
 containerd-shim-401     [000] .....    61.2: task_newtask: pid=402 comm=containerd-shim \
clone_flags=3d0f00 oom_score_adj=0
        kthreadd-2       [000] .....    61.3: task_newtask: pid=403 comm=kthreadd \
clone_flags=800711 oom_score_adj=0
         python3-90      [000] .....    61.4: task_newtask: pid=404 comm=python3 \
clone_flags=4100 oom_score_adj=0
          a b: c-405     [000] d..2.    61.5: sched_process_exec: \
filename=/usr/sbin/runc pid=405 old_pid=405
            runc-406     [001] .....    61.6: sched_process_exec: \
filename=/proc/self/fd/7 pid=406 old_pid=406
"""


def test_processes_are_not_threads() -> None:
    found = trace.count(TRACE, frozenset({"python3"}))
    assert (found.processes, found.threads) == (1, 1)
    assert found.executed == {"runc": 1, "itself": 1}
    assert trace.count(TRACE).processes == 2


def test_lost_events_are_reported() -> None:
    with pytest.raises(TraceError, match="gap"):
        trace.count("CPU:1 [LOST 12 EVENTS]\n" + TRACE)


@given(st.text())
def test_any_text_is_counted_or_refused(text: str) -> None:
    try:
        trace.count(text)
    except TraceError:
        return


NODE = """
version = 3
root = "/var/lib/containerd"
disabled_plugins = ["a", "b"]
[plugins.'io.containerd.cri.v1.runtime']
  enable_cdi = false
  [plugins.'io.containerd.cri.v1.runtime'.cni]
    conf_dir = ""
    x = 1
"""


def test_configurations_differ_in_places_and_networks() -> None:
    node = tomllib.loads(NODE)
    places = [Place(runtime, number) for number, runtime in enumerate(Runtime)]
    made = {
        place.runtime: tomllib.loads(to_toml(config(tomllib.loads(NODE), place)))
        for place in places
    }
    for distinct in ("root", "state"):
        assert len({str(one[distinct]) for one in made.values()}) == len(Runtime)
    assert len({one["grpc"]["address"] for one in made.values()}) == len(Runtime)
    assert len({one["metrics"]["address"] for one in made.values()}) == len(Runtime)
    cri = "io.containerd.cri.v1.runtime"
    assert made[Runtime.OURS]["plugins"] == node["plugins"]
    assert made[Runtime.CNI]["plugins"][cri]["cni"]["bin_dirs"] == ["/usr/lib/cni"]
    assert made[Runtime.SHIM]["plugins"][cri]["cni"]["bin_dirs"] == ["/usr/libexec/cni"]
    assert made[Runtime.SHIM]["plugins"][cri]["enable_cdi"] is False
    # The node's own is as it was.
    assert node == tomllib.loads(NODE)


def test_the_bridge_is_dual_stack() -> None:
    bridge, portmap = BRIDGE["plugins"]
    assert (bridge["isGateway"], bridge["ipMasq"], len(bridge["ipam"]["ranges"])) == (True, True, 2)
    assert portmap["type"] == "portmap"


_KEYS = st.text(st.characters(codec="ascii", categories=["L", "N", "P", "Z"]), min_size=1)
_SCALARS = st.text() | st.booleans() | st.integers(-(2**63), 2**63 - 1)


@given(
    st.recursive(
        st.dictionaries(_KEYS, _SCALARS | st.lists(_SCALARS)),
        lambda inner: st.dictionaries(_KEYS, inner | _SCALARS),
    )
)
def test_toml_says_what_is_meant(tables: dict[str, object]) -> None:
    assert tomllib.loads(to_toml(tables)) == tables
