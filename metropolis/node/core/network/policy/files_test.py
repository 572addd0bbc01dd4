# SPDX-License-Identifier: Apache-2.0
"""What a directory of files says, and when it says nothing."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from metropolis.node.core.network.policy.files import SOURCE, load

POLICY = """\
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {{name: {}, namespace: shop}}
spec: {{podSelector: {{}}}}
"""
NAMESPACE = """\
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {team: red}}
"""


def test_a_directory_that_is_missing_or_empty(tmp_path: Path) -> None:
    for directory in (tmp_path, tmp_path / "missing"):
        loaded = load(directory)
        assert loaded.source is not None
        assert loaded.source.policies == ()
        assert loaded.problems == ()


def test_all_files_are_one_set(tmp_path: Path) -> None:
    """In the order of their names; others are not read."""
    (tmp_path / "b.yml").write_text(POLICY.format("two") + "---\n" + NAMESPACE)
    (tmp_path / "a.yaml").write_text(POLICY.format("one"))
    (tmp_path / ".a.yaml.swp").write_text("{")
    (tmp_path / "notes.txt").write_text("{")
    (tmp_path / "a.yaml~").write_text("{")
    loaded = load(tmp_path)
    assert loaded.problems == ()
    assert loaded.source is not None
    assert loaded.source.name == SOURCE
    assert [one.name for one in loaded.source.policies] == ["shop/one", "shop/two"]
    assert loaded.source.namespaces["shop"]["team"] == "red"


def test_a_name_in_two_files(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.yaml").write_text(POLICY.format("same"))
    loaded = load(tmp_path)
    assert loaded.source is not None
    first, second = loaded.source.policies
    assert (first.error, bool(second.error)) == ("", True)
    assert any("b.yaml" in one for one in loaded.problems)


@pytest.mark.parametrize("kind", ["text", "directory", "fifo", "loop", "gone"])
def test_what_cannot_be_read_says_nothing(tmp_path: Path, kind: str) -> None:
    """So what was in force stays. Nothing hangs."""
    (tmp_path / "a.yaml").write_text(POLICY.format("one"))
    bad = tmp_path / "bad.yaml"
    if kind == "text":
        bad.write_bytes(b"\xff\xfe{")
    elif kind == "directory":
        bad.mkdir()
    elif kind == "fifo":
        os.mkfifo(bad)
    elif kind == "loop":
        bad.symlink_to(bad)
    else:
        bad.symlink_to(tmp_path / "nowhere")
    loaded = load(tmp_path)
    assert loaded.source is None
    assert any("bad.yaml" in one for one in loaded.problems)


def test_a_file_without_end(tmp_path: Path) -> None:
    (tmp_path / "big.yaml").symlink_to("/dev/zero")
    loaded = load(tmp_path)
    assert loaded.source is None
    assert "big.yaml" in loaded.problems[0]
