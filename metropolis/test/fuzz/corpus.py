# SPDX-License-Identifier: Apache-2.0
"""The kept inputs: a file per target, a line of hex per input."""

import hashlib
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from types import CodeType

_HEAD = "# SPDX-License-Identifier: Apache-2.0\n# Inputs in hex; `fuzz --keep` writes this.\n"
FOLDER = Path(__file__).parent / "corpus"


def load(target: str, folder: Path = FOLDER) -> list[bytes]:
    """Return the inputs of a target; [] when there is no file yet."""
    path = folder / f"{target}.hex"
    if not path.exists():
        return []
    return [
        bytes.fromhex(line) for line in path.read_text().splitlines() if not line.startswith("#")
    ]


def save(target: str, inputs: Iterable[bytes], folder: Path) -> None:
    """Replace the inputs of a target; short ones come first."""
    lines = sorted({one.hex() for one in inputs}, key=lambda line: (len(line), line))
    (folder / f"{target}.hex").write_text(_HEAD + "".join(f"{line}\n" for line in lines))


def spread(inputs: Iterable[bytes], folder: Path) -> None:
    """Write inputs for libFuzzer: a file each, named by its digest."""
    folder.mkdir(parents=True, exist_ok=True)
    for one in inputs:
        (folder / hashlib.sha1(one).hexdigest()).write_bytes(one)


def gather(folder: Path) -> list[bytes]:
    """Read the inputs in a folder of libFuzzer: the inverse of spread."""
    return [path.read_bytes() for path in sorted(folder.iterdir())]


def minimise(target: Callable[[bytes], None], inputs: Iterable[bytes]) -> list[bytes]:
    """Return the inputs, short ones first, that enter a function of ours, or
    take a branch in one, which no earlier input did.

    libFuzzer's -merge executes its own program again, which fails for Python.
    """
    seen: set[tuple[CodeType, int, int]] = set()
    now: set[tuple[CodeType, int, int]] = set()
    monitoring, tool = sys.monitoring, sys.monitoring.COVERAGE_ID

    def jumped(code: CodeType, start: int, end: int) -> None:
        if "/osbase/" in code.co_filename or "/metropolis/node/" in code.co_filename:
            now.add((code, start, end))

    def began(code: CodeType, offset: int) -> None:
        jumped(code, -1, offset)

    events = monitoring.events
    monitoring.use_tool_id(tool, "corpus")
    monitoring.register_callback(tool, events.PY_START, began)
    for event in (events.BRANCH_LEFT, events.BRANCH_RIGHT):
        monitoring.register_callback(tool, event, jumped)
    monitoring.set_events(tool, events.PY_START | events.BRANCH_LEFT | events.BRANCH_RIGHT)
    kept: list[bytes] = []
    try:
        for one in sorted(inputs, key=lambda one: (len(one), one)):
            now.clear()
            target(one)
            if not now <= seen:
                kept.append(one)
                seen |= now
    finally:
        monitoring.free_tool_id(tool)
    return kept
