# SPDX-License-Identifier: Apache-2.0
"""Documents are true; see __init__.py for what is checked and how."""

import ast
import collections
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from build.docs import classify, extract, labels, options, snippets
from build.docs.classify import Tree
from build.lint import tree as worktree
from metropolis.node.core import config
from metropolis.node.core.network.policy.kubernetes import convert

HINT = "correct it, or add it to the tables of build/docs/classify.py with a reason"
_CONFIG = re.compile(r"^(network|cluster) \{")
_PATH = re.compile(
    r"[\w.-]+(/[\w.-]+)*/?\.?[\w-]*\.(py|md|bzl|lock|in|proto|toml|go|c|conflist|bazel|bazelrc)"
)

counts: collections.Counter[str] = collections.Counter()
seen: set[tuple[str, int]] = set()


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Tree:
    root = worktree.workspace()
    files = {}
    for path in worktree.files(root):
        try:
            files[path] = (root / path).read_text()
        except UnicodeDecodeError:
            files[path] = ""
    return Tree(files, labels.read(files), bazel(tmp_path_factory.mktemp("bazel")), Programs())


class Programs:
    """The programs on PATH, as a container."""

    def __contains__(self, name: object) -> bool:
        return shutil.which(str(name), path="/usr/sbin:/usr/bin:/sbin:/bin") is not None


def bazel(here: Path) -> dict[str, set[str]]:
    """Return the options of Bazel's commands, by itself; it needs no server."""
    (here / "MODULE.bazel").touch()
    command = ["bazel", "--batch", f"--output_user_root={here}/root", "help", "completion"]
    done = subprocess.run(
        command, cwd=here, capture_output=True, text=True, check=True, timeout=120,
        env=os.environ | {"HOME": str(here)},
    )  # fmt: skip
    found = {}
    for verb in ("run", "test", "build", "query"):
        match = re.search(rf'BAZEL_COMMAND_{verb.upper()}_FLAGS="(.*?)"', done.stdout, re.S)
        assert match is not None
        found[verb] = {flag.partition("=")[0] for flag in match.group(1).split()}
    return found


def documents(tree: Tree, end: str) -> list[tuple[str, str]]:
    return [(path, text) for path, text in tree.files.items() if path.endswith(end)]


def complain(findings: list[str]) -> None:
    assert not findings, "\n" + "\n".join(sorted(set(findings))) + f"\n{HINT}"


def checked(tree: Tree, path: str, line: int, text: str) -> list[str]:
    """Check a command, count it, return the findings."""
    if (path, line) in seen:  # a docstring's is also a mention
        return []
    seen.add((path, line))
    if reason := classify.excluded(path, text.strip()):
        counts[f"excluded: {reason}"] += 1
        return []
    kind, wrong = classify.problems(path, text, tree)
    counts[kind or "of no class"] += 1
    if not kind:
        return [f"{path}:{line}: {text.strip()[:60]!r}: a command or block of no class"]
    return [f"{path}:{line}: {text.strip()}: {one}" for one in wrong]


def test_blocks_of_markdown(tree: Tree, tmp_path: Path) -> None:
    """Each block is a command, a configuration, a snippet, or a picture."""
    findings = []
    for path, text in documents(tree, ".md"):
        for block in extract.blocks(path, text):
            if reason := classify.excluded(path, block.text):
                counts[f"excluded: {reason}"] += 1
            elif _CONFIG.match(block.text):
                findings += checked_config(block, tmp_path)
            elif block.language == "yaml":
                counts["run: network policies, as node core reads them"] += 1
                read = convert.read(block.text, f"{path}:{block.line}")
                findings += map(str, read.problems)
            elif block.language == "starlark" or re.match(r"\w+\(\n", block.text):
                counts["snippet of Starlark"] += 1
                wrong = snippets.starlark(block.text, tree.files)
                findings += [f"{path}:{block.line}: {one}" for one in wrong]
                findings += [
                    f"{path}:{block.line}: {one}" for one in classify.labels(block.text, tree)
                ]
            elif snippets.is_python(block.text):
                counts["snippet of Python"] += 1
                wrong = snippets.python(path, block.text, tree.files)
                findings += [f"{path}:{block.line}: {one}" for one in wrong]
            elif block.fenced and not block.language:
                counts["picture or output"] += 1
            else:
                for line, statement in block.lines():
                    if classify.OUTPUT.match(statement):
                        counts["picture or output"] += 1
                    elif statement.strip() and not statement.strip().startswith("#"):
                        findings += checked(tree, path, line, statement)
    complain(findings)


def checked_config(block: extract.Block, tmp_path: Path) -> list[str]:
    """Read a configuration as node core does."""
    counts["run: a configuration, as node core --check does"] += 1
    file = tmp_path / "node.textproto"
    file.write_text(block.text)
    try:
        config.load(str(file))
    except config.ConfigError as error:
        return [f"{block.path}:{block.line}: {error}"]
    return []


def test_docstrings(tree: Tree) -> None:
    """Their commands and snippets; all other blocks are pictures."""
    findings = []
    for path, text in documents(tree, ".py"):
        if path.endswith("_test.py"):
            continue
        for block in extract.blocks(path, text):
            if snippets.is_python(block.text):
                counts["snippet of Python"] += 1
                wrong = snippets.python(path, block.text, tree.files)
                findings += [f"{path}:{block.line}: {one}" for one in wrong]
                continue
            commands = [(n, line) for n, line in block.lines() if classify.is_command(line)]
            for line, statement in commands:
                findings += checked(tree, path, line, statement)
            if not commands:
                counts["picture or output"] += 1
    complain(findings)


def test_mentions(tree: Tree) -> None:
    """Commands of bazelw in comments, messages and help texts."""
    findings = []
    for path, text in tree.files.items():
        if path.endswith((".md", "_test.py")) or path.startswith("build/docs/") or path == "bazelw":
            continue
        for piece in extract.mentions(path, text):
            if "{" not in piece.text:
                findings += checked(tree, path, piece.line, piece.text)
    complain(findings)


def test_inline_code(tree: Tree) -> None:
    """Commands, labels, paths and variables in the prose."""
    findings = []
    every = {"--help"}.union(*(options.literals(text).flags for _, text in documents(tree, ".py")))
    every |= set().union(*tree.bazel.values())
    names = {path.rpartition("/")[2] for path in tree.files}
    for path, text in documents(tree, ".md"):
        folder = path.rpartition("/")[0]
        for piece in extract.inline(path, text):
            where = f"{path}:{piece.line}: {piece.text}"
            if classify.is_command(piece.text):
                findings += checked(tree, path, piece.line, piece.text)
                continue
            wrong = classify.labels(piece.text, tree) if piece.text.startswith("//") else []
            wrong += classify.variables(piece.text, tree)
            if re.fullmatch(r"--[a-z-]+", piece.text) and piece.text not in every:
                wrong.append("no program of the tree has this option")
            if _PATH.fullmatch(piece.text) and not exists(piece.text, folder, names, tree):
                wrong.append("there is no such file")
            counts["inline label, path, variable or option"] += 1
            if wrong and (reason := classify.excluded(path, piece.text)):
                counts[f"excluded: {reason}"] += 1
            else:
                findings += [f"{where}: {one}" for one in wrong]
    complain(findings)


def exists(text: str, folder: str, names: set[str], tree: Tree) -> bool:
    """Report whether a path is of the tree, from its root or the document."""
    if "/" not in text:
        return text in names
    return any(
        os.path.normpath(os.path.join(base, text)) in tree.files for base in ("", folder)
    ) or any(path.endswith(f"/{text}") for path in tree.files)


def test_links(tree: Tree) -> None:
    """Links to files and headings of the tree."""
    findings = []
    folders = {str(folder) for path in tree.files for folder in Path(path).parents}
    for path, text in documents(tree, ".md"):
        for piece in extract.links(path, text):
            if "://" in piece.text:
                continue
            counts["link"] += 1
            file, _, anchor = piece.text.partition("#")
            target = os.path.normpath(os.path.join(os.path.dirname(path), file)) if file else path
            if target not in tree.files and target not in folders:
                findings.append(f"{path}:{piece.line}: {piece.text}: there is no such file")
            elif anchor and anchor not in extract.anchors(tree.files.get(target, "")):
                findings.append(f"{path}:{piece.line}: {piece.text}: there is no such heading")
    complain(findings)


def test_all_programs_are_run(tree: Tree) -> None:
    """help_test, which comes late since it builds all of them, has them all."""
    package = tree.files["build/docs/BUILD.bazel"]
    for _, name, call in labels.calls(package):
        if name == "help_test":
            values = {word.arg: word.value for word in call.keywords}
            deps = {tree.targets.resolve(label) for label in ast.literal_eval(values["deps"])}
    assert not tree.targets.binaries.keys() - deps


def test_counts(capsys: pytest.CaptureFixture[str]) -> None:
    """Print what the tests before checked; a document's commands are found."""
    with capsys.disabled():
        print("\nin documents:")
        for what, number in sorted(counts.items()):
            print(f"    {number:5}  {what}")
    assert counts["resolved"] > 60
    assert counts["run: a configuration, as node core --check does"] >= 2
    assert counts["run: network policies, as node core reads them"] >= 1
    assert not counts["of no class"]
