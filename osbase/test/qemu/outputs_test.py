# SPDX-License-Identifier: Apache-2.0
"""Paths of outputs in reports."""

from __future__ import annotations

from pathlib import Path

import pytest

from osbase.test.qemu import outputs


def test_the_path_is_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    sandbox = "/c/sandbox/7/execroot/_main/bazel-out/k8-opt/testlogs/x/y_test/test.outputs"
    monkeypatch.setenv("TEST_UNDECLARED_OUTPUTS_DIR", sandbox)
    found = outputs.directory()
    assert found is not None
    assert outputs.shown(found / "a.log") == "bazel-testlogs/x/y_test/test.outputs/a.log"
    monkeypatch.delenv("TEST_UNDECLARED_OUTPUTS_DIR")
    assert outputs.directory() is None
    assert outputs.shown(Path("/tmp/x")) == "/tmp/x"


def test_a_listing(tmp_path: Path) -> None:
    assert outputs.listing(tmp_path) == f"no logs in {tmp_path}"
    for name in ("b.log", "a/c.log"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert outputs.listing(tmp_path) == f"logs: {tmp_path}/\n  a/c.log\n  b.log"
    for number in range(100):
        (tmp_path / f"{number}.log").touch()
    assert outputs.listing(tmp_path).endswith("\n  and 42 more")
