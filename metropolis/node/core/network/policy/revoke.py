# SPDX-License-Identifier: Apache-2.0
"""Cut flows that exist and are no longer allowed.

The kernel judges a flow by its first packet. When policies have changed, and
are loaded, the flows of the identities that they are about are listed by their
mark, judged one by one, and those that are denied leave conntrack's table: the
next packet is judged again. With TCP it is no plain SYN, so it gets a reset, in
either direction. With UDP the client is cut; if the server goes on to send and
may begin a flow itself, its packets make one, and the client's are answers.

Flows that are allowed stay in the table: packets of TCP would be refused, too.
If an identity of their ends has changed, they get the new mark, so that they
are found by it the next time.

Flows that the node began are not touched: it reaches its workloads.

A flow of a workload that has ended is cut, too: the peer could keep it alive,
and would reach the next workload that has the address. Its mark says that the
end was a workload's; for flows from before there were policies, the caller says
which addresses are no longer in use.

The marks of flows are not always those of now: policies may have been switched
off meanwhile, or the service killed between a change and its cuts. So a first
load, and a start, look at all flows.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Final

from metropolis.node import allocs
from metropolis.node.core.network.policy.tables import Identity
from metropolis.node.core.network.workloads.model import IPAddress
from osbase.conntrack import marks
from osbase.conntrack.marks import Flow
from osbase.netlink.transport import NetlinkSocket, SocketPool

type Selection = tuple[int, int]
"""A mark and a mask."""

type Allowed = Callable[[IPAddress, IPAddress, int, int], bool]
"""Source, destination, number of the protocol, port (0 if it has none)."""

_LISTS: Final = 4  # of as many selections; a list is a walk over the table
_SOURCE: Final = allocs.CONNTRACK_MARK_SOURCE
_DESTINATION: Final = allocs.CONNTRACK_MARK_DESTINATION


@dataclass(frozen=True, slots=True)
class Judge:
    """allowed: whether policies allow a flow, now. identity: of an address,
    now; 0: the world, or not known. is_local: whether an address is the node's.
    ended: addresses of workloads that have ended; none has them now.
    """

    allowed: Allowed
    identity: Callable[[IPAddress], Identity]
    is_local: Callable[[IPAddress], bool]
    ended: Collection[IPAddress] = ()


@dataclass(frozen=True, slots=True)
class Revoked:
    """judged: how many flows. cut: those that were denied. marked: those that
    got another mark.
    """

    judged: int
    cut: tuple[Flow, ...]
    marked: int


def selections(changed: Collection[Identity], *, every: bool = False) -> list[Selection]:
    """Return how to find the flows of identities. every: all flows, whatever
    their mark. Pure.
    """
    if every:
        return [marks.ALL]
    found = [(identity << 16, _SOURCE) for identity in changed]
    return found + [(identity, _DESTINATION) for identity in changed]


def revoke(
    changed: Collection[Identity],
    judge: Judge,
    *,
    every: bool = False,
    sockets: SocketPool | None = None,
) -> Revoked:
    """Cut flows, after the change is loaded. It can be repeated.

    changed: identities about which tables changed: whose pairs, ports, ranges
    of the world or isolation are others; and, of an address that has another
    identity, the former one. every: see `selections`; for the first load of
    policies, and after a start that does not know what was cut.
    sockets: of marks.open_socket, or digest.open_socket. Raises NetlinkError,
    OSError, or what `judge` raises; some flows may be cut then.
    """
    wanted = selections(changed, every=every)
    if not wanted:
        return Revoked(0, (), 0)
    with marks.open_socket() if sockets is None else sockets.socket() as sock:
        flows = [one for one in _listed(sock, wanted) if _is_judged(one, judge)]
        cut = [one for one in flows if not _is_allowed(one, judge)]
        denied = set(map(id, cut))
        marked = [
            marks.marking(one, mark)
            for one in flows
            if id(one) not in denied and (mark := _mark(one, judge)) not in (0, one.mark)
        ]
        marks.change(sock, [*map(marks.deletion, cut), *marked])
    return Revoked(len(flows), tuple(cut), len(marked))


def _listed(sock: NetlinkSocket, wanted: list[Selection]) -> list[Flow]:
    """Return the flows that one of the selections finds, each once."""
    if len(wanted) > _LISTS:
        exact = {mask: {mark for mark, at in wanted if at == mask} for _, mask in wanted}
        return [
            one
            for one in marks.flows(sock, *marks.ALL)
            if any(one.mark & mask in found for mask, found in exact.items())
        ]
    found = {}
    for mark, mask in wanted:
        for one in marks.flows(sock, mark, mask):
            found[marks.deletion(one).body] = one
    return list(found.values())


def _is_judged(flow: Flow, judge: Judge) -> bool:
    """Whether policies are about the flow: not the node's own, and not those of
    a workload with itself.
    """
    return flow.source != flow.destination and not judge.is_local(flow.source)


def _is_allowed(flow: Flow, judge: Judge) -> bool:
    return not _has_ended(flow, judge) and judge.allowed(
        flow.source, flow.destination, flow.protocol, flow.port
    )


def _has_ended(flow: Flow, judge: Judge) -> bool:
    """Whether an end of the flow was a workload's, and is none's now. The
    mark of a flow between others is not ours.
    """
    ends = ((flow.source, flow.mark & _SOURCE), (flow.destination, flow.mark & _DESTINATION))
    if any(ip in judge.ended for ip, _ in ends):
        return True
    return bool(_mark(flow, judge)) and any(
        was and not judge.identity(ip) and not judge.is_local(ip) for ip, was in ends
    )


def _mark(flow: Flow, judge: Judge) -> int:
    """Return the mark that it would get now; 0: of no workload, so the mark is
    not ours.
    """
    return judge.identity(flow.source) << 16 | judge.identity(flow.destination)
