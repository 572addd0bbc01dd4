# SPDX-License-Identifier: Apache-2.0
"""Links with tcx programs, by a kernel that the test makes up: a real one lets
nobody in a user namespace load a program.
"""

import ctypes
import os
import struct

import pytest

from osbase.netlink import tcx
from osbase.netlink.tcx import Tcx

SCHED_CLS, OTHER = 3, 8


class Kernel:
    """programs: types by id. on: numbers of programs, by link and place.
    calls: commands that came. allowed: whether it answers.
    """

    def __init__(self) -> None:
        self.programs: dict[int, int] = {}
        self.on: dict[tuple[int, int], int] = {}
        self.calls: list[int] = []
        self.allowed = True

    def bpf(self, command: int, attr: bytes) -> tuple[int, bytes]:
        self.calls.append(command)
        if not self.allowed:
            return -1, attr
        first, second = struct.unpack_from("=II", attr)
        if command == 11:
            later = [one for one in self.programs if one > first]
            return (0, struct.pack("=II", first, min(later))) if later else (-1, attr)
        if command == 13:
            if first not in self.programs:
                return -1, attr
            self.asked = first
            return os.open("/dev/null", os.O_RDONLY), attr
        if command == 15:
            _, size, address = struct.unpack_from("=IIQ", attr)
            ctypes.memmove(address, struct.pack("=I", self.programs[self.asked]), size)
            return 0, attr
        assert command == 16, command
        count = self.on.get((first, second), 0)
        return 0, attr[:24] + struct.pack("=I", count)


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    made = Kernel()
    monkeypatch.setattr(tcx, "_bpf", made.bpf)
    return made


@pytest.mark.parametrize("place", [46, 47])
def test_a_link_with_a_program(kernel: Kernel, place: int) -> None:
    known = Tcx()
    assert not known.is_on(5)
    kernel.programs = {3: OTHER, 9: SCHED_CLS}
    kernel.on[5, place] = 1
    assert known.is_on(5)
    assert not known.is_on(6)
    kernel.on.clear()
    assert not known.is_on(5)


def test_no_link_is_asked_for_without_programs_of_the_type(kernel: Kernel) -> None:
    """One call, which waits for no lock."""
    kernel.programs = {3: OTHER, 9: OTHER}
    known = Tcx()
    known.is_on(5)
    assert 16 not in kernel.calls
    kernel.calls.clear()
    known.is_on(5)
    assert kernel.calls == [11]
    kernel.programs[12] = SCHED_CLS
    kernel.on[5, 46] = 2
    assert known.is_on(5)


def test_no_file_descriptor_is_left(kernel: Kernel) -> None:
    kernel.programs = dict.fromkeys(range(1, 50), OTHER)
    before = os.listdir("/proc/self/fd")
    Tcx().is_on(5)
    assert os.listdir("/proc/self/fd") == before


def test_what_cannot_be_known(kernel: Kernel) -> None:
    kernel.allowed = False
    assert not Tcx().is_on(5)


def test_the_real_kernel_answers() -> None:
    """Or refuses; a link that does not exist has none."""
    assert not Tcx().is_on(0x7FFFFFFF)
    result, _ = tcx._bpf(11, struct.pack("=II", 0x7FFFFFFF, 0))
    assert result == -1
