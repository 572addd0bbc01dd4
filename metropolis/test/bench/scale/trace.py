# SPDX-License-Identifier: Apache-2.0
"""node core's traffic with etcd and with the kernel, from trace events. Pure.

    tcp:tcp_probe               a segment with data has arrived from etcd
    kprobe:netlink_sendmsg      node core sends a netlink request; the kernel
                                begins to execute it
    kretprobe:netlink_sendmsg   the kernel has executed it

All times are by the node's clock. Lines are those of tracefs' trace_pipe with
record-tgid, see Documentation/trace/ftrace.rst and kprobetrace.rst.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

GENERIC: Final = 16
"""NETLINK_GENERIC (linux/netlink.h): WireGuard's; 0 is of links and routes."""

_WITH_PEER: Final = 84
"""The least bytes of a request with a peer: headers of 20, the link's name of
12, two nests of 4, a key of 36, flags of 8. Others have at most 76.
"""

_LISTING: Final = 32
"""The most bytes of a request that lists: headers of 20, the link's name of 12.
A request that sets something has more."""

_LINE: Final = re.compile(
    r".*-(?P<thread>\d+)\s+\(\s*(?P<process>\d+|-+)\)\s+\[\d+\]\s.*?"
    r"(?P<at>\d+\.\d+): (?P<event>\w+): (?P<rest>.*)"
)
_FIELD: Final = re.compile(r"(\w+)=(\S+)")


class TraceError(ValueError):
    """Events were lost, or cannot be parsed."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """A segment from etcd. at_s: seconds of the node's clock."""

    at_s: float
    bytes: int


@dataclass(frozen=True, slots=True)
class Send:
    """A netlink request, executed between these seconds."""

    begin_s: float
    end_s: float
    bytes: int
    protocol: int


@dataclass(frozen=True)
class Trace:
    """Events in order."""

    arrivals: tuple[Arrival, ...] = ()
    sends: tuple[Send, ...] = ()

    def __add__(self, other: Trace) -> Trace:
        return Trace(self.arrivals + other.arrivals, self.sends + other.sends)

    @property
    def received(self) -> int:
        """Return the bytes of TCP payload from etcd."""
        return sum(one.bytes for one in self.arrivals)

    @property
    def wireguard(self) -> tuple[Send, ...]:
        """Return the requests to WireGuard."""
        return tuple(send for send in self.sends if send.protocol == GENERIC)

    @property
    def settings(self) -> tuple[Send, ...]:
        """Return the WireGuard requests that set something. The others list the
        present state, which the reconciler does periodically.
        """
        return tuple(send for send in self.wireguard if send.bytes > _LISTING)

    @property
    def with_peers(self) -> tuple[Send, ...]:
        """Return the WireGuard requests that set or remove peers."""
        return tuple(send for send in self.wireguard if send.bytes >= _WITH_PEER)

    @property
    def done_s(self) -> float:
        """Return the end of the last of them. Raises TraceError if there is
        none.
        """
        if not self.wireguard:
            raise TraceError("no request to WireGuard")
        return max(send.end_s for send in self.wireguard)


class Parser:
    """Parses lines into events. An unfinished request is returned with the
    lines that contain its end.
    """

    def __init__(self) -> None:
        self._open: dict[int, tuple[float, int, int]] = {}

    def feed(self, lines: Iterable[str], process: int) -> Trace:
        """Parse lines. process: node core's. Raises TraceError."""
        arrivals: list[Arrival] = []
        sends: list[Send] = []
        for line in lines:
            if line.startswith("CPU:") and "LOST" in line:
                raise TraceError(f"the trace has a gap: {line}")
            found = _LINE.fullmatch(line)
            if found is None:
                raise TraceError(f"not understood: {line!r}")
            fields = dict(_FIELD.findall(found["rest"]))
            at, thread = float(found["at"]), int(found["thread"])
            try:
                if found["event"] == "tcp_probe":
                    arrivals.append(Arrival(at, int(fields["data_len"])))
                elif found["process"] != str(process):
                    continue
                elif found["event"] == "nl_begin":
                    self._open[thread] = at, int(fields["len"]), int(fields["protocol"])
                elif found["event"] == "nl_end" and thread in self._open:
                    begin, size, protocol = self._open.pop(thread)
                    sends.append(Send(begin, at, size, protocol))
            except (KeyError, ValueError) as error:
                raise TraceError(f"{line!r}: {error}") from error
        return Trace(tuple(arrivals), tuple(sends))


@dataclass(frozen=True)
class Start:
    """Parts of a start, seconds. process: from its start to the first segment;
    listed: from there to the last of the list; read: from there to the first
    request with peers; programmed: from there to the end of the last; kernel:
    the part of that in the kernel.
    """

    process_s: float
    listed_s: float
    read_s: float
    programmed_s: float
    kernel_s: float
    messages: int
    bytes: int

    @property
    def total_s(self) -> float:
        """Return the time from the list's first segment on."""
        return self.listed_s + self.read_s + self.programmed_s


def start(trace: Trace, begun_s: float) -> Start:
    """Return the parts of a start. begun_s: the start of the process. Raises
    TraceError.
    """
    with_peers = trace.with_peers
    if not with_peers:
        raise TraceError("no request with peers")
    first_send = with_peers[0].begin_s
    last = with_peers[-1].end_s
    before = [one.at_s for one in trace.arrivals if begun_s <= one.at_s <= first_send]
    if not before:
        raise TraceError("nothing came from etcd before the first request with peers")
    # The handshake and small answers count as the beginning of the list.
    heavy = listed(trace, before[0], first_send)
    return Start(
        process_s=before[0] - begun_s,
        listed_s=heavy - before[0],
        read_s=first_send - heavy,
        programmed_s=last - first_send,
        kernel_s=sum(send.end_s - send.begin_s for send in with_peers),
        messages=len(with_peers),
        bytes=sum(send.bytes for send in with_peers),
    )


def listed(trace: Trace, begin: float, end: float) -> float:
    """Return when 99 % of the bytes between had arrived: the answers after the
    list (to our own transaction) are small.
    """
    between = [one for one in trace.arrivals if begin <= one.at_s <= end]
    wanted = 0.99 * sum(one.bytes for one in between)
    for one in between:
        wanted -= one.bytes
        if wanted <= 0:
            return one.at_s
    return end
