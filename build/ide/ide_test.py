# SPDX-License-Identifier: Apache-2.0
"""mypy, pytest and ruff as an editor runs them, in a copy of the tree."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from build.ide import ide
from build.lint import tree

# They import grpc, generated modules, and have tests.
SERVER = "metropolis/node/core/network/workloads/api/server.py"
TEST = "osbase/net/spec/some_test.py"
USES = """\
import grpc
import third_party.cri.api_pb2

from metropolis.node.core.network.workloads.spec import workload_pb2


def test_imports() -> None:
    assert workload_pb2.DESCRIPTOR.package
    assert third_party.cri.api_pb2.DESCRIPTOR.package
    assert grpc.StatusCode.OK
"""


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone, in which the command ran, with a space in its path."""
    root, clone = tree.workspace(), tmp_path_factory.mktemp("my clone")
    for path in tree.files(root):
        (clone / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(root / path, clone / path)
    (clone / TEST).write_text(USES)
    command = [sys.executable, "-P", ide.__file__]
    environ = os.environ | {
        "BUILD_WORKSPACE_DIRECTORY": str(clone),
        "PYTHONPATH": os.pathsep.join(os.path.abspath(entry) for entry in sys.path),
    }
    for _ in range(2):  # the second replaces what the first made
        done = subprocess.run(
            command, env=environ, cwd=clone, check=False, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
    assert not (clone / ".venv.new").exists()
    return clone


def run(workspace: Path, *command: str, **environ: str) -> tuple[int, str]:
    """Run a program of .venv; its environment has nothing of this test's."""
    done = subprocess.run(
        [workspace / ".venv/bin" / command[0], *command[1:]],
        cwd=workspace,
        env={"PATH": "/usr/bin:/bin", "HOME": str(workspace), **environ},
        capture_output=True,
        timeout=240,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("command", [["python", "-m", "mypy"], ["mypy"]], ids=" ".join)
def test_mypy(workspace: Path, command: list[str]) -> None:
    assert run(workspace, *command, SERVER, TEST) == (
        0,
        "Success: no issues found in 2 source files\n",
    )
    wrong = workspace / "osbase/net/spec/wrong.py"
    wrong.write_text("from osbase.net.spec import net_pb2\n\nnet_pb2.NoSuch()\n")
    status, output = run(workspace, *command, str(wrong.relative_to(workspace)))
    wrong.unlink()
    assert status == 1
    assert "osbase/net/spec/wrong.py:3: error: " in output


@pytest.mark.parametrize("command", [["python", "-m", "pytest"], ["pytest"]], ids=" ".join)
def test_pytest(workspace: Path, command: list[str]) -> None:
    status, output = run(workspace, *command, TEST)
    assert status == 0, output
    assert "1 passed" in output


def test_pytest_in_namespaces(workspace: Path) -> None:
    status, output = run(workspace, "pytest", "--netns", "build/python/netns_test.py")
    assert status == 0, output


def test_ruff(workspace: Path) -> None:
    assert run(workspace, "ruff", "check", SERVER)[0] == 0


def test_the_editors_own_variables_and_files_reach_python(workspace: Path) -> None:
    (workspace / "plugin").mkdir()
    (workspace / "plugin/of_the_editor.py").write_text(
        "import os\nprint(os.environ['TEST_PIPE'])\n"
    )
    given = {"PYTHONPATH": str(workspace / "plugin"), "TEST_PIPE": "a b"}
    assert run(workspace, "python", "-m", "of_the_editor", **given) == (0, "a b\n")


def test_git_and_bazel_ignore_what_is_made(workspace: Path) -> None:
    def git(*arguments: str) -> str:
        return subprocess.check_output(["git", *arguments], cwd=workspace, text=True)

    git("init", "-q")
    git("add", "--all")
    paths = git("ls-files").splitlines()
    assert "pyproject.toml" in paths
    assert not [path for path in paths if "_pb2" in path or ".venv" in path]
    assert ".venv" in (workspace / ".bazelignore").read_text().splitlines()


def test_folders_of_several_packages_are_merged(tmp_path: Path) -> None:
    for package, file in [("one", "google/a/x.py"), ("two", "google/a/y.py"), ("three", "z.py")]:
        (tmp_path / package / file).parent.mkdir(parents=True)
        (tmp_path / package / file).write_text(file)
    site = tmp_path / "site"
    site.mkdir()
    for package in ("one", "two", "three"):
        ide.link_all(tmp_path / package, site)
    assert (site / "google/a/x.py").read_text() == "google/a/x.py"
    assert (site / "google/a/y.py").read_text() == "google/a/y.py"
    assert (site / "z.py").is_symlink()
    # The packages are as before.
    assert [p.name for p in (tmp_path / "one/google/a").iterdir()] == ["x.py"]


def test_a_folder_of_somebody_else_is_kept(tmp_path: Path) -> None:
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv/precious").write_text("")
    with pytest.raises(SystemExit, match="move it away"):
        ide.make_environment(tmp_path, [])
    assert (tmp_path / ".venv/precious").exists()
