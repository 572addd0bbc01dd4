# SPDX-License-Identifier: Apache-2.0
"""The check of the code of images, as Bazel's worker and as one command."""

import contextlib
import json
import pathlib
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from build.python import check

SETTINGS = pathlib.Path("pyproject.toml").absolute()

GOOD = """\
from app.other import Thing


def use(thing: Thing) -> int:
    return thing.size()


def not_finished(x):
    print(x, use(Thing()))
"""
OTHER = """\
class Thing:
    def size(self) -> int:
        return 3
"""

# What is at line 12 of GOOD, and a part of the finding.
MISTAKES = {
    "syntax": ("def f(:", "[syntax]"),
    "name": ("def f(x): return nosuch + x", 'Name "nosuch" is not defined'),
    "attribute": ("def f() -> int: return Thing().length()", 'no attribute "length"'),
    "import": ("import app.nosuch", 'module named "app.nosuch"'),
    "import-from": ("from app.other import Nothing", 'no attribute "Nothing"'),
    "argument": ("def f(): use(Thing(), 2)", "Too many arguments"),
    "type": ("def f(): use(3)", "incompatible type"),
}


class Tree:
    """A small image's code in a folder."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder = folder
        self.files: list[str] = []
        self.done = folder / "done"
        self.write("app/main.py", GOOD)
        self.write("app/other.py", OTHER)

    def write(self, path: str, text: str) -> None:
        file = self.folder / path
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
        if path not in self.files:
            self.files.append(path)

    def flags(self) -> str:
        """Return the argument, as Bazel gives it: a flag file."""
        lines = [str(self.done), str(SETTINGS)]
        lines += [f"{path}={self.folder / path}" for path in self.files]
        (self.folder / "flags").write_text("\n".join(lines) + "\n")
        return f"@{self.folder / 'flags'}"


class Worker:
    """The check as Bazel's persistent worker."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def request(self, *arguments: str) -> tuple[int, str]:
        assert self.process.stdin
        assert self.process.stdout
        print(json.dumps({"arguments": arguments}), file=self.process.stdin, flush=True)
        answer = json.loads(self.process.stdout.readline())
        return answer["exitCode"], answer["output"]


@contextlib.contextmanager
def worker(temporary: pathlib.Path) -> Iterator[Worker]:
    command = [sys.executable, "-P", check.__file__, "--persistent_worker"]
    environ = {"TMPDIR": str(temporary), "PYTHONPATH": ":".join(sys.path)}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environ
    ) as process:
        yield Worker(process)
        process.send_signal(signal.SIGTERM)
    assert process.returncode == 0


@pytest.fixture
def tree(tmp_path: pathlib.Path) -> Tree:
    (tmp_path / "tree").mkdir()
    return Tree(tmp_path / "tree")


def test_a_worker_finds_each_mistake_and_sees_its_repair(
    tree: Tree, tmp_path: pathlib.Path
) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    with worker(temporary) as bazel:
        assert bazel.request(tree.flags()) == (0, "")
        assert tree.done.exists()
        for line, found in MISTAKES.values():
            tree.done.unlink()
            tree.write("app/main.py", f"{GOOD}\n{line}\n")
            status, output = bazel.request(tree.flags())
            assert status == 1
            assert f"app/main.py:{GOOD.count(chr(10)) + 2}: error: " in output
            assert found in output
            assert "--norun_validations" in output
            assert not tree.done.exists()
            tree.write("app/main.py", GOOD)
            assert bazel.request(tree.flags()) == (0, "")
        # In a module that others use; of the same size, in the same second.
        tree.write("app/other.py", OTHER.replace("size", "side"))
        assert "app/main.py:5: error: " in bazel.request(tree.flags())[1]
        tree.write("app/other.py", OTHER)
        assert bazel.request(tree.flags()) == (0, "")
        tree.files.remove("app/other.py")
        assert "app/main.py:1: error: " in bazel.request(tree.flags())[1]
    assert not list(temporary.iterdir())


@pytest.mark.parametrize("mistake", ["syntax", "name"])
def test_without_a_worker_it_is_a_command(tree: Tree, mistake: str) -> None:
    line, found = MISTAKES[mistake]
    tree.write("app/main.py", f"{GOOD}\n{line}\n")
    done = subprocess.run(
        [sys.executable, "-P", check.__file__, tree.flags()],
        env={"PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert found in done.stderr


def test_generated_modules_are_known_by_their_stubs(tree: Tree) -> None:
    tree.write("app/x_pb2.py", "DESCRIPTOR = nosuch\n")
    tree.write("app/x_pb2.pyi", "class Message: ...\n")
    tree.write("app/user.py", "from app import x_pb2\n\nx_pb2.Message()\n")
    assert check.act([tree.flags()], tree.folder) == (0, "")
    tree.write("app/user.py", "from app import x_pb2\n\nx_pb2.Massage()\n")
    status, output = check.act([tree.flags()], tree.folder)
    assert status == 1
    assert "app/user.py:3: error: " in output


def test_a_package_that_went_is_missed(tree: Tree) -> None:
    """Its folder is not left behind, as a package without files."""
    tree.write("app/user.py", "import gone\n")
    tree.write("gone/part.py", "")
    assert check.act([tree.flags()], tree.folder) == (0, "")
    tree.files = [one for one in tree.files if "gone" not in one]
    status, output = check.act([tree.flags()], tree.folder)
    assert status == 1
    assert 'module named "gone"' in output


@pytest.mark.parametrize("status", [2, -9])
@pytest.mark.parametrize("said", ["app/main.py: note: x\n", "app/main.py:1: note: x\ncrash\n", ""])
def test_a_mypy_that_did_not_end_well_is_no_ok(
    tree: Tree, monkeypatch: pytest.MonkeyPatch, status: int, said: str
) -> None:
    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, status, said, "")

    monkeypatch.setattr(subprocess, "run", run)
    assert check.act([tree.flags()], tree.folder)[0] == 1
    assert not tree.done.exists()


def test_a_check_that_cannot_run_says_so(tree: Tree) -> None:
    (tree.folder / "app/other.py").unlink()
    status, output = check.act([tree.flags()], tree.folder)
    assert status == 1
    assert "app/other.py" in output
    assert not tree.done.exists()
