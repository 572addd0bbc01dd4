# SPDX-License-Identifier: Apache-2.0
"""The class of each command and block, and the tables of what is excluded.

Pure. A command is one of these:

    resolved   its labels, options, subcommands, modules and variables exist
    node       //metropolis/test/e2e:documents_test runs those of OPERATING.md
    excluded   nothing is checked, for the reason in EXCLUDED
"""

import re
from collections.abc import Collection, Container, Mapping
from dataclasses import dataclass

from build.docs import extract
from build.docs.labels import PLACEHOLDER, Targets, mentioned
from build.docs.options import Usage, usage

# Programs of the tree that documents call by name.
PROGRAMS: Mapping[str, str] = {
    "metroctl": "//metropolis/cli/metroctl:metroctl",
}
# Programs of others, on a node.
NODE_PROGRAMS = frozenset(
    [
        "cat",
        "chronyc",
        "ctr",
        "install",
        "ip",
        "kubectl",
        "mv",
        "nft",
        "setcap",
        "socat",
        "sv",
        "tail",
        "tcpdump",
    ]
)
# Commands of bazelw that run Bazel with targets.
_VERBS = ("run", "test", "build", "query")
_IMAGE = "metropolis/node/image/README.md"
# Beginning of a command or a block -> why nothing of it is checked. "": any
# document; else its path.
EXCLUDED: Mapping[tuple[str, str], str] = {
    ("CLUSTER.md", "install -m 0600 new-cert"): "needs new credentials; curator's tests have them",
    ("CLUSTER.md", "mv /run/metropolis/pki"): "needs new credentials; curator's tests have them",
    ("metropolis/cli/metroctl/README.md", "cluster init    cluster"): "a table of records",
    (
        _IMAGE,
        "P=$(cat /run/sv/node-core/",
    ): "stands still at a debugger; image_test has its modules",
    (_IMAGE, "sv stop node-core"): "stops node core, for a debugger",
    (_IMAGE, "echo 'network {"): "readme_test compares its file with those of the image",
    (_IMAGE, "qemu-system-x86_64"): "readme_test compares it with osbase.test.qemu",
    (_IMAGE, "-drive file=data.ext4"): "readme_test compares it with osbase.test.qemu",
    ("metropolis/node/core/curator/README.md", "/metropolis/v1/"): "a table of records",
    ("metropolis/node/core/curator/README.md", "a prefix of a node"): "a table of records",
    ("metropolis/node/core/curator/README.md", "join       one"): "a table of records",
}
# Variables that only programs of others read.
FOREIGN_VARIABLES: Mapping[str, str] = {"GRPC_EXPERIMENTS": "gRPC's core"}

# Lines that programs print.
OUTPUT = re.compile(r"\S+:\d+: |\d{4}-\d\d-\d\dT|\[ *\d+\.\d+\] |ok: ")

_VARIABLE = re.compile(r"(?<![\w$/])[A-Z][A-Z0-9]*_[A-Z0-9_]*[A-Z0-9](?![\w*])")


@dataclass(frozen=True)
class Tree:
    """The facts by which commands are judged.

    files: path -> text, of sources and documents. bazel: verb -> its options.
    programs: those of the development root, by name.
    """

    files: Mapping[str, str]
    targets: Targets
    bazel: Mapping[str, Collection[str]]
    programs: Container[str]


def excluded(path: str, text: str) -> str | None:
    """Return why a command or block is not checked; None: it is."""
    for (document, beginning), reason in EXCLUDED.items():
        if document in ("", path) and text.startswith(beginning):
            return reason
    return None


def is_command(line: str) -> bool:
    """Report whether a line is a command of the tree's own programs."""
    words = line.strip().removeprefix("$ ").split()
    if not words:
        return False
    first, rest = words[0], words[1:]
    if first == "./bazelw" or (first == "export" and "=" in line):
        return True
    if first == "python3":
        return rest[:1] == ["-m"] and len(rest) > 1
    return first in PROGRAMS and bool(rest)


def problems(path: str, line: str, tree: Tree) -> tuple[str, list[str]]:
    """Return the class of a document's command and what is wrong with it. The
    class is "" where the command is of no known kind.
    """
    words = extract.command(line)
    settings = [word for word in words if re.match(r"[A-Z_]+=", word)]
    if settings and words[: len(settings)] == settings and len(words) > len(settings):
        kind, found = problems(path, " ".join(words[len(settings) :]), tree)
        return kind, _variables(settings, tree) + found
    if not words:
        return "", []
    first, rest = words[0], words[1:]
    if first == "./bazelw":
        return "resolved", _bazelw(rest, tree)
    if first == "export":
        return "resolved", _variables(rest, tree)
    if first == "python3" and rest[:1] == ["-m"] and len(rest) > 1:
        return "resolved", _module(rest[1], rest[2:], tree)
    if first in PROGRAMS:
        return "resolved", _program(PROGRAMS[first], rest, tree)
    if first.startswith(".venv/bin/"):
        # //build/ide:ide_test runs such commands.
        paths = [word for word in rest if "/" in word]
        return "resolved", [f"there is no {path}" for path in paths if path not in tree.files]
    if first in NODE_PROGRAMS:
        return ("node", []) if path == "OPERATING.md" else ("", [])
    return "", []


def _bazelw(words: list[str], tree: Tree) -> list[str]:
    if not words:
        return []
    verb, rest = words[0], words[1:]
    if verb.startswith("--config="):
        return _config(verb, tree) + _bazelw(rest, tree)
    if verb not in _VERBS:
        usage_lines = re.findall(r"\./bazelw ([\w|-]+)", tree.files["bazelw"])
        shown = verb in [word for line in usage_lines for word in line.split("|")]
        if verb.isupper() or verb in ("help", "info", "shutdown", "--help"):
            return []
        if not shown:
            return [f"./bazelw has no command {verb}"]
        if verb == "shell" and rest and rest[0] not in tree.programs and not rest[0].isupper():
            return [f"the devroot has no program {rest[0]}"]
        if verb == "shell" and rest[:2] == ["python3", "-m"]:
            return _module(rest[2], rest[3:], tree)
        return []
    cut = rest.index("--") if "--" in rest else len(rest)
    own, arguments = rest[:cut], [word for word in rest[cut:] if word != "--"]
    found = []
    for word in own:
        if word.startswith("--config="):
            found += _config(word, tree)
        elif word.startswith("--"):
            if tree.bazel and word.partition("=")[0] not in tree.bazel[verb]:
                found.append(f"bazel {verb} has no option {word.partition('=')[0]}")
        elif word.startswith("//"):
            found += labels(word, tree)
        elif not word.isupper():
            found.append(f"{word!r} is neither a label nor an option")
    programs = [word for word in own if word.startswith("//")]
    if verb == "run":
        if not programs and own:
            found.append("run: no label")
        for label in programs[:1]:
            found += _program(label, arguments, tree)
    elif arguments:
        found.append(f"{verb} takes no arguments after --")
    return found


def _config(word: str, tree: Tree) -> list[str]:
    name = word.partition("=")[2]
    known = re.search(rf"^\w+:{re.escape(name)} ", tree.files[".bazelrc"], re.M)
    return [] if known else [f".bazelrc has no configuration {name}"]


def labels(text: str, tree: Tree) -> list[str]:
    """Return the labels in a text that do not exist."""
    return [
        f"there is no target {label}"
        for label in mentioned(text)
        if not PLACEHOLDER.match(label) and label != "//" and tree.targets.resolve(label) is None
    ]


def _program(label: str, arguments: list[str], tree: Tree) -> list[str]:
    full = tree.targets.resolve(label)
    if full is None:
        return [f"there is no target {label}"] if label in PROGRAMS.values() else []
    main = tree.targets.binaries.get(full)
    if main is None or main not in tree.files:
        return [f"{label}: the options of this target are not known"] if arguments else []
    return _arguments(label, arguments, usage(main, tree.files))


def _module(name: str, arguments: list[str], tree: Tree) -> list[str]:
    path = name.replace(".", "/") + ".py"
    if path not in tree.files:
        return [f"there is no module {name}"]
    return _arguments(name, arguments, usage(path, tree.files))


def _arguments(name: str, arguments: list[str], known: Usage) -> list[str]:
    found = []
    given = [word for part in arguments for word in part.split("|")]
    if known.verbs and given and re.fullmatch(r"[a-z][a-z-]*", given[0]):
        if given[0] not in known.verbs and not known.more:
            found.append(f"{name} has no subcommand {given[0]}")
    for word in given:
        flag = word.partition("=")[0]
        letters = {f"-{letter}" for letter in flag[1:]}  # -it
        flags = known.flags | known.compared
        if re.match(r"--?[a-z]", flag) and flag not in flags and not letters <= flags:
            found.append(f"{name} has no option {flag}")
    return found


def _variables(words: list[str], tree: Tree) -> list[str]:
    return [
        problem
        for word in words
        if "=" in word
        for problem in variables(word.partition("=")[0], tree)
    ]


def variables(text: str, tree: Tree) -> list[str]:
    """Return the environment's variables in a text that no program reads."""
    found = []
    for name in _VARIABLE.findall(text):
        read = (
            path
            for path, source in tree.files.items()
            if not path.endswith(".md") and name in source
        )
        if name not in FOREIGN_VARIABLES and next(read, None) is None:
            found.append(f"nothing reads or has {name}")
    return found
