# SPDX-License-Identifier: Apache-2.0
"""For pytest outside Bazel: the right Python, and what else Bazel gives tests.

Tests in Bazel and .venv/bin/python (`./bazelw run //build:ide`) have the right
Python; this file has the syntax of old ones. Tests with `netns = True` get
their namespaces here: run by root without, they would change the host's
network. Those in machines are skipped, with the command that runs them.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

if sys.version_info < (3, 14):  # noqa: UP036  # this file is for others
    version = sys.version.split()[0]
    pytest.exit(
        f"these sources need Python 3.14, and this is {version}: use .venv/bin/pytest, made"
        " by `./bazelw run //build:ide`, or `./bazelw test`",
        returncode=4,
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Enter namespaces if a case needs them; skip those for machines."""
    if "TEST_SRCDIR" in os.environ:
        return  # in Bazel
    from build.ide.needs import Need, TestFile, of_tests

    known = {}
    for folder in {item.path.parent for item in items}:
        build = folder / "BUILD.bazel"
        tests = of_tests(build.read_text()) if build.exists() else {}
        known.update({folder / (name + ".py"): test for name, test in tests.items()})
    needs = set()
    for item in items:
        test = known.get(item.path, TestFile(Need.NOTHING, ""))
        needs.add(test.need)
        if test.need is Need.MACHINE:
            package = item.path.parent.relative_to(Path(__file__).parent)
            reason = f"needs a machine: ./bazelw test //{package}:{test.target}"
            item.add_marker(pytest.mark.skip(reason=reason))
    if Need.NETNS not in needs or "--netns" in sys.argv:
        return
    from build.python.pytest_main import enter_namespaces

    try:
        enter_namespaces()
    except OSError as error:
        # A debugger's threads are one cause.
        pytest.exit(f"no namespaces for these tests: {error}; use .venv/bin/pytest --netns", 4)
    if Need.NOTHING in needs:
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
