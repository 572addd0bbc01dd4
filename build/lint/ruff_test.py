# SPDX-License-Identifier: Apache-2.0
"""`ruff check` and `ruff format --check` over the whole tree."""

import pytest

from build.lint import tools, tree


@pytest.mark.parametrize("command", [["check"], ["format", "--check"]], ids=" ".join)
def test_ruff(command: list[str]) -> None:
    root = tree.workspace()
    found = tools.ruff(command, root, tree.files(root))
    if found:
        pytest.fail(found, pytrace=False)
