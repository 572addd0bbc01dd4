# SPDX-License-Identifier: Apache-2.0
"""The files of the tree, and copies of it (by links) for tools that want it."""

import os
import pathlib
import subprocess

# In a tree without git: files of Bazel, Python and tools.
IGNORED_FOLDERS = ("__pycache__", "node_modules")


class LintError(Exception):
    """A lint could not run (this is not a finding)."""


def workspace() -> pathlib.Path:
    """Return the source tree of this test, which runs in its runfiles."""
    root = pathlib.Path("pyproject.toml").resolve().parent
    if not (root / "MODULE.bazel").exists():
        raise LintError(f"{root} is not the workspace: pyproject.toml is no link to it")
    return root


def listed_by_git(root: pathlib.Path) -> list[str] | None:
    """Return the paths git tracks below `root`; None without a work tree."""
    if not (root / ".git").exists():
        return None
    # In the sandbox another user seems to own the tree: declare it safe.
    command = ["git", "-c", "safe.directory=*", "-C", str(root), "ls-files", "-z"]
    done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode:
        raise LintError(f"git ls-files: {done.stderr.decode(errors='replace').strip()}")
    return [os.fsdecode(path) for path in done.stdout.split(b"\0") if path]


def walked(root: pathlib.Path) -> list[str]:
    """Return the paths below `root` that a clone would probably have."""
    found = []
    for folder, folders, files in os.walk(root):
        folders[:] = [
            name
            for name in folders
            if name not in IGNORED_FOLDERS and not name.startswith("bazel-")
        ]
        if ".git" in folders:
            folders.remove(".git")
        found += [os.path.relpath(os.path.join(folder, name), root) for name in files]
    return [path for path in found if "_pb2" not in path]


def files(root: pathlib.Path) -> list[str]:
    """Return the regular files to lint, sorted, relative to `root`."""
    paths = listed_by_git(root)
    if paths is None:
        paths = walked(root)
    # A file that was removed, but not in a commit, is still tracked.
    regular = [p for p in paths if (root / p).is_file() and not (root / p).is_symlink()]
    if not regular:
        raise LintError(f"no file to lint in {root}")
    return sorted(regular)


def mirror(root: pathlib.Path, paths: list[str], into: pathlib.Path) -> None:
    """Link `paths` of `root` into the empty folder `into`."""
    for path in paths:
        link = into / path
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(root / path)
