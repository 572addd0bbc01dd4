# SPDX-License-Identifier: Apache-2.0
"""The product and the oracle agree in random worlds. `compare` tries more."""

from __future__ import annotations

import json

import pytest

from metropolis.node.core.network.policy.evaluate import Evaluator
from metropolis.node.core.network.policy.lookup import Lookup
from metropolis.node.core.network.policy.model import Verdict
from metropolis.test.policy import compare


def test_no_answer_differs() -> None:
    wrong = [one for seed in range(150) for one in compare.compare(seed, 15, 2) if one]
    assert wrong == []


@pytest.mark.parametrize("of", ["evaluator", "tables"])
def test_a_difference_is_found(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], of: str
) -> None:
    if of == "evaluator":
        monkeypatch.setattr(Evaluator, "verdict", lambda *_: Verdict(allowed=True))
    else:
        monkeypatch.setattr(Lookup, "allows", lambda *_: True)
    arguments = ["--first", "7", "--worlds", "3", "--questions", "10", "--changes", "0", "--json"]
    assert compare.main(arguments) == 1
    found = json.loads(capsys.readouterr().out)
    assert (found["ok"], found["worlds"], found["questions"]) == (False, 3, 30)
    assert found["wrong"]
