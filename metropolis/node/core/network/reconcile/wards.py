# SPDX-License-Identifier: Apache-2.0
"""The wards of things that belong to the node as a whole.

Rules    the rule set, as it was committed
Sysctls  settings of the whole node
Host     lo and its addresses, and the kernel's own routing policy rules
Foreign  foreign base chains that see forwarded packets: only reported
"""

from __future__ import annotations

import errno
import functools
import logging
from collections.abc import Callable, Iterable, Sequence
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Final, Protocol

from metropolis.node import allocs
from metropolis.node.core.network import sysctls
from metropolis.node.core.network.reconcile.ward import Allow, Repair
from metropolis.node.core.network.workloads.conditions import Conditions
from osbase.ip import AF_INET, AF_INET6
from osbase.ip import IPAddress as _IPAddress
from osbase.netlink import fibrules
from osbase.netlink.address import add_address, del_address, dump_addresses, parse_address
from osbase.netlink.errors import BatchError, NetlinkError
from osbase.netlink.link import get_link, parse_link, set_link_up
from osbase.netlink.message import Request
from osbase.netlink.route import RT_SCOPE_HOST, RT_SCOPE_UNIVERSE, RTN_LOCAL, get_route, parse_route
from osbase.netlink.transport import NetlinkSocket
from osbase.nftables import NftablesError
from osbase.nftables.digest import BaseChain, base_chains, open_socket

_LOOPBACK: Final = 1
_LOCAL: Final = 255
_MAIN: Final = 254
_LAST: Final = 2**32  # larger than every rule's priority
_NAMED: Final = 3

_INET_HOOKS: Final = {0: "prerouting", 2: "forward", 4: "postrouting", 5: "ingress"}
_HOOKS: Final = {
    **dict.fromkeys(("inet", "ip", "ip6"), _INET_HOOKS),
    # Without ARP requests and answers it gets no packets.
    "arp": {0: "input", 1: "output"},
    "netdev": {0: "ingress", 1: "egress"},
}


def attempt(key: str, what: str, allow: Allow, put_back: Callable[[], object]) -> Repair:
    """Restore what is wrong, if `allow` permits; return the repair."""
    if not allow(key):
        return Repair(key, what, left=True)
    try:
        put_back()
    except (NetlinkError, NftablesError, sysctls.SysctlError, OSError) as error:
        return Repair(key, what, error=str(error))
    return Repair(key, what)


class RuleSet(Protocol):
    """The methods of rules.ruleset.RuleSet that are used here."""

    def differences(self) -> list[str]:
        """Return texts: the differences from the applied rules."""

    def apply(self, *, fresh: bool = False) -> None:
        """Program the wanted rules; fresh: without what others added."""


class Rules:
    """The whole rule set is one thing: it is replaced as a whole."""

    name = "rules"

    def __init__(self, rules: RuleSet) -> None:
        """rules: already applied."""
        self._rules = rules

    def look(self, allow: Allow) -> Sequence[Repair]:
        """See Ward. Raises NetlinkError or OSError when they cannot be read."""
        found = self._rules.differences()
        if not found:
            return ()
        what = ", ".join(found[:_NAMED])
        if len(found) > _NAMED:
            what += f", and {len(found) - _NAMED} more"
        put_back = functools.partial(self._rules.apply, fresh=True)
        return (attempt("rules", f"nftables: {what}", allow, put_back),)


class Sysctls:
    """Settings, each a thing, in order."""

    def __init__(
        self,
        settings: Iterable[sysctls.Sysctl],
        name: str = "sysctls",
        *,
        root: str = "/proc/sys/net",
    ) -> None:
        """settings: the wanted ones."""
        self.name = name
        self._root = root
        self._reader = sysctls.Reader(settings, root)

    def look(self, allow: Allow) -> Sequence[Repair]:
        """See Ward."""
        repairs = []
        for setting, found in self._reader.all():
            dotted = "net." + setting.path.replace("/", ".")
            repairs.append(
                attempt(
                    f"sysctl {dotted}",
                    f"{dotted} was {found or 'missing'}, not {setting.value}",
                    allow,
                    functools.partial(sysctls.apply, (setting,), self._root),
                )
            )
        return repairs


class Host:
    """What the kernel itself makes in a new namespace and when lo comes up, and
    the first hop's address.
    """

    name = "host"

    _RULES: Final = (
        # Table and priority, as fib_default_rules_init and fib6_rules_net_init
        # have them. Another priority is fine, others move them: as long as
        # main's default route does not take what is for the node itself.
        (AF_INET, _LOCAL, 0),
        (AF_INET, _MAIN, 32766),
        (AF_INET, 253, 32767),
        (AF_INET6, _LOCAL, 0),
        (AF_INET6, _MAIN, 32766),
    )
    _TABLES: Final = {_LOCAL: "local", _MAIN: "main", 253: "default"}
    _ADDRESSES: Final[tuple[tuple[_IPAddress, int, int], ...]] = (
        # Address, prefix length, scope.
        (IPv4Address("127.0.0.1"), 8, RT_SCOPE_HOST),
        (allocs.FIRST_HOP_IPV4, 32, RT_SCOPE_UNIVERSE),
        (IPv6Address("::1"), 128, RT_SCOPE_HOST),
    )

    def look(self, allow: Allow) -> Sequence[Repair]:
        """See Ward."""
        repairs: list[Repair] = []
        with NetlinkSocket() as sock:

            def put_back(key: str, what: str, *requests: Request) -> None:
                def carry_out() -> None:
                    # Each may have come back by itself.
                    for request in requests:
                        sock.batch([request], tolerate={errno.EEXIST, errno.EADDRNOTAVAIL})

                repairs.append(attempt(key, what, allow, carry_out))

            self._look_at_rules(sock, put_back)
            self._look_at_loopback(sock, put_back)
        return repairs

    def _look_at_rules(self, sock: NetlinkSocket, put_back: Callable[..., None]) -> None:
        families = (AF_INET, AF_INET6) if _has_ipv6() else (AF_INET,)
        for family in families:
            rules = map(fibrules.parse_rule, sock.dump(fibrules.dump_rules(family)))
            first: dict[int, int] = {}
            for rule in rules:
                if rule.everything:
                    first[rule.table] = min(rule.priority, first.get(rule.table, rule.priority))
            for of, table, priority in self._RULES:
                if of != family:
                    continue
                version = 4 if family == AF_INET else 6
                what = f"IPv{version} routing rule {priority}: lookup {self._TABLES[table]}"
                request = fibrules.add_rule(family, table, priority)
                if table not in first:
                    put_back(what, f"{what} was gone", request)
                elif table == _LOCAL and first.get(_MAIN, _LAST) <= first[table]:
                    put_back(what, f"{what} came after that of main", request)

    def _look_at_loopback(self, sock: NetlinkSocket, put_back: Callable[..., None]) -> None:
        if not parse_link(sock.get(get_link(_LOOPBACK))).up:
            put_back("link lo: up", "lo was down", set_link_up(_LOOPBACK, "lo"))
        present = {
            found.address
            for family in ((AF_INET, AF_INET6) if _has_ipv6("lo") else (AF_INET,))
            for message in sock.dump(dump_addresses(family, _LOOPBACK))
            if (found := parse_address(message)) is not None
        }
        for address, bits, scope in self._ADDRESSES:
            if address.version == 6 and not _has_ipv6("lo"):
                continue
            key = f"address {address} of lo"
            add = add_address(_LOOPBACK, "lo", address, bits, scope=scope)
            if address not in present:
                put_back(key, f"{address}/{bits} was gone from lo", add)
            elif address.version == 4 and not _is_local(sock, address):
                # As after a flush of the table local: with the address, its
                # route comes again. In IPv6 it comes some time after the
                # address, so that it is missing is no damage.
                remove = del_address(_LOOPBACK, "lo", address, bits)
                put_back(key, f"{address} had no local route", remove, add)


class Workloads:
    """All kernel objects of attachments on the host; the engine checks them."""

    name = "workloads"

    def __init__(self, repair: Callable[[Allow], Sequence[Repair]]) -> None:
        """repair: Engine.repair."""
        self.look = repair


class Foreign:
    """Foreign filters, which also decide on forwarded packets. They are not
    removed, and are no problem by themselves, since they may accept elsewhere;
    but they are reported: they may explain why pods have no network. One that
    has no rule and drops is a problem: it drops everything, at any hook that
    packets of pods pass, of any type. Those of single links are reported, too.

    Filters of the old ip_tables are not seen.
    """

    name = "foreign"

    def __init__(self, conditions: Conditions, log: logging.Logger) -> None:
        """conditions: receives a note."""
        self._conditions = conditions
        self._log = log
        self._last = ""

    def look(self, allow: Allow) -> Sequence[Repair]:
        """See Ward; there is nothing to repair."""
        del allow
        with open_socket() as sock:
            chains = base_chains(sock)
        text = describe(chains)
        closed = describe(
            # A filter of one link may be on one without pods.
            one
            for one in chains
            if not one.accepts and not one.rules and _hook(one) not in ("ingress", "egress")
        )
        if closed:
            self._conditions.set(
                "foreign_filters",
                f"a chain without rules drops all packets that come to it: {closed}; `nft delete "
                "chain` removes it",
            )
        else:
            self._conditions.clear("foreign_filters")
        if text != self._last:
            self._conditions.note("foreign_filters", text)
            if any(_is_foreign(one) and not one.accepts for one in chains):
                self._log.warning("packets of pods are filtered by others, too: %s", text)
        self._last = text
        return ()


def describe(chains: Iterable[BaseChain]) -> str:
    """Return which foreign chains filter forwarded packets. Pure.

    At hooks other than forward many chains only mark or translate: reported
    are those that drop what they do not accept.
    """
    texts = []
    for chain in chains:
        hook = _hook(chain)
        forward = hook == "forward" and chain.kind == "filter"
        if not _is_foreign(chain) or (chain.accepts and not forward):
            continue
        where = "" if hook == "forward" else f" at {hook}"
        drops = "" if chain.accepts else " (drops what it does not accept)"
        texts.append(f"{chain.family} {chain.table} {chain.name}{where}{drops}")
    return ", ".join(sorted(texts))


def _is_foreign(chain: BaseChain) -> bool:
    """Return whether it is foreign, at a hook that packets of pods pass."""
    ours = (allocs.NFTABLES_TABLE, allocs.NFTABLES_WORKLOADS)
    return bool(_hook(chain)) and chain.table not in ours


def _hook(chain: BaseChain) -> str:
    """Return the name of a hook that packets of pods pass, else ""."""
    return _HOOKS.get(chain.family, {}).get(chain.hook, "")


def _has_ipv6(link: str = "all") -> bool:
    """Return whether the kernel, or the link, has IPv6, and enabled."""
    path = Path("/proc/sys/net/ipv6/conf", link, "disable_ipv6")
    if link == "all":
        return path.exists()
    try:
        return path.read_text(encoding="ascii").strip() == "0"
    except OSError:
        return False


def _is_local(sock: NetlinkSocket, address: _IPAddress) -> bool:
    try:
        route = parse_route(sock.get(get_route(address)))
    except BatchError:
        return False
    return route is not None and route.kind == RTN_LOCAL
