# SPDX-License-Identifier: Apache-2.0
"""The devroot's lock is well-formed, and has all packages of the list."""

import re
from pathlib import Path

HERE = Path(__file__).parent


def wanted() -> list[str]:
    lines = (HERE / "packages.in").read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def locked() -> list[tuple[str, str, str]]:
    rows: list[tuple[str, str, str]] = []
    for line in (HERE / "packages.lock").read_text().splitlines():
        if not line.startswith("#"):
            name, version, sha256 = line.split(" ")
            rows.append((name, version, sha256))
    return rows


def test_everything_wanted_is_pinned() -> None:
    missing = set(wanted()) - {name for name, _, _ in locked()}
    assert not missing, f"run ./bazelw refresh-devroot; not in packages.lock: {missing}"


def test_every_pin_has_a_version_and_a_sha256() -> None:
    for name, version, sha256 in locked():
        assert re.fullmatch(r"[a-z0-9][a-z0-9+.-]+", name), name
        assert re.fullmatch(r"[0-9][A-Za-z0-9.+~:-]*", version), (name, version)
        assert re.fullmatch(r"[0-9a-f]{64}", sha256), (name, sha256)


def test_pins_are_sorted_and_unique() -> None:
    names = [name for name, _, _ in locked()]
    assert names == sorted(set(names))
