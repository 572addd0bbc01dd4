# SPDX-License-Identifier: Apache-2.0
"""Namespaces, and kernels of the overlay in them. Needs root."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterator

from metropolis.node.core.network.overlay.kernel import LinuxKernel
from osbase.netlink.transport import open_raw
from osbase.test.namespaces import inside, sh


class Space:
    """A network namespace by name, with `lo` up. Everything here enters it."""

    def __init__(self, name: str) -> None:
        self.name = name
        sh(f"ip netns add {name}")
        self.sh("ip link set lo up")

    def sh(self, command: str) -> str:
        return sh(f"ip netns exec {self.name} {command}")

    def inside[T](self, make: Callable[[], T]) -> T:
        """Call `make` in the namespace; return its result."""
        with inside(self.name):
            return make()

    def kernel(self) -> LinuxKernel:
        """Return the namespace's kernel."""
        return LinuxKernel(self.open_socket)

    def open_socket(self, protocol: int) -> socket.socket:
        return self.inside(lambda: open_raw(protocol))

    def delete(self) -> None:
        sh(f"ip netns del {self.name}")


@contextlib.contextmanager
def spaces(*names: str) -> Iterator[list[Space]]:
    """Make namespaces; delete them at the end."""
    made: list[Space] = []
    try:
        for name in names:
            made.append(Space(name))
        yield made
    finally:
        for space in made:
            space.delete()
