# SPDX-License-Identifier: Apache-2.0
"""The README names all that the image reads from outside, and its QEMU command
has the options that machines of tests have.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from osbase.test.qemu.config import Accel, Drive, Layout, Machine, qemu_args

HERE = Path(__file__).parent
README = (HERE / "README.md").read_text()
SCRIPTS = [
    path
    for path in HERE.rglob("*")
    if path.is_file() and path.read_bytes().startswith((b"#!/bin/sh", b"# SPDX"))
    and path.suffix not in {".py", ".md", ".bazel"}
]  # fmt: skip


def command() -> list[str]:
    """Return the words of the README's command."""
    found = re.search(r"^    (qemu-system-x86_64 (?:.*\\\n)+.*)$", README, re.MULTILINE)
    assert found is not None
    return shlex.split(found[1].replace("\\\n", " "))


def test_flags_and_files_are_all_named() -> None:
    texts = "\n".join(path.read_text() for path in SCRIPTS)
    flags = set(re.findall(r"metropolis\\?\.([a-z-]+)[= ]", texts))
    assert flags == {"console", "hostname", "log-level"}
    for flag in flags:
        assert f"`metropolis.{flag}" in README
    assert "for name in ca cert key; do" in texts
    for name in ("node.textproto", "ca.pem", "cert.pem", "key.pem"):
        assert f"-fw_cfg name=opt/metropolis/{name},file=" in README
    assert set(re.findall(r"\$\(disk ([a-z]+)\)", texts)) == {"data", "tools"}


def test_the_command_is_as_that_of_tests() -> None:
    """Every option that it shares with them has the same value."""
    words = command()
    ours = dict(zip(words[1:], [*words[2:], ""], strict=True))
    root = Drive(Path("root.erofs"), "root")
    machine = Machine(Path("kernel"), Path("initrd"), drives=(root,))
    theirs = qemu_args(machine, Accel.TCG, Layout(Path("/tmp/x")), 3, 4)
    for option in ("-machine", "-accel", "-cpu", "-display"):
        assert ours[option] == theirs[theirs.index(option) + 1], option
    for option in ("-nodefaults", "-no-reboot"):
        assert option in words
        assert option in theirs
    for part in ("console=ttyS0", "panic=-1"):
        assert part in ours["-append"].split()
        assert part in theirs[theirs.index("-append") + 1].split()
    assert "virtio-blk-pci,drive=root,serial=root" in words
    assert ours["-kernel"] == "bazel-bin/osbase/boot/bzImage"
    assert ours["-initrd"] == "bazel-bin/osbase/boot/initramfs.cpio.zst"
