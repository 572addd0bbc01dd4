# SPDX-License-Identifier: Apache-2.0
"""The workflow of continuous integration and the devcontainer, without either.

Checked: keys, commands and scripts of the workflow; that the Dockerfile's step
installs the devroot's packages, by running it with an apt-get that notes its
arguments. Not checked: what GitHub and Docker do with it.
"""

import json
import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from build.lint import tree

ROOT = tree.workspace()
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))

# Keys of the workflow syntax (docs.github.com) that are in use.
KEYS = [
    "name",
    "on",
    "push",
    "pull_request",
    "branches",
    "permissions",
    "contents",
    "jobs",
    "test",
    "runs-on",
    "timeout-minutes",
    "env",
    "steps",
    "uses",
    "run",
    "DEVROOT_MIRROR",
]


def runs(text: str) -> list[str]:
    """Return the commands of `run:` steps, all of one line."""
    return re.findall(r"^ *- run: (.+)$", text, re.MULTILINE)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_the_workflow(path: Path) -> None:
    text = path.read_text()
    assert "\t" not in text
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    keys = {m[1] for line in lines if (m := re.match(r" *(?:- )?([\w-]+):(?: |$)", line))}
    assert keys <= set(KEYS)
    assert {"on", "jobs", "runs-on", "steps"} <= keys
    assert all(len(line) - len(line.lstrip()) in range(0, 11, 2) for line in lines)
    assert re.findall(r"uses: \S+@v\d+$", text, re.MULTILINE)
    assert runs(text)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_its_scripts_exist_and_are_valid(path: Path) -> None:
    scripts = []
    for command in runs(path.read_text()):
        subprocess.run(["bash", "-n", "-c", command], check=True)
        scripts += [word for word in shlex.split(command) if re.match(r"\.?[\w.-]+/", word)]
    assert ".ci/run" in scripts
    for script in scripts:
        assert os.access(ROOT / script, os.X_OK), script
        subprocess.run(["bash", "-n", str(ROOT / script)], check=True)


def test_the_devcontainer_installs_the_devroots_packages(tmp_path: Path) -> None:
    folder = ROOT / ".devcontainer"
    settings = json.loads((folder / "devcontainer.json").read_text())
    assert (folder / settings["build"]["dockerfile"]).is_file()
    assert (folder / settings["build"]["context"]).resolve() == ROOT
    text = (folder / "Dockerfile").read_text().replace("\\\n", " ")
    [(source, target)] = re.findall(r"^COPY (\S+) (\S+)$", text, re.MULTILINE)
    [step] = re.findall(r"^RUN (.+)$", text, re.MULTILINE)
    # Its files go into the scratch folder.
    for path in (target, "/etc/metropolis-devroot", "/etc/bazel/bazelrc"):
        step = step.replace(path, str(tmp_path / Path(path).name))
    (tmp_path / Path(target).name).write_bytes((ROOT / source).read_bytes())
    (tmp_path / "bazelrc").write_text("build --host_javabase=x\nbuild --other\n")
    apt = tmp_path / "apt-get"
    apt.write_text(f'#!/bin/sh\necho "$@" >>{tmp_path}/calls\n')
    apt.chmod(0o755)
    subprocess.run(
        ["sh", "-ec", step], env={"PATH": f"{tmp_path}:/usr/bin:/bin"}, cwd=tmp_path, check=True
    )
    update, install = (tmp_path / "calls").read_text().splitlines()
    assert update == "update"
    lines = (ROOT / "build/devroot/packages.in").read_text().splitlines()
    wanted = [line for line in lines if line and not line.startswith("#")]
    assert install == "install -y --no-install-recommends " + " ".join(wanted)
    assert (tmp_path / "metropolis-devroot").read_text() == "forky\n"
    assert (tmp_path / "bazelrc").read_text() == "build --other\n"
