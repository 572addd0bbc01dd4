# SPDX-License-Identifier: Apache-2.0
"""Results of tests in the file that Bazel's --build_event_json_file writes.

Source: build_event_stream.proto of Bazel (TestResult, TestStatus). A line is an
event; other kinds are skipped, and so is an incomplete last line: Bazel was
killed while it wrote it.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

PASSED = "PASSED"


@dataclass(frozen=True)
class Result:
    """One run of one shard of a test.

    status: a TestStatus, PASSED or any other. directory: has its test.log and
    test.xml, None when Bazel named no file.
    """

    label: str
    run: int
    shard: int
    status: str
    directory: Path | None


def _directory(outputs: Iterable[dict[str, Any]]) -> Path | None:
    for output in outputs:
        if output.get("name") == "test.log":
            return Path(unquote(urlparse(output.get("uri", "")).path)).parent
    return None


def results(lines: Iterable[str]) -> Iterator[Result]:
    """Yield the results among the events."""
    for line in lines:
        try:
            event = json.loads(line)
        except ValueError:
            continue
        about = event.get("id", {}).get("testResult")
        result = event.get("testResult")
        if about is None or result is None:
            continue
        yield Result(
            label=about["label"],
            run=about.get("run", 1),
            shard=about.get("shard", 1),
            status=result.get("status", "NO_STATUS"),
            directory=_directory(result.get("testActionOutput", [])),
        )
