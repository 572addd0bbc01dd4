# SPDX-License-Identifier: Apache-2.0
"""Each lint finds its faults, and does not report correct files."""

import os
import pathlib
import subprocess

import pytest

from build.lint import calls, claims, layers, rules, tools, tree, words

LICENCE = "SPDX-License-Identifier: Apache-2.0"
PROTO = """\
syntax = "proto3";
package p;
message M { string text = 1; }
service S { rpc Do(M) returns (M); }
"""


@pytest.fixture
def root(tmp_path: pathlib.Path) -> pathlib.Path:
    """Make a small correct tree with the real settings."""
    root = tmp_path / "tree"
    write(root, "pyproject.toml", pathlib.Path("pyproject.toml").read_text())
    write(root, "MODULE.bazel", "")
    write(root, "osbase/good.py", '"""Good."""\n\n\ndef one() -> int:\n    return 1\n')
    return root


def write(root: pathlib.Path, path: str, text: str) -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(text)


def git(root: pathlib.Path, *arguments: str) -> None:
    subprocess.run(["git", "-C", str(root), *arguments], check=True, capture_output=True)


def test_git_decides_what_is_linted(root: pathlib.Path) -> None:
    write(root, "gone.py", "")
    write(root, "new/package/added.py", "")
    git(root, "init")
    git(root, "add", ".")
    write(root, "junk.py", "import nonsense")
    (root / "gone.py").unlink()
    assert tree.files(root) == [
        "MODULE.bazel",
        "new/package/added.py",
        "osbase/good.py",
        "pyproject.toml",
    ]


def test_without_git_every_file_is_linted(root: pathlib.Path) -> None:
    write(root, "junk.py", "")
    write(root, "bazel-out/x.py", "")
    write(root, "osbase/__pycache__/x.pyc", "")
    assert tree.files(root) == ["MODULE.bazel", "junk.py", "osbase/good.py", "pyproject.toml"]


def test_nothing_to_lint_is_an_error(tmp_path: pathlib.Path) -> None:
    with pytest.raises(tree.LintError):
        tree.files(tmp_path)


@pytest.mark.parametrize(
    ("command", "text", "finding"),
    [
        (["check"], '"""Bad."""\n\nimport os\n', "F401"),
        (["check"], '"""Bad."""\n\n# ' + "wide " * 20 + "\n", "W505"),
        (["check"], '"""Bad."""\n\n\ndef f(x) -> None:\n    pass\n', "ANN001"),
        (["format", "--check"], '"""Bad."""\nx = {  1 }\n', "bad.py"),
    ],
)
def test_ruff(root: pathlib.Path, command: list[str], text: str, finding: str) -> None:
    assert tools.ruff(command, root, tree.files(root)) == ""
    write(root, "osbase/bad.py", text)
    assert finding in tools.ruff(command, root, tree.files(root))


def test_ruff_fails_on_wrong_settings(root: pathlib.Path) -> None:
    write(root, "pyproject.toml", "[tool.ruff]\nno-such-setting = 1\n")
    with pytest.raises(tree.LintError, match="no-such-setting"):
        tools.ruff(["check"], root, tree.files(root))


def test_mypy(root: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """There is one wrong file for each feature that the check needs."""
    proto = "from osbase.spec import a_pb2, a_pb2_grpc as g\n"
    wrong = {
        "def f():\n    pass\n": "no-untyped-def",
        "from osbase.good import one\nx: str = one()\n": "assignment",
        "import osbase.missing\n": "import-not-found",
        "import grpc\nx: int = grpc.insecure_channel('')\n": "assignment",
        "from google.protobuf.message import Message\nx: int = Message()\n": "assignment",
        "import hypothesis\nx: int = hypothesis.settings()\n": "assignment",
        "from qemu.qmp import QMPClient\nx: int = QMPClient()\n": "assignment",
        proto + "a_pb2.M(text=1)\n": "arg-type",
        proto + "a_pb2.M(txt='')\n": "call-arg",
        proto + "g.SStub(1)\n": "SStub",
        "from osbase.spec import b_pb2\n": "attr-defined",
        "import nftables\nimport pyroute2\nx: int = ''\n": "assignment",
    }
    write(root, "osbase/spec/a.proto", PROTO)
    write(root, "osbase/spec/__init__.py", '"""A regular package beside generated code."""\n')
    for number, text in enumerate(wrong):
        write(root, f"osbase/wrong{number}.py", text)
    found = tools.mypy(root, tree.files(root), pathlib.Path(), tmp_path / "scratch")
    for number, finding in enumerate(wrong.values()):
        lines = [x for x in found.splitlines() if x.startswith(f"osbase/wrong{number}.py:")]
        errors = [line for line in lines if ": error: " in line]
        assert len(errors) == 1, lines
        assert finding in errors[0]
    assert "osbase/good.py" not in found


def test_mypy_passes_typed_use_of_protos(root: pathlib.Path, tmp_path: pathlib.Path) -> None:
    write(root, "osbase/spec/a.proto", PROTO)
    write(root, "osbase/spec/other.proto", PROTO)  # the same names
    text = (
        "import grpc\nfrom osbase.spec import a_pb2, a_pb2_grpc\n"
        "def f(c: grpc.Channel) -> str:\n    return a_pb2_grpc.SStub(c).Do(a_pb2.M()).text\n"
    )
    write(root, "osbase/user.py", text)
    assert tools.mypy(root, tree.files(root), pathlib.Path(), tmp_path / "scratch") == ""


def test_mypy_fails_on_a_broken_proto(root: pathlib.Path, tmp_path: pathlib.Path) -> None:
    write(root, "osbase/spec/a.proto", "nonsense")
    with pytest.raises(tree.LintError, match="protoc"):
        tools.mypy(root, tree.files(root), pathlib.Path(), tmp_path / "scratch")


@pytest.mark.parametrize(
    ("path", "text", "good"),
    [
        ("a.py", f"# {LICENCE}\n", True),
        ("a.py", f"#!/usr/bin/python3\n# {LICENCE}\n", True),
        ("run", f"#!/bin/sh\n# {LICENCE}\n", True),
        ("a.proto", f"// {LICENCE}\n", True),
        ("a.json", "{}", True),
        ("a/__init__.py", "", True),
        ("a.py", "import os\n", False),
        ("a.py", f"\n# {LICENCE}\n", False),
        ("a.py", f"# {LICENCE} OR MIT\n", False),
        ("run", "#!/bin/sh\necho\n", False),
        ("a.go", f"# {LICENCE}\n", False),
        ("x/BUILD.bazel", "py_library()\n", False),
        (".devcontainer/Dockerfile", "FROM x\n", False),
    ],
)
def test_spdx(path: str, text: str, good: bool) -> None:
    assert list(rules.spdx(path, text)) == [] if good else list(rules.spdx(path, text))


@pytest.mark.parametrize(
    ("line", "good"),
    [
        ("https://deb." + "debian.org/debian", False),
        ("see files.python" + "hosted.org", False),
        ("registry.npm" + "js.org", False),
        ("a mirror.example.test b", False),
        ('x = "/wor' + 'k/main"', False),
        ("cd /hom" + "e/somebody/x", False),
        ("/roo" + "t/.cache", False),
        ("the homework/work in build/work/", True),
        ("$HOME/work", True),
        ("https://www.debian.org/social_contract", True),
        ("the mirror of the host", True),
    ],
)
def test_machine_specific(line: str, good: bool) -> None:
    found = list(rules.machine_specific("f", "fine\n" + line, {"mirror.example.test", "vm"}))
    assert found == [] if good else found[0].startswith("f:2: ")


@pytest.mark.parametrize(
    ("path", "text", "good"),
    [
        ("osbase/a.py", "import metropolis.node\n", False),
        ("osbase/a.py", "def f():\n    from metropolis import node\n", False),
        ("osbase/a_test.py", "import os, metropolis\n", False),
        ("osbase/BUILD.bazel", 'deps = ["//metropolis/node:allocs"]', False),
        ("osbase/a.proto", 'import "metropolis/a.proto";', False),
        ("osbase/a.py", "import metropolises\nx = 'metropolis'\n", True),
        ("osbase/a.py", "# like metropolis.node\n", True),
        ("metropolis/a.py", "import metropolis.node\n", True),
    ],
)
def test_layering(path: str, text: str, good: bool) -> None:
    assert list(layers.layering(path, text)) == [] if good else list(layers.layering(path, text))


ROOM = "metropolis/node/core/network/workloads"
MODULE = ROOM.replace("/", ".")


@pytest.mark.parametrize(
    ("path", "text", "good"),
    [
        ("model.py", "from M.api import wire", False),
        ("errors.py", "import M.engine.engine", False),
        ("validate.py", "from M import datapath", False),
        ("conditions.py", "from .datapath import names", False),
        ("conditions.py", "from M import model", True),
        ("conditions_test.py", "from M.engine import engine", True),
        ("datapath/veth.py", "from M.engine.engine import Engine", False),
        ("datapath/veth.py", "from ..api import wire", False),
        ("datapath/veth.py", "from M.datapath import names", True),
        ("datapath/veth.py", "from M.model import Record", True),
        ("datapath/interface.py", "from M.datapath import names", False),
        ("datapath/interface.py", "from . import names", False),
        ("datapath/interface.py", "from osbase.netlink import link", False),
        ("datapath/interface.py", "from osbase import netlink", False),
        ("datapath/interface.py", "from M.model import Record", True),
        ("engine/engine.py", "from M.datapath import interface, names", False),
        ("engine/engine.py", "from M.datapath.names import alias", False),
        ("engine/engine.py", "from M.api import wire", False),
        ("engine/engine.py", "from M.datapath.interface import Datapath", True),
        ("engine/engine.py", "from M.datapath import interface", True),
        ("engine/engine_test.py", "from M.datapath import names", True),
        ("engine/ledger.py", "import osbase.netlink.link", False),
        ("engine/entries.py", "import osbase.netlink.link", False),
        ("engine/ledger.py", "from M.datapath.veth import KernelDatapath", False),
        ("engine/ledger.py", "from osbase import aio", True),
        ("api/server.py", "from M.datapath.interface import Datapath", False),
        ("api/server.py", "from M.engine.engine import Engine", True),
        ("api/serve.py", "from M.datapath.veth import KernelDatapath", True),
        ("testing/fake.py", "from M.datapath.veth import KernelDatapath", True),
        ("../workload_service.py", "from M.datapath.veth import KernelDatapath", True),
        ("../cni/server.py", "from M.datapath.veth import KernelDatapath", False),
        ("../cni/server.py", "from M.datapath import veth", False),
        ("../cni/server.py", "from M.datapath import veth_names", True),
        ("../cni/server_test.py", "from M.datapath.veth import KernelDatapath", True),
        ("../cni/testing.py", "from M.datapath.veth import KernelDatapath", True),
        ("../conftest.py", "from M.datapath.veth import KernelDatapath", True),
    ],
)
def test_rooms(path: str, text: str, good: bool) -> None:
    full = os.path.normpath(f"{ROOM}/{path}")
    found = list(
        layers.layering(full, text.replace("M.", MODULE + ".").replace("M ", MODULE + " "))
    )
    assert found == [] if good else found[0].startswith(f"{full}:1: imports ")


@pytest.mark.parametrize(
    ("path", "text", "good"),
    [
        ("osbase/net/x.py", "await asyncio.to_thread(f)", False),
        ("metropolis/node/core/x.py", "from asyncio import to_thread", False),
        ("metropolis/node/core/x.py", "task = make(asyncio.to_thread)", False),
        ("metropolis/node/core/x.py", "await in_thread(f)  # not asyncio.to_thread", True),
        ("metropolis/node/core/x_test.py", "await asyncio.to_thread(f)", True),
        ("metropolis/node/core/testing/x.py", "await asyncio.to_thread(f)", True),
        ("metropolis/test/launch/x.py", "await asyncio.to_thread(f)", True),
        ("osbase/test/vm/x.py", "await asyncio.to_thread(f)", True),
        ("osbase/supervisor/threads.py", "await asyncio.to_thread(f)", True),
    ],
)
def test_calls_that_are_replaced(path: str, text: str, good: bool) -> None:
    found = list(calls.replaced(path, text))
    assert found == [] if good else found[0].startswith(f"{path}:1: to_thread: ")


def test_an_implementation_in_tests_of_nodes() -> None:
    text = f"from {MODULE}.datapath.veth import KernelDatapath"
    assert list(layers.layering("metropolis/test/world/x.py", text)) == []
    assert list(layers.layering("metropolis/cli/x.py", text)) != []


@pytest.mark.parametrize(
    ("path", "text", "found"),
    [
        ("a.py", "left_s = 1\n", [(1, "left_s", "time_remaining")]),
        ("a.py", "x = 1\nself._doomed_links = x\n", [(2, "doomed", "removal")]),
        ("a.py", "class Turn: ...\n", [(1, "Turn", "WorkloadLock")]),
        ("a.py", "x = 1  # it is told\n", [(1, "told", "reported")]),
        ("a.py", '"""One.\n\nOf two, one stays.\n"""\n', [(3, "Of", "subject first")]),
        ("a.py", 'def f():\n    """Spared."""\n', [(2, "Spared", "protected")]),
        ("a.md", "# T\n\nStrangers go.\n", [(3, "Strangers", "unlisted peers")]),
        ("a.md", "Fine. Of two, one.\n", [(1, "Of", "subject first")]),
        ("a.md", "Whoever sees to it\n", [(1, "Whoever", "that"), (1, "sees to it", "sure")]),
        (
            "a.py",
            "# dropped without a word, lest\n",
            [(1, "lest", "so"), (1, "without a word", "")],
        ),
        ("a.py", "# nobody's, as ever\n", [(1, "nobody's", "owner"), (1, "as ever", "still")]),
        ("a.py", "told = turn = lefts = left_side = 'doomed, Of'\n", []),
        ("a.py", "# in turn, one of two is left, untold\n", []),
        ("a.py", "whoever = lest = 1  # celestial; as every word; nobody sees it\n", []),
        ("a.md", "`doomed` is code.\n\n    doomed\n\n```\nOf \n```\n", []),
        ("a.txt", "doomed", []),
    ],
)
def test_words(path: str, text: str, found: list[tuple[int, str, str]]) -> None:
    lines = list(words.habits(path, text))
    assert len(lines) == len(found), lines
    for line, (number, word, instead) in zip(lines, found, strict=True):
        assert line.startswith(f"{path}:{number}: {word}: ")
        assert instead in line


def test_hosts_in_settings() -> None:
    apt = "deb [signed-by=/x] http://user:secret@mirror.example.test/debian forky main"
    pip = "extra-index-url = https://pip.example.test:8080/simple file:///some/where"
    assert rules.hosts_in(apt + "\n" + pip) == {"mirror.example.test", "pip.example.test"}


A, B = "`a_test.py::test_a`", "`a_test.py::test_b`"
CLAIMS = f"""\
| id | claim | against | direction | families | where | tests |
|---|---|---|---|---|---|---|
| a-1 | No. | pod, node | pod → node, pod → outside | IPv4, IPv6 | single, cluster | {A} |
| b | Nor that. | user | node → service | none | single | {B}<br>{A} |
"""
CLAIM_TESTS = """\
async def test_a(): ...
@pytest.mark.parametrize("x", [1])
def test_b(x): ...
@pytest.mark.skipif(True, reason="no")
def test_skipped(): ...
class T:
    def test_inner(self): ...
"""


def claim_findings(page: str) -> list[str]:
    return list(claims.check("S.md", page, {"a_test.py": CLAIM_TESTS}.get))


def test_claims() -> None:
    assert claim_findings(CLAIMS) == []
    assert claim_findings(f"# Title\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\n{CLAIMS}\nend\n") == []
    parsed, _ = claims.parse(CLAIMS)
    assert [(c.ident, c.where, c.tests) for c in parsed] == [
        ("a-1", ("single", "cluster"), ("a_test.py::test_a",)),
        ("b", ("single",), ("a_test.py::test_b", "a_test.py::test_a")),
    ]
    assert parsed[0].directions == ("pod → node", "pod → outside")


@pytest.mark.parametrize(
    ("old", "new", "finding"),
    [
        ("a_test.py::test_a` |\n| b", "b_test.py::test_a` |\n| b", "S.md:3: a-1: there is no b_t"),
        ("::test_b`", "::test_gone`", "S.md:4: b: a_test.py has no test_gone"),
        ("::test_b`", "::test_inner`", "has no test_inner"),
        ("::test_b`", "::test_skipped`", "test_skipped is skipped"),
        ("`a_test.py::test_b`<br>`a_test.py::test_a`", "", "names no test"),
        ("`a_test.py::test_b`<br>", "a_test.py::test_b ", "is no `PATH_test.py::test_NAME`"),
        ("`a_test.py::test_b`<br>", "`a_test.py::test_a`<br>", "names a test twice"),
        ("| b |", "| a-1 |", "claim a-1 is there twice"),
        ("| b |", "| B |", "id 'B'"),
        ("Nor that.", "", "claims nothing"),
        ("| user |", "|  |", "against: want"),
        ("| user |", "| thief |", "against: want"),
        ("node → service", "", "direction: there is none"),
        ("node → service", "in", "direction 'in'"),
        ("node → service", "node → moon", "direction 'node → moon'"),
        ("| none |", "|  |", "families ''"),
        ("single, cluster", "single, single", "where: want"),
        ("single, cluster", "", "where: want"),
        ("| single | `", "| `", "has 6 columns"),
        ("| where |", "| place |", "has 0 tables"),
        ("| b |", "\n" + CLAIMS.split("| b |")[0] + "| b |", "has 2 tables"),
    ],
)
def test_claims_that_are_not_whole(old: str, new: str, finding: str) -> None:
    assert CLAIMS.count(old) == 1
    found = claim_findings(CLAIMS.replace(old, new))
    assert any(finding in one for one in found), found


def test_a_page_without_claims() -> None:
    assert claim_findings("# Security\n") != []
    header = "\n".join(CLAIMS.splitlines()[:2])
    assert claim_findings(header) == ["S.md:1: has no claim"]
