# SPDX-License-Identifier: Apache-2.0
"""Make third-party and generated modules known to the editor: see __init__.py.

usage: ./bazelw run //build:ide
"""

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

from build.lint import tree
from build.proto.generate import generate

# What editors give to Python and its tools in the environment.
PASSED = "PYTHON*|PYTEST_*|TEST_*|VSCODE_*|PYCHARM_*|IDE_*|DEBUGPY_*|HYPOTHESIS_*|JB_*"

PYTHON = """\
#!/usr/bin/env bash
# The devroot's Python with the packages of this folder: made by //build:ide.
venv=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
passed=()
while read -r name; do
  case $name in
    @PASSED@) passed+=("$name=${!name}") ;;
  esac
done < <(compgen -e)
path=$venv/lib/python@VERSION@/site-packages:$venv/..
exec "$venv/../bazelw" shell env "${passed[@]}" PYTHONSAFEPATH=1 \\
  PYTHONPATH="$path${PYTHONPATH:+:$PYTHONPATH}" python3 "$@"
"""

TOOL = """\
#!/usr/bin/env bash
# @WHAT@, as pinned: made by //build:ide.
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
exec "$here/python" @HOW@ "$@"
"""

# Their mains. That of pytest is the one of tests in Bazel; --netns works too.
TOOLS = {
    "mypy": "-m mypy",
    "pytest": '"$here/../../build/python/pytest_main.py"',
}

NOT_OURS = "# mypy: ignore-errors\n"


def link(source: Path, target: Path) -> None:
    """Link `source` at `target`; folders of several packages are merged."""
    if not os.path.lexists(target):
        target.symlink_to(source)
        return
    if not (source.is_dir() and target.is_dir()):
        return
    if target.is_symlink():
        first = target.readlink()
        target.unlink()
        target.mkdir()
        link_all(first, target)
    link_all(source, target)


def link_all(source: Path, target: Path) -> None:
    """Link what is in the folder `source` into the folder `target`."""
    for entry in sorted(source.iterdir()):
        if entry.name != "__pycache__":
            link(entry, target / entry.name)


def original(folder: Path) -> Path:
    """Return where the files of a folder of runfiles are, to outlast it."""
    for file in folder.rglob("*"):
        if file.is_file():
            parts = file.relative_to(folder).parts
            return file.resolve().parents[len(parts) - 1]
    return folder


def make_environment(workspace: Path, packages: Iterable[Path]) -> None:
    """Make .venv of these site-packages; an old one is replaced."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    venv, final = workspace / ".venv.new", workspace / ".venv"
    if final.is_symlink() or (final.exists() and not (final / "pyvenv.cfg").exists()):
        raise SystemExit(f"ide: {final} is not a virtual environment; move it away")
    shutil.rmtree(venv, ignore_errors=True)
    site = venv / f"lib/python{version}/site-packages"
    site.mkdir(parents=True)
    for folder in packages:
        link_all(original(folder), site)
    (venv / "pyvenv.cfg").write_text(
        f"home = /usr/bin\ninclude-system-site-packages = false\nversion = {version}\n"
    )
    scripts = {"python": PYTHON.replace("@VERSION@", version).replace("@PASSED@", PASSED)} | {
        name: TOOL.replace("@WHAT@", name).replace("@HOW@", how) for name, how in TOOLS.items()
    }
    (venv / "bin").mkdir()
    for name, text in scripts.items():
        (venv / "bin" / name).write_text(text)
        (venv / "bin" / name).chmod(0o755)
    # A program that needs no Python; its package would look for it here, too.
    (venv / "bin/ruff").symlink_to(f"../lib/python{version}/site-packages/bin/ruff")
    for name in ("python3", f"python{version}"):
        (venv / "bin" / name).symlink_to("python")
    shutil.rmtree(final, ignore_errors=True)
    venv.rename(final)


def put(source: Path, target: Path) -> None:
    """Copy a generated module or stub, unless it is there."""
    text = NOT_OURS + source.read_text()
    if not target.exists() or target.read_text() != text:
        target.write_text(text)


def make_modules(workspace: Path, built: Path) -> int:
    """Write the modules of all protos into the tree; return how many files.

    built: where Bazel has those of protos that are not in the tree.
    """
    protos = {p: workspace / p for p in tree.files(workspace) if p.endswith(".proto")}
    done = 0
    with tempfile.TemporaryDirectory() as scratch:
        # One by one: two may define the same names, for different programs.
        for proto in protos:
            if status := generate([proto], protos, Path(scratch), grpc=True):
                raise SystemExit(f"ide: protoc ended with status {status} for {proto}")
        for root in (Path(scratch), built):
            for source in sorted([*root.rglob("*_pb2*.py"), *root.rglob("*_pb2*.pyi")]):
                put(source, workspace / source.relative_to(root))
                done += 1
    return done


def main(arguments: list[str]) -> int:
    """Run the command; return the exit status."""
    argparse.ArgumentParser(
        prog="ide",
        description="Make .venv and generated modules, for editors.",
        epilog="exit status: 0 made, 1 something failed, 2 wrong arguments",
        allow_abbrev=False,
    ).parse_args(arguments)
    workspace = Path(os.environ["BUILD_WORKSPACE_DIRECTORY"])
    packages = dict.fromkeys(Path(entry) for entry in sys.path if entry.endswith("site-packages"))
    modules = make_modules(workspace, Path(__file__).parents[2])
    make_environment(workspace, packages)
    print(f"{workspace}/.venv: {len(packages)} packages; {modules} generated modules and stubs")
    print("The editor's Python: .venv/bin/python; .venv/bin/{mypy,pytest,ruff} are the tools")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
