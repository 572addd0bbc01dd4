# SPDX-License-Identifier: Apache-2.0
"""Whether a link has programs that run before the filters of its clsact.

A tcx program (extended BPF, on a link) runs first, and unless it returns
TCX_NEXT, the filters of queueing disciplines do not run: packets pass a link
that `qdisc` closed, or go elsewhere. Overlay networks attach such programs.

The kernel says it for one link at a time, and only under its lock (RTNL). So a
link is asked for only once a program of the type was loaded anywhere: programs
have rising ids, and a call that finds no later one takes a microsecond.

Not seen: what an XDP program takes from a link, and what a program of another
link puts into a veth's other end (bpf_redirect_peer). Nothing at all is seen
without privileges over the initial user namespace, nor in a kernel before 6.6,
which has no tcx.

Source: linux/bpf.h; net/core/dev.c, sch_handle_ingress; kernel/bpf/tcx.c.
"""

import ctypes
import os
import struct
import sys
from typing import Final

_SYS_BPF: Final = {"x86_64": 321, "aarch64": 280, "riscv64": 280}
_PROG_GET_NEXT_ID: Final = 11
_PROG_GET_FD_BY_ID: Final = 13
_OBJ_GET_INFO_BY_FD: Final = 15
_PROG_QUERY: Final = 16
_SCHED_CLS: Final = 3  # BPF_PROG_TYPE_SCHED_CLS
_TCX: Final = (46, 47)  # BPF_TCX_INGRESS, BPF_TCX_EGRESS
_SIZE: Final = 64  # of an attr; the kernel takes missing fields as 0
_IDS = struct.Struct("=II")  # start or id; next
_INFO = struct.Struct("=IIQ")  # descriptor, length, address
# link, type of attachment, flags twice, address and number of ids
_QUERY = struct.Struct("=IIIIQI")

_libc = ctypes.CDLL(None)  # a call releases the GIL
_number = _SYS_BPF.get(os.uname().machine)


class Tcx:
    """See the module. Thread-safe."""

    def __init__(self) -> None:
        self._seen = 0  # programs up to this id
        self._any = False  # one had the type

    def is_on(self, ifindex: int) -> bool:
        """Return whether the link has such a program; False if that cannot be
        known.
        """
        return self._look() and any(_count(ifindex, kind) > 0 for kind in _TCX)

    def _look(self) -> bool:
        """Look at programs that were loaded since."""
        while not self._any:
            found = _next_id(self._seen)
            if found < 0:
                break
            self._any = _type_of(found) == _SCHED_CLS
            self._seen = found
        return self._any


def _bpf(command: int, attr: bytes) -> tuple[int, bytes]:
    """Return the result, less than 0 for an error, and what attr has become."""
    if _number is None:
        return -1, attr
    buffer = ctypes.create_string_buffer(attr, _SIZE)
    result: int = _libc.syscall(_number, command, buffer, _SIZE)
    return result, buffer.raw


def _next_id(start: int) -> int:
    """Return the id of the next program; -1: there is none."""
    result, attr = _bpf(_PROG_GET_NEXT_ID, _IDS.pack(start, 0))
    return -1 if result < 0 else int(_IDS.unpack_from(attr)[1])


def _type_of(program: int) -> int:
    """Return its type; 0: it is gone."""
    descriptor, _ = _bpf(_PROG_GET_FD_BY_ID, _IDS.pack(program, 0))
    if descriptor < 0:
        return 0
    try:
        info = ctypes.create_string_buffer(4)
        _bpf(_OBJ_GET_INFO_BY_FD, _INFO.pack(descriptor, len(info), ctypes.addressof(info)))
        return int.from_bytes(info.raw, sys.byteorder)
    finally:
        os.close(descriptor)


def _count(ifindex: int, kind: int) -> int:
    result, attr = _bpf(_PROG_QUERY, _QUERY.pack(ifindex, kind, 0, 0, 0, 0))
    return -1 if result < 0 else int(_QUERY.unpack_from(attr)[5])
