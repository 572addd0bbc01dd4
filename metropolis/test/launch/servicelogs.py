# SPDX-License-Identifier: Apache-2.0
"""What the logs of a node's services say: crashes, and the part to print. Pure.

A log is a file of svlogd's: a line is a time and a text. The script of each
service prints "-- start" first (metropolis/node/image/sv), so the number of
these lines is the number of its runs. Inside node core the supervisor restarts
a task that raised, and logs "NAME died: ERROR" (osbase.supervisor.tree).

One restart may be on purpose, or be all that a service needed. Only what ends
again and again is a fault.
"""

import re
from collections import Counter
from collections.abc import Iterable

WATCHED = ("node-core", "containerd")
"""The services without which no pod starts."""

# Ends of a process; node core's imports take seconds each time.
_ENDS = 2
# Deaths of a task with one error. Errors of the code do not go away; others
# may, such as those of a store that is not there yet.
_CODE_DEATHS, _DEATHS = 2, 6
_CODE_ERRORS = (
    "AssertionError", "AttributeError", "ImportError", "IndexError", "KeyError",
    "ModuleNotFoundError", "NameError", "NotImplementedError", "RecursionError", "SyntaxError",
    "TypeError", "UnboundLocalError", "ZeroDivisionError",
)  # fmt: skip

_TIME = re.compile(r"^\d{4}-\d\d-\d\d_\d\d:\d\d:\d\d\.\d+ ?", re.MULTILINE)
START = "-- start"
_DIED = re.compile(r"^\[ *\d+\.\d+\] E (root[\w.-]*): died: (.*)$", re.MULTILINE)
# The first line of an entry: of a run, of node core, of containerd.
_ENTRY = re.compile(r"^(-- start$|\[ *\d+\.\d+\] |time=)")
_TRACEBACK = "Traceback (most recent call last):"
_WIDTH = 300
_LONG = 4


def _lines(log: str) -> list[str]:
    return _TIME.sub("", log).splitlines()


def ends(log: str) -> int:
    """Return how many runs of a service have ended."""
    return max(0, _lines(log).count(START) - 1)


def deaths(log: str) -> Counter[tuple[str, str]]:
    """Return how often each of node core's tasks died of each error."""
    return Counter(_DIED.findall(_TIME.sub("", log)))


def last_words(log: str) -> str:
    """Return the last line of the run that ended last."""
    said = ""
    before = ""
    for line in _lines(log):
        if line == START:
            before, said = said, ""
        else:
            said = line
    return before.strip()


class Watch:
    """Recognizes services that end again and again, over many looks.

    `news` has what the last look found for the first time.
    """

    def __init__(self, *, booting: bool) -> None:
        """booting: the logs began with the node; else only what comes after the
        first look counts.
        """
        self.news: list[str] = []
        self._booting = booting
        self._ends: dict[str, int] = {}
        self._deaths: dict[str, Counter[tuple[str, str]]] = {}
        self._told: set[str] = set()

    def look(self, service: str, log: str) -> str:
        """Return why waiting is of no use, or "". log: all that there is."""
        self.news = []
        ended, died = ends(log), deaths(log)
        first = self._ends.setdefault(service, 0 if self._booting else ended)
        known = self._deaths.setdefault(service, Counter() if self._booting else died)
        # A log that was rotated has fewer.
        if ended > first:
            text = last_words(log)
            if ended - first >= _ENDS:
                return f"{service} ended {ended - first} times and starts again: {text}"
            self._tell(f"{service} ended and starts again: {text}")
        for (task, error), count in died.items():
            new = count - known[task, error]
            most = _CODE_DEATHS if error.startswith(_CODE_ERRORS) else _DEATHS
            if new >= most:
                return f"{service}: {task} died {new} times and restarts: {error}"
            if new > 0:
                self._tell(f"{service}: {task} died and restarts: {error}")
        return ""

    def _tell(self, text: str) -> None:
        if text not in self._told:
            self._told.add(text)
            self.news.append(text)


def _entries(lines: Iterable[str]) -> list[list[str]]:
    """Return the entries, each with the lines that continue it."""
    found: list[list[str]] = []
    for line in lines:
        if not found or _ENTRY.match(line):
            found.append([])
        found[-1].append(line[:_WIDTH])
    return found


def excerpt(log: str, most: int) -> str:
    """Return the end of a log: about `most` lines, and the last traceback, also
    if it came before; a traceback is never cut.
    """
    entries = _entries(_lines(log))
    at, size = len(entries), 0
    while at > 0 and size < most:
        at -= 1
        size += len(entries[at])
    kept = entries[at:]
    # An entry without end, such as the output of another program.
    if len(kept) == 1 and not any(_TRACEBACK in line for line in kept[0]):
        kept = [kept[0][-most:]]
    if not any(_TRACEBACK in line for entry in kept for line in entry):
        for entry in reversed(entries[:at]):
            if any(_TRACEBACK in line for line in entry):
                kept = [entry, ["..."], *kept]
                break
    return "\n".join(line for entry in _once(kept) for line in entry)


def _once(entries: list[list[str]]) -> list[list[str]]:
    """Return the entries; of long ones that are repeated, the last one only."""
    kept: list[list[str]] = []
    for index, entry in enumerate(entries):
        again = len(entry) >= _LONG and entry in entries[index + 1 :]
        kept.append([entry[0], "(as below)"] if again else entry)
    return kept
