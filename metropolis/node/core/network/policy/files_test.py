# SPDX-License-Identifier: Apache-2.0
"""What a directory of policies may have besides policies."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from metropolis.node.core.network.policy.files import SOURCE, load

POLICY = """\
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: deny, namespace: shop}
spec: {podSelector: {}, policyTypes: [Ingress]}
"""


def large(path: Path) -> None:
    """Make a file that has no room in memory, nor on the disk."""
    path.touch()
    os.truncate(path, 1 << 42)


NO_POLICIES: dict[str, tuple[Callable[[Path], object], str]] = {
    "a FIFO": (os.mkfifo, "is no regular file"),
    "a FIFO by a link": (lambda path: _linked(path, os.mkfifo), "is no regular file"),
    "a device": (lambda path: path.symlink_to("/dev/zero"), "is no regular file"),
    "a directory": (Path.mkdir, "Is a directory"),
    "a loop": (lambda path: path.symlink_to(path), "Too many levels"),
    "a link to nothing": (lambda path: path.symlink_to("/nonexistent"), "No such file"),
    "too large": (large, "more than 4 MiB"),
}


def _linked(path: Path, make: Callable[[Path], object]) -> None:
    make(path.with_suffix(""))
    path.symlink_to(path.with_suffix(""))


@pytest.mark.parametrize("name", NO_POLICIES)
def test_what_is_no_file_of_policies(tmp_path: Path, name: str) -> None:
    """It is said at once, and all stays as it is."""
    make, why = NO_POLICIES[name]
    (tmp_path / "deny.yaml").write_text(POLICY)
    make(tmp_path / "x.yaml")
    found = load(tmp_path)
    assert found.source is None
    (problem,) = found.problems
    assert problem.startswith(f"{tmp_path}/x.yaml")
    assert why in problem


@pytest.mark.parametrize("text", [b"{", b"", POLICY.encode().replace(b"spec", b"sp\xff")])
def test_a_name_that_is_no_utf_8(tmp_path: Path, text: bytes) -> None:
    """A status can say it."""
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/x\xff.yaml")).write_bytes(text)
    found = load(tmp_path)
    assert all(problem.encode() for problem in found.problems)
    assert bool(found.problems) is bool(text)


def test_a_directory_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert load(tmp_path / "file").source is None
    missing = load(tmp_path / "missing")
    assert missing.source is not None
    assert missing.source.policies == ()


NAMESPACE = """\
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {team: red}}
"""


JSON = {
    "apiVersion": "networking.k8s.io/v1",
    "kind": "NetworkPolicy",
    "metadata": {"name": "three", "namespace": "shop"},
    "spec": {"podSelector": {}},
}


def named(name: str) -> str:
    return POLICY.replace("deny", name)


def test_a_directory_that_is_missing_or_empty(tmp_path: Path) -> None:
    for directory in (tmp_path, tmp_path / "missing"):
        loaded = load(directory)
        assert loaded.source is not None
        assert loaded.source.policies == ()
        assert loaded.problems == ()


def test_all_files_are_one_set(tmp_path: Path) -> None:
    """In the order of their names; others are not read."""
    (tmp_path / "b.yml").write_text(named("two") + "---\n" + NAMESPACE)
    (tmp_path / "a.yaml").write_text(named("one"))
    (tmp_path / ".a.yaml.swp").write_text("{")
    (tmp_path / "c.json").write_text(json.dumps(JSON, indent="\t"))
    (tmp_path / "notes.txt").write_text("{")
    (tmp_path / "a.yaml~").write_text("{")
    loaded = load(tmp_path)
    assert loaded.problems == ()
    assert loaded.source is not None
    assert loaded.source.name == SOURCE
    assert [one.name for one in loaded.source.policies] == ["shop/one", "shop/two", "shop/three"]
    assert loaded.source.namespaces["shop"]["team"] == "red"


def test_a_name_in_two_files(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.yaml").write_text(named("same"))
    loaded = load(tmp_path)
    assert loaded.source is not None
    first, second = loaded.source.policies
    assert (first.error, bool(second.error)) == ("", True)
    assert any("b.yaml" in one for one in loaded.problems)
