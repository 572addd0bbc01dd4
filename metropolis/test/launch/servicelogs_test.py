# SPDX-License-Identifier: Apache-2.0
"""Crashes and excerpts, from logs as svlogd writes them."""

from __future__ import annotations

import pytest

from metropolis.test.launch import servicelogs
from metropolis.test.launch.servicelogs import Watch

# A module of node core with a misspelt name.
CRASH = """\
-- start
Traceback (most recent call last):
  File "<frozen runpy>", line 198, in _run_module_as_main
  File "/usr/lib/metropolis/metropolis/node/core/main.py", line 20, in <module>
    nmae
NameError: name 'nmae' is not defined
"""
# A task that the supervisor restarts.
DIED = """\
[   12.345678] E root.network.workloads: died: NameError: name 'nmae' is not defined
    Traceback (most recent call last):
      File "/usr/lib/metropolis/osbase/supervisor/tree.py", line 130, in _live
    NameError: name 'nmae' is not defined
[   12.345900] I root.network.workloads: restarts in 0.5 s
"""
RUNS = "-- start\n[   10.000000] I core: node core started, process 70\n"


def svlogd(text: str) -> str:
    """Return the text with svlogd's times."""
    return "".join(
        f"2026-11-28_13:41:15.{n:05} {line}\n" for n, line in enumerate(text.splitlines())
    )


def test_a_service_that_ends_again_and_again() -> None:
    watch = Watch(booting=True)
    assert watch.look("node-core", svlogd("-- start\n")) == ""
    assert watch.look("node-core", svlogd(CRASH)) == ""
    assert watch.news == []
    assert watch.look("node-core", svlogd(CRASH + "-- start\n")) == ""
    assert watch.news == ["node-core ended and starts again: NameError: name 'nmae' is not defined"]
    assert watch.look("node-core", svlogd(CRASH + CRASH)) == ""
    assert watch.news == [], "said once"
    assert watch.look("node-core", svlogd(CRASH + CRASH + "-- start\n")) == (
        "node-core ended 2 times and starts again: NameError: name 'nmae' is not defined"
    )


def test_one_restart_that_works() -> None:
    watch = Watch(booting=True)
    assert watch.look("containerd", svlogd(CRASH + RUNS)) == ""
    assert watch.look("containerd", svlogd(CRASH + RUNS + "[   11.000000] I x: y\n" * 99)) == ""


def test_what_was_before_does_not_count() -> None:
    """A test has killed node core on purpose."""
    watch = Watch(booting=False)
    before = CRASH + CRASH + RUNS + DIED * 9
    assert watch.look("node-core", svlogd(before)) == ""
    assert watch.look("node-core", svlogd(before + RUNS)) == ""
    assert "ended 2 times" in watch.look("node-core", svlogd(before + RUNS + RUNS))
    # It was rotated.
    assert watch.look("node-core", svlogd(RUNS)) == ""


def test_a_task_that_dies_again_and_again() -> None:
    watch = Watch(booting=True)
    assert watch.look("node-core", svlogd(RUNS + DIED)) == ""
    assert watch.news == [
        "node-core: root.network.workloads died and restarts: NameError: name 'nmae' is not defined"
    ]
    assert "root.network.workloads died 2 times" in watch.look("node-core", svlogd(RUNS + DIED * 2))


@pytest.mark.parametrize(("times", "fault"), [(5, False), (6, True)])
def test_other_errors_of_a_task_may_go_away(times: int, fault: bool) -> None:
    died = DIED.replace("NameError", "OSError")
    assert bool(Watch(booting=True).look("node-core", svlogd(RUNS + died * times))) is fault


def test_the_last_traceback_is_whole() -> None:
    later = "".join(f"[   20.{n:06}] I x: y {n}\n" for n in range(50))
    found = servicelogs.excerpt(svlogd(RUNS + DIED + later), 10).splitlines()
    assert found[:4] == DIED.splitlines()[:4]
    assert found[4] == "..."
    assert found[5:] == later.splitlines()[-10:]
    within = servicelogs.excerpt(svlogd(RUNS + DIED), 3)
    assert within.splitlines() == DIED.splitlines()
    assert servicelogs.excerpt(svlogd(RUNS + CRASH), 3) == CRASH.rstrip()


def test_a_traceback_is_printed_once() -> None:
    found = servicelogs.excerpt(svlogd(CRASH * 3 + "-- start\n"), 60)
    assert found == f"{'-- start\n(as below)\n' * 2}{CRASH}-- start"


def test_an_excerpt_of_anything() -> None:
    assert servicelogs.excerpt("", 5) == ""
    assert servicelogs.excerpt("x\n" * 100, 5) == "\n".join("x" * 5)
    assert servicelogs.excerpt(svlogd("time=1\n" * 100), 5) == "\n".join(["time=1"] * 5)
    assert len(servicelogs.excerpt("y" * 9999, 5)) == 300
