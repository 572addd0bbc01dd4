# SPDX-License-Identifier: Apache-2.0
"""What a test needs around it, by its BUILD file. Pure.

An editor runs pytest itself, so the namespaces and machines that Bazel gives a
test are lacking: run by root, a test of the network would change the host's.
The conftest.py at the root asks here.
"""

import ast
import enum
from dataclasses import dataclass

from build.docs import labels


class Need(enum.Enum):
    """What Bazel gives to a test."""

    NOTHING = "nothing"
    NETNS = "new namespaces"
    MACHINE = "a virtual machine"


@dataclass(frozen=True)
class TestFile:
    """A file of tests. target: the name of that which runs it."""

    __test__ = False  # for pytest

    need: Need
    target: str


def of_tests(build: str) -> dict[str, TestFile]:
    """Return the test files of a BUILD file, by their name without ".py"; those
    of other rules are left out. build: the text.
    """
    found: dict[str, TestFile] = {}
    for rule, name, call in labels.calls(build):
        true = {
            word.arg
            for word in call.keywords
            if isinstance(word.value, ast.Constant) and word.value.value is True
        }
        if rule == "vm_pytest" or (rule == "py_pytest" and "vm" in true):
            need = Need.MACHINE
        elif rule == "py_pytest":
            need = Need.NETNS if "netns" in true else Need.NOTHING
        else:
            continue
        found |= dict.fromkeys([name, *_sources(call)], TestFile(need, name))
    return found


def _sources(call: ast.Call) -> list[str]:
    return [
        str(node.value).removesuffix(".py")
        for word in call.keywords
        if word.arg == "srcs"
        for node in ast.walk(word.value)
        if isinstance(node, ast.Constant) and str(node.value).endswith("_test.py")
    ]
