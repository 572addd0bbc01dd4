# SPDX-License-Identifier: Apache-2.0
"""host_pip with real pip: a broken extra source breaks nothing else."""

import os
import pathlib
import zipfile

import pytest

from build.python import host_pip
from build.python.pypi_install import prune, requirements

METADATA = """\
Metadata-Version: 2.1
Name: Some-Package
Version: 1.0
Requires-Dist: Always.Needed>=1
Requires-Dist: elsewhere; sys_platform == "win32"
Requires-Dist: older; python_version < "3"
Requires-Dist: optional; extra == "more"
"""


@pytest.fixture
def index(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """Configure pip with a main index that has one wheel, and nothing else."""
    folder = tmp_path / "simple/some-package"
    folder.mkdir(parents=True)
    name = "some_package-1.0-py3-none-any.whl"
    with zipfile.ZipFile(folder / name, "w") as wheel:
        wheel.writestr("some_package/__init__.py", "x = 1\n")
        wheel.writestr("some_package/tests/test_x.py", "")
        wheel.writestr("some_package-1.0.dist-info/METADATA", METADATA)
        wheel.writestr(
            "some_package-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n"
        )
        wheel.writestr("some_package-1.0.dist-info/RECORD", "")
    (folder / "index.html").write_text(f'<a href="{name}">{name}</a>')
    config = tmp_path / "pip.conf"
    config.write_text(f"[global]\nindex-url = file://{tmp_path}/simple\n")
    for variable in list(os.environ):
        if variable.startswith("PIP_"):
            monkeypatch.delenv(variable)
    monkeypatch.setenv("PIP_CONFIG_FILE", str(config))
    return config


def install(target: pathlib.Path) -> None:
    host_pip.pip("install", "-qq", "--no-deps", f"--target={target}", "some-package")


def test_installs(index: pathlib.Path, tmp_path: pathlib.Path) -> None:
    install(tmp_path / "target")
    assert (tmp_path / "target/some_package/__init__.py").exists()


def test_survives_an_extra_index_that_is_away(index: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """It lists a file that it does not have, which ends pip."""
    away = tmp_path / "away/some-package"
    away.mkdir(parents=True)
    name = "some_package-9.0-py3-none-any.whl"
    (away / "index.html").write_text(f'<a href="{name}">{name}</a>')
    with index.open("a") as config:
        config.write(f"extra-index-url = file://{tmp_path}/away\nfind-links = {tmp_path}/none\n")
    install(tmp_path / "target")
    assert (tmp_path / "target/some_package-1.0.dist-info").exists()


def test_failure_carries_what_pip_said(index: pathlib.Path, tmp_path: pathlib.Path) -> None:
    with pytest.raises(host_pip.PipError, match="no-such-package"):
        host_pip.pip("download", "-qq", f"--dest={tmp_path}", "no-such-package")


def test_wrong_hash_is_refused(index: pathlib.Path, tmp_path: pathlib.Path) -> None:
    pins = tmp_path / "requirement.txt"
    pins.write_text(f"some-package==1.0 --hash=sha256:{'0' * 64}\n")
    with pytest.raises(host_pip.PipError, match="DO NOT MATCH"):
        host_pip.pip("install", "--require-hashes", f"--target={tmp_path}/t", f"-r{pins}")
    assert not (tmp_path / "t/some_package").exists()


def test_what_is_kept_of_the_settings() -> None:
    config = "\n".join([
        "global.index-url='https://one.test/simple'",
        "global.extra-index-url='https://two.test/simple'",
        "install.find-links='/some/where'",
        "global.proxy='http://proxy.test'",
        ":env:.timeout='5'",
        "freeze.timeout='7'",
    ])  # fmt: skip
    given = {"PIP_FIND_LINKS": "/x", "PIP_PROXY": "http://mine.test", "HOME": "/h"}
    assert host_pip.main_index_only(config, given) == {
        "HOME": "/h",
        "PIP_CONFIG_FILE": "/dev/null",
        "PIP_INDEX_URL": "https://one.test/simple",
        "PIP_PROXY": "http://mine.test",
    }


def test_requirements_are_evaluated_for_here(index: pathlib.Path, tmp_path: pathlib.Path) -> None:
    install(tmp_path / "target")
    assert requirements(tmp_path / "target") == ["always_needed"]


def test_prune(index: pathlib.Path, tmp_path: pathlib.Path) -> None:
    target = tmp_path / "target"
    install(target)
    (target / "bin").mkdir()
    (target / "bin/script").write_text("#!/usr/bin/python3")
    (target / "bin/program").write_bytes(b"\x7fELF")
    (target / "some_package/a name (1).txt").write_text("")
    prune(target)
    left = {str(path.relative_to(target)) for path in target.rglob("*") if path.is_file()}
    assert left == {
        "bin/program",
        "some_package/__init__.py",
        "some_package-1.0.dist-info/METADATA",
        "some_package-1.0.dist-info/WHEEL",
    }
