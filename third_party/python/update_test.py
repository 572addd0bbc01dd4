# SPDX-License-Identifier: Apache-2.0
"""The output of update.py; the committed lock fits requirements.in."""

import pathlib
import re

import pytest
from packaging.requirements import Requirement

from third_party.python import update

FOLDER = pathlib.Path("third_party/python")


def item(name: str, version: str, digest: str | None) -> dict[str, object]:
    archive = {"hashes": {"sha256": digest}} if digest else {}
    return {
        "metadata": {"name": name, "version": version},
        "download_info": {"url": "https://host.test/secret.whl", "archive_info": archive},
    }


def test_only_versions_and_hashes_get_into_the_lock() -> None:
    reports = [
        {"version": "1", "install": [item("b", "2", "22"), item("A.b-C", "1", "11")]},
        {"version": "1", "install": [item("b", "2", "33")]},
    ]
    text = update.render(update.merge(update.read_report(report) for report in reports))
    assert text == update.HEADER + (
        "a_b_c==1 \\\n    --hash=sha256:11\n"
        "b==2 \\\n    --hash=sha256:22 \\\n    --hash=sha256:33\n"
    )
    assert update.constraints(text) == "a_b_c==1\nb==2\n"


@pytest.mark.parametrize(
    "report",
    [None, [], {}, {"version": "2"}, {"version": "1", "install": [item("a", "1", None)]}],
)
def test_reports_of_another_kind_are_refused(report: object) -> None:
    with pytest.raises(update.UpdateError):
        update.read_report(report)


def test_platforms_must_agree() -> None:
    with pytest.raises(update.UpdateError, match="a: 1 on one platform, 2 on another"):
        update.merge([{"a": ("1", {"x"})}, {"a": ("2", {"y"})}])


def test_the_committed_lock_fits_the_requirements() -> None:
    """If not, one of them was edited; run the update command."""
    locked = dict(
        line.split("==")
        for line in update.constraints((FOLDER / "requirements.lock").read_text()).splitlines()
    )
    wanted = "".join(path.read_text() for path in FOLDER.glob("requirements*.in"))
    for line in re.findall(r"^[^#\n].*", wanted, re.MULTILINE):
        requirement = Requirement(line)
        assert requirement.specifier.contains(locked[update.normalise(requirement.name)]), line
