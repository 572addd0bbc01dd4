# SPDX-License-Identifier: Apache-2.0
"""The parts of the probe that need no kernel to boot; vm_test boots one."""

import os
import subprocess
from pathlib import Path

import pytest

from osbase.test.qemu import accel
from osbase.test.qemu.config import Accel
from osbase.test.qemu.vm import VmError


def test_the_archive_is_one(tmp_path: Path) -> None:
    archive = accel.cpio_newc({"init": b"12345", "other": b""})
    done = subprocess.run(
        ["cpio", "-i", "--quiet"], input=archive, cwd=tmp_path, check=True, capture_output=True
    )
    assert done.stderr == b""
    assert (tmp_path / "init").read_bytes() == b"12345"
    assert os.access(tmp_path / "init", os.X_OK)
    assert (tmp_path / "other").read_bytes() == b""


def test_the_program_runs(tmp_path: Path) -> None:
    # Without the right to power off, it gets EPERM and stays in its loop.
    program = tmp_path / "init"
    program.write_bytes(accel.poweroff_program())
    program.chmod(0o755)
    with pytest.raises(subprocess.TimeoutExpired):
        subprocess.run(
            ["unshare", "-Ur", "setpriv", "--bounding-set=-all", program], timeout=0.5, check=True
        )


async def test_the_environment_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(accel.OVERRIDE, "tcg")
    assert await accel.find_accel(Path("/none")) is Accel.TCG
    monkeypatch.setenv(accel.OVERRIDE, "icount")
    assert await accel.find_accel(Path("/none")) is Accel.ICOUNT
    monkeypatch.setenv(accel.OVERRIDE, "xen")
    with pytest.raises(VmError, match="want kvm, tcg or icount"):
        await accel.find_accel(Path("/none"))


async def test_the_answer_is_remembered(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(accel.OVERRIDE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(accel, "_KVM", Path("/dev/null"))
    answers = ["it hangs"]

    async def probe(kernel: Path, kind: Accel) -> str:
        return answers.pop()

    monkeypatch.setattr(accel, "probe", probe)
    assert await accel.find_accel(Path("/none")) is Accel.TCG
    assert await accel.find_accel(Path("/none")) is Accel.TCG
    answers.append("")
    (tmp_path / "metropolis" / "accel").rename(tmp_path / "away")
    assert await accel.find_accel(Path("/none")) is Accel.KVM


async def test_a_cache_that_cannot_be_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv(accel.OVERRIDE, raising=False)
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr(accel, "_KVM", Path("/dev/null"))

    async def probe(kernel: Path, kind: Accel) -> str:
        return ""

    monkeypatch.setattr(accel, "probe", probe)
    assert await accel.find_accel(Path("/none")) is Accel.KVM


async def test_no_kvm_no_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(accel.OVERRIDE, raising=False)
    monkeypatch.setattr(accel, "_KVM", Path("/dev/none"))
    assert await accel.find_accel(Path("/none")) is Accel.TCG
