# SPDX-License-Identifier: Apache-2.0
"""Tests that need no machine; the others are in osbase/test/vm."""

from pathlib import Path

import pytest

from osbase.test.qemu.config import Accel, Machine
from osbase.test.qemu.vm import State, Vm, VmError


async def test_a_test_without_the_mark_boots_nothing(tmp_path: Path) -> None:
    """A VM would be slow in the quick subset of tests and beside others."""
    vm = Vm(Machine(tmp_path / "kernel", tmp_path / "initrd"), Accel.TCG, tmp_path)
    with pytest.raises(VmError, match="//osbase/test/qemu:vm_test needs vm = True"):
        await vm.start()
    assert vm.state is State.STOPPED
    assert not vm.layout.qemu_log.exists()
