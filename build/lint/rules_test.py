# SPDX-License-Identifier: Apache-2.0
"""Our own rules over the tree: licences, layering, plain words, no
machine-specific text, tests for all claims.
"""

import glob
import pathlib
from collections.abc import Callable, Iterable, Iterator

import pytest

from build.lint import calls, claims, layers, rules, tree, words


def check(rule: Callable[[str, str], Iterable[str]]) -> None:
    """Fail with all findings of `rule` in the tree's text files."""
    root = tree.workspace()
    found: list[str] = []
    for path in tree.files(root):
        try:
            text = (root / path).read_text()
        except UnicodeDecodeError:
            continue
        found += rule(path, text)
    if found:
        pytest.fail("\n".join(found), pytrace=False)


def configured_hosts() -> set[str]:
    """Return the hosts in this machine's package settings, if readable."""
    hosts: set[str] = set()
    for pattern in ("/etc/apt/sources.list*", "/etc/apt/sources.list.d/*", "/etc/pip.conf"):
        for name in glob.glob(pattern):
            if pathlib.Path(name).is_file():
                hosts |= rules.hosts_in(pathlib.Path(name).read_text(errors="replace"))
    return hosts


def test_spdx() -> None:
    check(rules.spdx)


def test_layers() -> None:
    check(layers.layering)


def test_calls() -> None:
    check(calls.replaced)


def test_words() -> None:
    check(words.habits)


def test_nothing_of_one_machine() -> None:
    hosts = configured_hosts()

    def rule(path: str, text: str) -> Iterator[str]:
        return rules.machine_specific(path, text, hosts)

    check(rule)


def test_each_claim_has_its_tests() -> None:
    root = tree.workspace()
    tracked = set(tree.files(root))

    def read(path: str) -> str | None:
        return (root / path).read_text() if path in tracked else None

    page = read(claims.PAGE)
    assert page is not None
    found = list(claims.check(claims.PAGE, page, read))
    if found:
        pytest.fail("\n".join(found), pytrace=False)
