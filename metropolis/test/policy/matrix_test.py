# SPDX-License-Identifier: Apache-2.0
"""A sample of the matrix, with packets; the command tries all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from metropolis.test.policy import matrix


def test_a_sample(tmp_path: Path) -> None:
    outcome = matrix.Outcome()
    chosen = matrix.selected([], [], 23)
    matrix.work(chosen, outcome, tmp_path / "node-core.log")
    assert outcome.fields()["wrong"] == []
    assert outcome.cases == len(chosen) > 20
    assert outcome.cells > 25_000


def test_what_is_wrong_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Policies that are not set."""
    from metropolis.test.policy.play import Play

    monkeypatch.setattr(Play, "_read", lambda *_: ())
    outcome = matrix.Outcome()
    matrix.work(matrix.selected(["deny"], ["ingress"], 100), outcome, tmp_path / "log")
    found = outcome.fields()
    assert not found["ok"]
    assert found["wrong"][0]["expected"] == "denied"
    assert json.dumps(found)
    assert "WRONG" in matrix.shown(outcome)


@pytest.mark.parametrize("words", [["--only", "no such case"], ["--tag", "nosuch"]])
def test_no_such_case(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert matrix.main(words) == 2
    assert "no case" in capsys.readouterr().err


def test_a_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert matrix.main(["--list", "--only", "example/"]) == 0
    assert "[" in capsys.readouterr().out
