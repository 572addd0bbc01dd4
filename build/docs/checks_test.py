# SPDX-License-Identifier: Apache-2.0
"""The checks of documents: each finds what is false, and only that."""

import pytest

from build.docs import classify, extract, labels, options, snippets

PROGRAM = """
import argparse
parser = argparse.ArgumentParser()
add = parser.add_argument
add("--json", action="store_true")
verbs = parser.add_subparsers()
verbs.add_parser("list").add_argument("-n", "--name")
"""
FILES = {
    "BUILD.bazel": 'alias(name = "go", actual = "//a:tool")',
    "a/BUILD.bazel": """
load("//b:defs.bzl", "disk")
NAMES = ["one", "two"]
py_binary(name = "tool", srcs = ["tool.py"])
disk(name = "root")
[py_pytest(name = name + "_test") for name in NAMES]
[py_pytest(name = "%s_long" % name) for name in ("three",)]
genrule(name = "g", outs = ["made"])
_SHAPES = {"four": []}
[py_pytest(name = name, srcs = srcs) for name, srcs in _SHAPES.items()]
""",
    "a/tool.py": PROGRAM,
    "a/__init__.py": "",
    "a/sub/file.txt": "",
    "b/BUILD.bazel": "",
    "b/defs.bzl": 'def disk(name):\n    erofs(name = name + "_disk")\n    rule(name = name)\n',
    ".bazelrc": "test:quick --build_tests_only\n",
    "bazelw": "usage: ./bazelw shell [COMMAND...]\n ./bazelw pod|console\n"
    "       ./bazelw clean-devroot\n",
}
TREE = classify.Tree(
    FILES,
    labels.read(FILES),
    {verb: {"--test_filter", "--jobs"} for verb in ("run", "test", "build", "query")},
    {"strace"},
)


@pytest.mark.parametrize(
    ("label", "found"),
    [
        ("//a:tool", "//a:tool"),
        ("//:go", "//a:tool"),
        ("//a:root_disk", "//a:root_disk"),
        ("//a:one_test", "//a:one_test"),
        ("//a:two_test", "//a:two_test"),
        ("//a:three_long", "//a:three_long"),
        ("//a:four", "//a:four"),
        ("//a:made", "//a:made"),
        ("//a:sub/file.txt", "//a:sub/file.txt"),
        ("//a/...", "//a/..."),
        ("//...", "//..."),
        ("//a:all", "//a:all"),
        ("//a:four_test", None),
        ("//a", None),
        ("//a/sub:file.txt", None),
        ("//c/...", None),
        ("//b:disk", None),
    ],
)
def test_labels(label: str, found: str | None) -> None:
    assert TREE.targets.resolve(label) == found


@pytest.mark.parametrize(
    "line",
    [
        "./bazelw",
        "./bazelw run //:go",
        "./bazelw run //a:tool -- --json list [--name N]   # remark --no",
        "./bazelw run //a:tool [-- --json]",
        "./bazelw test //a/... --test_filter=x",
        "./bazelw test --config=quick //...",
        "./bazelw --config=quick test //...",
        "./bazelw test //x:y_test",
        "./bazelw shell strace -f …    a remark",
        "./bazelw clean-devroot    remove it",
        "./bazelw console    a shell",
        "GRPC_EXPERIMENTS=a ./bazelw run //:go",
        "python3 -m a.tool --json",
    ],
)
def test_true_commands(line: str) -> None:
    assert classify.problems("x.md", line, TREE) == ("resolved", [])


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("./bazelw run //:gone", "no target //:gone"),
        ("./bazelw run //:go -- --xml", "no option --xml"),
        ("./bazelw run //:go -- remove", "no subcommand remove"),
        ("./bazelw run //a:g -- --json", "options of this target are not known"),
        ("./bazelw run", ""),
        ("./bazelw test //a/... --test_fliter=x", "no option --test_fliter"),
        ("./bazelw test //a/... -- x", "takes no arguments"),
        ("./bazelw test a", "neither a label nor an option"),
        ("./bazelw test --config=slow //...", "no configuration slow"),
        ("./bazelw clean", "no command clean"),
        ("./bazelw shell gdb", "no program gdb"),
        ("python3 -m a.toll", "no module a.toll"),
        ("python3 -m a.tool --xml", "no option --xml"),
        ("export NO_SUCH=1", "nothing reads or has NO_SUCH"),
        ("NO_SUCH=1 ./bazelw run //:go", "nothing reads or has NO_SUCH"),
    ],
)
def test_false_commands(line: str, problem: str) -> None:
    kind, found = classify.problems("x.md", line, TREE)
    assert kind == "resolved"
    assert problem in "\n".join(found)
    assert found or not problem


def test_a_command_of_no_class() -> None:
    """Programs of others are only known on a node."""
    assert classify.problems("x.md", "make all", TREE) == ("", [])
    assert classify.problems("x.md", "nft list counters", TREE) == ("", [])
    assert classify.problems("OPERATING.md", "nft list counters", TREE) == ("node", [])


def test_options() -> None:
    """An alias of add_argument is followed."""
    found = options.usage("a/tool.py", FILES)
    assert found.flags == {"-h", "--help", "--json", "-n", "--name"}
    assert found.verbs == {"list"}


MARKDOWN = """\
# A page: on `x`

Text with `inline` and [a link](other.md#a-page).

    indented \\
      line

``` python
fenced
```
"""


def test_blocks() -> None:
    """Blocks have their line, and no indentation."""
    fenced, indented = extract.blocks("x.md", MARKDOWN)
    assert (indented.line, list(indented.lines())) == (5, [(5, "indented line")])
    assert (fenced.line, fenced.text, fenced.language) == (9, "fenced", "python")
    assert [piece.text for piece in extract.inline("x.md", MARKDOWN)] == ["x", "inline"]
    assert [piece.text for piece in extract.links("x.md", MARKDOWN)] == ["other.md#a-page"]
    assert extract.anchors(MARKDOWN) == {"a-page-on-x"}


def test_docstrings() -> None:
    """Those of functions, too; the line is that of the file."""
    text = (
        '"""Doc."""\n\n\ndef f():\n    """Doc.\n\n        ./bazelw run //x\n\n    End.\n    """\n'
    )
    (block,) = extract.blocks("x.py", text)
    assert block.text == "./bazelw run //x"


def test_mentions() -> None:
    found = extract.mentions("x.bzl", 'R = "./bazelw run //a:tool"\n# see ./bazelw test //...\n')
    assert [piece.text for piece in found] == ["./bazelw run //a:tool", "./bazelw test //..."]


SOURCES = {
    "osbase/p/__init__.py": "",
    "osbase/p/m.py": "class C: ...\ndef f(*, a): ...\nX = 1\n",
}


@pytest.mark.parametrize(
    "text",
    [
        "from osbase.p import m\nm.C(1)",
        "f(a=1)",
        "with C() as p:\n    p.any()",
        "m.f(m)",
        "print(p.m)",
    ],
)
def test_true_snippets(text: str) -> None:
    assert snippets.is_python(text)
    assert snippets.python("osbase/p/README.md", text, SOURCES) == []


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("p.new()", "osbase/p has no p.new"),
        ("m.g()", "osbase/p/m.py has no g"),
        ("g()", "g is not defined in osbase/p"),
        ("f(b=1)", "f has no argument b"),
        ("from osbase.p import q\nf()", "osbase.p has no q"),
    ],
)
def test_false_snippets(text: str, problem: str) -> None:
    assert snippets.python("osbase/p/README.md", text, SOURCES) == [problem]


def test_starlark() -> None:
    assert snippets.starlark('disk(name = "x")', FILES) == []
    assert snippets.starlark('disc(name = "x")', FILES) == ["no .bzl file has disc"]
