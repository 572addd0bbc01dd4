# SPDX-License-Identifier: Apache-2.0
"""Files that a test leaves, and how its reports name them.

Bazel keeps what a test writes to TEST_UNDECLARED_OUTPUTS_DIR. The variable's
path may be of a sandbox that is gone when somebody reads the report, so reports
have the path in the workspace: bazel-testlogs/PATH/NAME/test.outputs.
"""

from __future__ import annotations

import os
from pathlib import Path

_LOGS = "/testlogs/"
_MOST = 60


def directory() -> Path | None:
    """Return the directory for outputs; None outside Bazel."""
    path = os.environ.get("TEST_UNDECLARED_OUTPUTS_DIR")
    return Path(path) if path else None


def shown(path: Path) -> str:
    """Return an output's path as reports have it."""
    _, found, rest = str(path).partition(_LOGS)
    return f"bazel-testlogs/{rest}" if found else str(path)


def listing(top: Path) -> str:
    """Return the paths of all files below a directory, for a report."""
    files = sorted(path.relative_to(top) for path in top.rglob("*") if path.is_file())
    if not files:
        return f"no logs in {shown(top)}"
    more = [f"  and {len(files) - _MOST} more"] if len(files) > _MOST else []
    return "\n".join([f"logs: {shown(top)}/", *(f"  {path}" for path in files[:_MOST]), *more])
