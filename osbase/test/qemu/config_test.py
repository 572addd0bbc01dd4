# SPDX-License-Identifier: Apache-2.0
"""The QEMU arguments of a machine's description."""

import itertools
import json
from pathlib import Path

import pytest

from osbase.test.qemu.config import Accel, ConfigError, Drive, Layout, Machine, Tap, qemu_args

KERNEL = Path("/k")
LAYOUT = Layout(Path("/m"))


def after(args: list[str], option: str) -> list[str]:
    """Return the values of an option."""
    return [value for name, value in itertools.pairwise(args) if name == option]


def test_names_need_no_escaping_but_in_chardevs() -> None:
    machine = Machine(KERNEL, drives=(Drive(Path("/a,b=c"), "root"),), channels=("port",))
    args = qemu_args(machine, Accel.TCG, Layout(Path("/x,y")), 3, 4)
    assert json.loads(after(args, "-blockdev")[0])["file"]["filename"] == "/a,b=c"
    assert "path=/x,,y/port.sock" in after(args, "-chardev")[2]


def test_a_drive_is_found_by_serial_and_read_only() -> None:
    args = qemu_args(Machine(KERNEL, drives=(Drive(Path("/d"), "tools"),)), Accel.KVM, LAYOUT, 3, 4)
    block = json.loads(after(args, "-blockdev")[0])
    device = json.loads(after(args, "-device")[1])
    assert block["read-only"] is True
    assert (device["serial"], device["drive"]) == ("tools", block["node-name"])


def test_the_machine_dies_with_its_owner() -> None:
    args = qemu_args(Machine(KERNEL), Accel.TCG, LAYOUT, 3, 4)
    assert after(args, "-run-with") == ["exit-with-parent=on"]


def test_socket_paths_that_the_kernel_would_cut() -> None:
    fits = Layout(Path("/" + "d" * (107 - len("/console.sock") - 1)))
    qemu_args(Machine(KERNEL), Accel.TCG, fits, 3, 4)
    with pytest.raises(ConfigError, match=r"108 bytes.*107"):
        qemu_args(Machine(KERNEL), Accel.TCG, Layout(Path(f"{fits.dir}d")), 3, 4)


@pytest.mark.parametrize(
    "fields",
    [
        {"channels": ("a,b",)},
        {"channels": ("",)},
        {"fw_cfg": {"etc/x": b""}},
        {"fw_cfg": {"opt/" + "x" * 52: b""}},
        {"drives": (Drive(Path("/a"), "root"), Drive(Path("/b"), "root"))},
        {"clock": "utc,driftfix=slew"},
        {"clock": "2026-11-24"},
    ],
)
def test_machines_that_cannot_be(fields: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        Machine(KERNEL, **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize("serial", ["", "x" * 21, "a b"])
def test_serials_that_cannot_be(serial: str) -> None:
    with pytest.raises(ConfigError):
        Drive(Path("/d"), serial)


@pytest.mark.parametrize("mac", ["", "01:00:5e:00:00:01", "52:54:00:00:00", "52-54-00-00-00-01"])
def test_macs_that_cannot_be(mac: str) -> None:
    with pytest.raises(ConfigError):
        Tap(3, mac)
