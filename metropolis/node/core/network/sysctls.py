# SPDX-License-Identifier: Apache-2.0
"""The kernel settings of a node's network, each with its reason.

Source: Documentation/networking/ip-sysctl.rst. `all` and `default` are set
before there are workloads; a link inherits `default` when it is created.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from metropolis.node import allocs


class SysctlError(Exception):
    """A setting that the kernel refused, with its name and value."""


@dataclass(frozen=True)
class Sysctl:
    """path: below /proc/sys/net, since link names may contain dots. value:
    several numbers are separated by blanks.

    optional: may be missing, as those of the whole kernel in a namespace.
    """

    path: str
    value: int | str
    optional: bool = False


_VALUE_MAX: Final = 256

FRAGMENT_S: Final = 2
"""How long an incomplete packet is kept, seconds: fragments come one after the
other, and a lost one never comes."""

_FRAGMENT_MEMORY: Final = 64 * 2**20

NODE: Final = (
    # Fragments of incomplete packets have 4 MiB for 30 s by default, less than
    # two thousand packets, for all pods, the node and WireGuard together. Here
    # it is three times one pod's share, see rules.workloads. IPv6's own
    # limits are not used: conntrack reassembles packets first.
    Sysctl("ipv4/ipfrag_time", FRAGMENT_S),
    Sysctl("ipv4/ipfrag_high_thresh", _FRAGMENT_MEMORY),
    Sysctl("netfilter/nf_conntrack_frag6_timeout", FRAGMENT_S, optional=True),
    Sysctl("netfilter/nf_conntrack_frag6_high_thresh", _FRAGMENT_MEMORY, optional=True),
    # Keep addresses when an older one of the same subnet is removed, as when
    # a new lease follows an old one.
    Sysctl("ipv4/conf/all/promote_secondaries", 1),
    # Reverse paths are checked by the rule set, strictly and in both families;
    # the kernel's own check knows IPv4 only, and takes the greater of `all` and
    # the link's. Links of workloads have 1, for ARP; with 2 in `all` that would
    # be 2, which is no check where there is a default route.
    Sysctl("ipv4/conf/all/rp_filter", 0),
    Sysctl("ipv4/conf/default/rp_filter", 0),
    # A redirect would announce a better first hop to workloads; there is none.
    Sysctl("ipv4/conf/all/send_redirects", 0),
    Sysctl("ipv4/conf/default/send_redirects", 0),
    # Only its configuration sets a node's routes, and no neighbour.
    Sysctl("ipv4/conf/all/accept_redirects", 0),
    Sysctl("ipv4/conf/default/accept_redirects", 0),
    Sysctl("ipv6/conf/all/accept_redirects", 0),
    Sysctl("ipv6/conf/default/accept_redirects", 0),
    Sysctl("ipv4/conf/all/accept_source_route", 0),
    Sysctl("ipv6/conf/all/accept_source_route", 0),
    Sysctl("ipv6/conf/default/accept_source_route", 0),
    # A workload must not be a router for its node. The uplink differs.
    Sysctl("ipv6/conf/default/accept_ra", 0),
    # Every workload is up to four neighbours, since it counts on both ends of
    # its link and the tables are the kernel's, not a namespace's; the default
    # is full at 256 dual-stack workloads.
    Sysctl("ipv4/neigh/default/gc_thresh1", 4096, optional=True),
    Sysctl("ipv4/neigh/default/gc_thresh2", 32768, optional=True),
    Sysctl("ipv4/neigh/default/gc_thresh3", 65536, optional=True),
    Sysctl("ipv6/neigh/default/gc_thresh1", 4096, optional=True),
    Sysctl("ipv6/neigh/default/gc_thresh2", 32768, optional=True),
    Sysctl("ipv6/neigh/default/gc_thresh3", 65536, optional=True),
    # Workloads ask for the first hop's MAC on their links, and its address is
    # on lo: with 1 or more (as for direct server return) they get no answer.
    # A write to `default` also reaches links that were never set themselves.
    Sysctl("ipv4/conf/all/arp_ignore", 0),
    Sysctl("ipv4/conf/default/arp_ignore", 0),
    # An unsolicited answer makes no neighbour entry, or else one workload
    # fills the table with invented ones. IPv6 has its own setting per link.
    Sysctl("ipv4/conf/all/arp_accept", 0),
    Sysctl("ipv4/conf/default/arp_accept", 0),
    Sysctl("ipv6/conf/default/accept_untracked_na", 0),
    # The node's own connections use no port that flows of workloads get: see
    # allocs.MASQUERADE_PORTS.
    Sysctl("ipv4/ip_local_port_range", "{} {}".format(*allocs.EPHEMERAL_PORTS)),
    # Last: forwarding starts with the settings above in place.
    Sysctl("ipv4/ip_forward", 1),
    Sysctl("ipv6/conf/all/forwarding", 1),
    # Links that are made later inherit these; the two above set them as well.
    Sysctl("ipv4/conf/default/forwarding", 1),
    Sysctl("ipv6/conf/default/forwarding", 1),
)


FORWARDS: Final = True
"""Whether the node is a router to its neighbours, at the end of NODE."""


def found_enabled(root: str = "/proc/sys/net") -> tuple[Sysctl, ...]:
    """Return the settings that enable IPv6, if it is enabled: a node without
    IPv6 is its operator's choice, a later loss is not. Without IPv6 on lo the
    node does not reach itself.
    """
    enabled = (Sysctl(f"ipv6/conf/{name}/disable_ipv6", 0) for name in ("all", "default", "lo"))
    return tuple(one for one in enabled if differs(one, root) is None)


def link(name: str) -> tuple[Sysctl, ...]:
    """Return the settings without which a link does not forward, if there is
    such a link.
    """
    return (
        Sysctl(f"ipv4/conf/{name}/forwarding", 1, optional=True),
        Sysctl(f"ipv6/conf/{name}/disable_ipv6", 0, optional=True),
    )


def forwarding(name: str) -> Sysctl:
    """Return the setting that forwards traffic from a link. The node's own,
    ip_forward, sets it for all links, but others may set it for one.
    """
    return Sysctl(f"ipv4/conf/{name}/forwarding", 1)


def uplink(name: str, *, router_advertisements: bool, ipv6_on: bool = True) -> tuple[Sysctl, ...]:
    """Return the settings of the uplink. Apply them before it is up: the
    kernel solicits router advertisements when a link comes up, and only then.

    ipv6_on: whether the link gets IPv6 though it is off for others.
    """
    return (
        # 2: also on a node that forwards.
        Sysctl(f"ipv6/conf/{name}/accept_ra", 2 if router_advertisements else 0),
        # What is accepted from them, and how long they are solicited (-1: until
        # they answer): hardening guides set all four to 0 in `default`.
        *(
            (
                Sysctl(f"ipv6/conf/{name}/accept_ra_defrtr", 1),
                Sysctl(f"ipv6/conf/{name}/accept_ra_pinfo", 1),
                Sysctl(f"ipv6/conf/{name}/autoconf", 1),
                Sysctl(f"ipv6/conf/{name}/router_solicitations", -1),
            )
            if router_advertisements
            else ()
        ),
        *((Sysctl(f"ipv6/conf/{name}/disable_ipv6", 0),) if ipv6_on else ()),
        # Answers to pods arrive on it; neighbours resolve the node's address.
        forwarding(name),
        Sysctl(f"ipv4/conf/{name}/arp_ignore", 0),
        Sysctl(f"ipv4/conf/{name}/rp_filter", 0),
        Sysctl(f"ipv4/conf/{name}/send_redirects", 0),
        Sysctl(f"ipv4/conf/{name}/accept_redirects", 0),
        Sysctl(f"ipv6/conf/{name}/accept_redirects", 0),
        # The kernel announces our addresses to neighbours at once, also while
        # this service is away; osbase.net.announce says what that leaves out.
        Sysctl(f"ipv4/conf/{name}/arp_notify", 1),
        Sysctl(f"ipv6/conf/{name}/ndisc_notify", 1),
    )


def apply(settings: Iterable[Sysctl], root: str = "/proc/sys/net") -> None:
    """Write those that differ. Raises SysctlError at the first refusal."""
    for setting in relevant(settings, root):
        _write(setting, root)


def apply_each(settings: Iterable[Sysctl], root: str = "/proc/sys/net") -> tuple[SysctlError, ...]:
    """Write those that differ, as far as possible; return the refused."""
    refused = []
    for setting in settings:
        try:
            apply((setting,), root)
        except SysctlError as error:
            refused.append(error)
    return tuple(refused)


def differs(setting: Sysctl, root: str = "/proc/sys/net") -> str | None:
    """Return the present value, if it differs from the wanted one; "": the
    setting is missing, though it is not optional. None: it is right.
    """
    with contextlib.closing(Reader((setting,), root)) as reader:
        return reader.differs(setting)


class Reader:
    """Compares settings again and again, by descriptors that it keeps.

    Opening, reading as text and closing 60 of them takes 2.1 ms of a CPU, and
    reading them by descriptors 0.13 ms: a look every second must not cost.
    Not thread-safe.
    """

    def __init__(self, settings: Iterable[Sysctl], root: str = "/proc/sys/net") -> None:
        self._settings = tuple(settings)
        self._root = root
        self._descriptors: dict[str, int] = {}

    def close(self) -> None:
        """Close all descriptors; the next comparison opens what it needs."""
        for descriptor in self._descriptors.values():
            os.close(descriptor)
        self._descriptors.clear()

    def all(self) -> Iterator[tuple[Sysctl, str]]:
        """Yield what differs, of the settings that are relevant to this kernel,
        with what is there instead, as `differs` returns it.
        """
        for setting in relevant(self._settings, self._root):
            found = self.differs(setting)
            if found is not None:
                yield setting, found

    def differs(self, setting: Sysctl) -> str | None:
        """See the function of this name."""
        try:
            found = self._read(setting.path).split()
        except OSError:
            return None if setting.optional else ""
        return None if found == str(setting.value).split() else " ".join(found)

    def _read(self, path: str) -> str:
        kept = self._descriptors.get(path)
        if kept is not None:
            try:
                return os.pread(kept, _VALUE_MAX, 0).decode()
            except OSError:
                # The link is gone; there may be another one of its name.
                os.close(self._descriptors.pop(path))
        descriptor = os.open(os.path.join(self._root, path), os.O_RDONLY | os.O_CLOEXEC)
        self._descriptors[path] = descriptor
        return os.pread(descriptor, _VALUE_MAX, 0).decode()


def relevant(settings: Iterable[Sysctl], root: str = "/proc/sys/net") -> tuple[Sysctl, ...]:
    """Return those that this kernel has: booted with ipv6.disable=1 it has none
    for IPv6.
    """
    six = has_ipv6(root)
    return tuple(one for one in settings if six or not one.path.startswith("ipv6/"))


def has_ipv6(root: str = "/proc/sys/net") -> bool:
    """Return whether the kernel has IPv6 at all."""
    return os.path.isdir(os.path.join(root, "ipv6"))


def ipv6_is_off(root: str = "/proc/sys/net") -> bool:
    """Return whether IPv6 is off for all links, or in the kernel."""
    try:
        with open(os.path.join(root, "ipv6/conf/all/disable_ipv6"), encoding="ascii") as file:
            return file.read().strip() != "0"
    except OSError:
        return True


def _write(setting: Sysctl, root: str) -> None:
    path = os.path.join(root, setting.path)
    dotted = "net." + setting.path.replace("/", ".")
    try:
        # Writing an equal value is not free: writing `forwarding` drops
        # learnt routes.
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            if os.read(fd, 64).split() != str(setting.value).encode().split():
                os.pwrite(fd, str(setting.value).encode(), 0)
        finally:
            os.close(fd)
    except OSError as error:
        if setting.optional and error.errno in (errno.ENOENT, errno.EACCES, errno.EPERM):
            return
        name = errno.errorcode.get(error.errno or 0, str(error.errno))
        hint = {
            errno.ENOENT: "the kernel lacks it, or the link is gone",
            errno.EROFS: "mount /proc writable",
            errno.EACCES: "run as root",
            errno.EPERM: "CAP_NET_ADMIN is needed",
        }.get(error.errno or 0, os.strerror(error.errno or 0))
        raise SysctlError(f"set {dotted} = {setting.value}: {name} ({hint})") from error
