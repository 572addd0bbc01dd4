# SPDX-License-Identifier: Apache-2.0
"""The exit status, from the verdict or from a signal."""

import asyncio
import os
import signal

import pytest

from metropolis.test.launch import command
from metropolis.test.launch.node import NodeError
from metropolis.test.launch.verdict import Verdict

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@pytest.fixture(autouse=True)
def in_these_namespaces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "enter_namespaces", lambda: None)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_before_the_table(number: int) -> None:
    tidied = False

    async def work(verdict: Verdict) -> None:
        nonlocal tidied
        try:
            os.kill(os.getpid(), number)
            await asyncio.sleep(30)
        finally:
            tidied = True

    assert command.run("test", work) == 128 + number
    assert tidied


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("ok", [True, False])
def test_a_signal_after_the_table(number: int, ok: bool) -> None:
    """The signal comes while it stays, and again while it ends."""

    async def work(verdict: Verdict) -> None:
        verdict.shown(ok)
        try:
            os.kill(os.getpid(), number)
            await asyncio.sleep(30)
        finally:
            os.kill(os.getpid(), number)
            await asyncio.sleep(30)

    assert command.run("test", work) == (0 if ok else 1)


@pytest.mark.parametrize("ok", [True, False])
def test_no_signal(ok: bool) -> None:
    async def work(verdict: Verdict) -> None:
        verdict.shown(ok)

    assert command.run("test", work) == (0 if ok else 1)


def test_what_can_be_expected_is_said_without_a_traceback(
    capsys: pytest.CaptureFixture[str],
) -> None:
    async def work(verdict: Verdict) -> None:
        raise NodeError("node-1 is off")

    assert command.run("test", work) is None
    assert capsys.readouterr().err == "test: node-1 is off\n"
