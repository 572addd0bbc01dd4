# SPDX-License-Identifier: Apache-2.0
"""`mypy --strict` over the whole tree."""

import pathlib

import pytest

from build.lint import tools, tree


def test_mypy(tmp_path: pathlib.Path) -> None:
    root = tree.workspace()
    found = tools.mypy(root, tree.files(root), pathlib.Path(), tmp_path)
    if found:
        pytest.fail(found, pytrace=False)
