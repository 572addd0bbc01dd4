# SPDX-License-Identifier: Apache-2.0
"""Every program of the tree answers --help and wrong options as it should.

It runs all py_binary targets, so all of them are built for it.
"""

import os
import re
import subprocess
import sys
from collections.abc import Iterator

import pytest

from build.docs import extract, labels, options
from build.lint import tree as worktree

LIMIT_S = 120
# Commands of build rules: only the rules read their exit status.
OF_RULES = ("build/proto/", "osbase/boot/", "osbase/build/")
# What says that an option may be left out or is a must, and what happens then.
_DEFAULT = re.compile(r"default|repeatable|required|instead of|in place of|unless|else|only", re.I)


def read() -> dict[str, str]:
    """Return the sources of the tree."""
    root = worktree.workspace()
    paths = worktree.files(root)
    wanted = (".py", ".bzl", ".md", "BUILD.bazel")
    return {path: (root / path).read_text() for path in paths if path.endswith(wanted)}


FILES = read()
PROGRAMS = labels.read(FILES).binaries


def run(label: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a program by its main module."""
    module = PROGRAMS[label].removesuffix(".py").replace("/", ".")
    path = [os.path.abspath(entry) for entry in sys.path if entry]
    return subprocess.run(
        [sys.executable, "-P", "-m", module, *arguments],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(path), "COLUMNS": "80"},
        stdin=subprocess.DEVNULL,
        text=True,
        capture_output=True,
        timeout=LIMIT_S,
        check=False,
    )


def helps(label: str) -> Iterator[tuple[str, ...]]:
    """Yield the arguments of all its help texts: its own, its subcommands'."""
    yield ("--help",)
    yield from _below(label, (), options.usage(PROGRAMS[label], FILES).verbs)


def _below(label: str, verbs: tuple[str, ...], known: frozenset[str]) -> Iterator[tuple[str, ...]]:
    text = run(label, *verbs, "--help").stdout
    for verb in sorted(known - set(verbs)):
        if re.search(rf"^ {{2,6}}{verb}( |$)", text, re.MULTILINE):
            yield (*verbs, verb, "--help")
            yield from _below(label, (*verbs, verb), known)


def entries(text: str) -> Iterator[tuple[str, str]]:
    """Yield each argument of a help text, as it is printed, with its words."""
    section = ""
    found: list[tuple[str, str]] = []
    for line in text.split("\n"):
        if re.match(r"\S", line):
            section = line
        elif section in ("options:", "positional arguments:"):
            if match := re.match(r" {2,6}(\S.*?)(?: {2,}(.*))?$", line):
                found.append((match.group(1), match.group(2) or ""))
            elif found and line.strip():
                found[-1] = (found[-1][0], f"{found[-1][1]} {line.strip()}")
    yield from found


# Options with which a program only prints something.
_PRINTS = {"--help", "--list"}


def printing() -> list[tuple[str, ...]]:
    """Return the documents' commands that only print: label and arguments."""
    found = set()
    targets = labels.read(FILES)
    for path, text in FILES.items():
        for block in extract.blocks(path, text):
            for _, line in block.lines():
                words = extract.command(line) if line.startswith("./bazelw run") else []
                if _PRINTS & set(words) and (label := targets.resolve(words[2])) in PROGRAMS:
                    found.add((str(label), *(word for word in words[3:] if word != "--")))
    return sorted(found)


def test_there_are_some() -> None:
    assert len(printing()) >= 2


@pytest.mark.parametrize("command", printing(), ids=" ".join)
def test_printing(command: tuple[str, ...]) -> None:
    """They run as they are printed."""
    done = run(*command)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout


@pytest.mark.parametrize("label", sorted(PROGRAMS))
def test_help(label: str) -> None:
    """Each option and argument has a text; a value's has its default."""
    shown: set[str] = set()
    wrong = []
    for arguments in helps(label):
        done = run(label, *arguments)
        hint = (
            f"{label} is not among the deps of help_test" if "ModuleNotFound" in done.stderr else ""
        )
        assert (done.returncode, done.stderr) == (0, ""), hint or done.stderr
        if arguments == ("--help",) and not PROGRAMS[label].startswith(OF_RULES):
            assert "status" in done.stdout.lower(), "its exit status is not described"
        usage = done.stdout.partition("\n\n")[0]
        for name, text in entries(done.stdout):
            shown |= set(re.findall(r"--?[a-z][\w-]*", name))
            where = f"{' '.join(arguments)}: {name}"
            if not text and not re.match(r"{|[a-z-]+\|", name):  # of subcommands
                wrong.append(f"{where}: no text")
            takes_value = name.startswith("-") and re.search(r" ([A-Z{]|\.)", name)
            flag = name.split()[0].rstrip(",")
            required = re.search(rf"(?<!\[){flag}\b", usage)
            if takes_value and not required and not _DEFAULT.search(text):
                wrong.append(f"{where}: no default: {text}")
    assert not wrong, "\n" + "\n".join(wrong)
    hidden = options.usage(PROGRAMS[label], FILES).flags - shown - {"-h"}
    assert not hidden, f"in the source, and not in a help text: {hidden}"


@pytest.mark.parametrize("label", sorted(PROGRAMS))
def test_wrong_option(label: str) -> None:
    """One line of usage, one that has the reason; the status is 2."""
    done = run(label, "--no-such-option")
    assert done.returncode == 2, done.stderr
    assert not done.stdout
    assert 1 <= done.stderr.count("\n") <= 2, done.stderr
    assert "error" in done.stderr.splitlines()[-1]
