# SPDX-License-Identifier: Apache-2.0
"""The commands that OPERATING.md prints for a node, run on one."""

import re
from pathlib import Path

import pytest

from build.docs import classify, extract
from metropolis.node import allocs
from metropolis.test.launch.node import Node

pytestmark = pytest.mark.asyncio(loop_scope="session")

DOCUMENT = Path("OPERATING.md")
_PLACEHOLDERS = {"FILE": allocs.NODE_CONFIG}
# They run until Ctrl-C.
_ENDLESS = re.compile(r"\bwatch\b")


def commands() -> list[str]:
    """Return the document's commands for a node, as people type them."""
    found = []
    for block in extract.blocks(str(DOCUMENT), DOCUMENT.read_text()):
        for _, line in block.lines():
            words = extract.command(re.sub(r"\[[A-Z]+\]", "", line))
            first = words[0] if words else ""
            if first in (*classify.PROGRAMS, *classify.NODE_PROGRAMS, "python3"):
                found.append(" ".join(_PLACEHOLDERS.get(word, word) for word in words))
    return found


def test_there_are_some() -> None:
    """Each kind is found; otherwise the test below would be empty."""
    assert len(commands()) >= 9
    assert any("--check" in command for command in commands())


@pytest.mark.parametrize("command", commands())
async def test_a_command(node: Node, command: str) -> None:
    """It exists on a node, has these arguments, and finds nothing wrong."""
    if _ENDLESS.search(command):
        command = f"timeout 5 {command}; test $? = 124 -o $? = 143"
    done = await node.agent.run(["sh", "-lc", command])
    print(f"$ {command}\n{done.text}")
    if "restart node-core" in command:
        await node.wait_ready()
