# SPDX-License-Identifier: Apache-2.0
"""Our own rules: pure functions from a file's text to its problems."""

import re
from collections.abc import Iterable, Iterator

LICENCE = "SPDX-License-Identifier: Apache-2.0"

# The beginning of a comment, by the end of the file's name. Formats without
# comments and files that a tool writes are left out.
COMMENTS = {
    ".py": "# ",
    ".pyi": "# ",
    ".bzl": "# ",
    ".bazel": "# ",
    ".bazelrc": "# ",
    ".sh": "# ",
    ".toml": "# ",
    ".in": "# ",
    ".yml": "# ",
    ".yaml": "# ",
    "Dockerfile": "# ",
    ".proto": "// ",
    ".textproto": "# ",
    ".c": "// ",
    ".h": "// ",
    ".go": "// ",
}

# With brackets, so that the rule does not match this file.
MIRRORS = re.compile(
    r"\b([\w-]+[.])*("
    r"deb[.]debian|ftp[.]([a-z]+[.])?debian|snapshot[.]debian|archive[.]ubuntu|"
    r"pypi|pythonhosted|npmjs|proxy[.]golang|docker[.]io"
    r")[.](org|com|net|io)\b"
)
MACHINE_PATHS = re.compile(
    r"(?<![\w.$}*-])/(wor[k]|hom[e]/[a-z][\w-]*|roo[t]/[.]\w+)(?=[/\s\"'`:]|$)"
)


def spdx(path: str, text: str) -> Iterator[str]:
    """Require the licence on line 1, or on line 2 after a shebang."""
    opening = next((c for end, c in COMMENTS.items() if path.endswith(end)), None)
    lines = text.split("\n")
    if lines[0].startswith("#!"):
        opening = opening or "# "
        lines = lines[1:]
    if opening is None or not text.strip():
        return
    if not lines or lines[0] != opening + LICENCE:
        yield f"{path}:1: the first line must be: {opening}{LICENCE}"


def machine_specific(path: str, text: str, hosts: Iterable[str] = ()) -> Iterator[str]:
    """Find host names of mirrors, and paths of a single machine.

    `hosts` are the names in this machine's own configuration.
    """
    own = [host for host in hosts if "." in host]
    for number, line in enumerate(text.split("\n"), start=1):
        if match := MIRRORS.search(line):
            yield f"{path}:{number}: package mirror {match.group()}: take the host's"
        if match := MACHINE_PATHS.search(line):
            yield f"{path}:{number}: path of one machine: {match.group()}"
        for host in own:
            if host in line:
                yield f"{path}:{number}: a host of this machine's package settings"


def hosts_in(settings: str) -> set[str]:
    """Return the host names of the URLs in apt's or pip's settings."""
    found = set(re.findall(r"[a-z+]+://(?:[^/@\s]*@)?([\w.-]+)", settings))
    return {host for host in found if host != "localhost"}
