# SPDX-License-Identifier: Apache-2.0
"""For a plain `pytest` in a clone: says which Python it needs.

Tests in Bazel and .venv/bin/python (`./bazelw run //build:ide`) have the
right one. This file has the syntax of old ones.
"""

import sys

import pytest

if sys.version_info < (3, 14):  # noqa: UP036  # this file is for others
    version = sys.version.split()[0]
    pytest.exit(
        f"these sources need Python 3.14, and this is {version}: use .venv/bin/pytest, made"
        " by `./bazelw run //build:ide`, or `./bazelw test`",
        returncode=4,
    )
