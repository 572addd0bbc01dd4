# SPDX-License-Identifier: Apache-2.0
"""Times and counts from lines of tracefs."""

import pytest

from metropolis.test.bench.scale.probe import offset
from metropolis.test.bench.scale.trace import Arrival, Parser, Send, Trace, TraceError, start

TCP = (
    "          <idle>-0       (-------) [001] ..s2.   100.000100: tcp_probe: family=AF_INET "
    "src=198.51.100.10:39472 dest=198.51.100.1:2379 mark=0x0 data_len={size} snd_nxt=0x1"
)
BEGIN = (
    "       python3-{thread}    (    {process}) [000] .....   {at}: nl_begin: "
    "(netlink_sendmsg+0x0/0x480) len={size} protocol={protocol}"
)
END = (
    "       python3-{thread}    (    {process}) [001] .....   {at}: nl_end: "
    "(__sys_sendto+0x1ef/0x200 <- netlink_sendmsg) ret=96"
)


def _send(thread: int, process: int, begin: str, end: str) -> list[str]:
    return [
        BEGIN.format(thread=thread, process=process, at=begin, size=96, protocol=16),
        END.format(thread=thread, process=process, at=end),
    ]


def test_a_change() -> None:
    lines = [TCP.format(size=450), *_send(413, 412, "100.010000", "100.010250")]
    trace = Parser().feed(lines, 412)
    assert trace.arrivals == (Arrival(100.0001, 450),)
    assert trace.sends == (Send(100.01, 100.01025, 96, 16),)
    assert (trace.received, trace.done_s) == (450, 100.01025)


def test_what_others_send_does_not_count() -> None:
    assert Parser().feed(_send(7, 7, "1.000000", "2.000000"), 412) == Trace()


def test_asking_what_there_is_sets_nothing() -> None:
    """A listing has 32 bytes; a private key of the link alone makes it 68."""
    listing, key = Send(1.0, 1.1, 32, 16), Send(2.0, 2.1, 68, 16)
    trace = Trace((), (listing, key, Send(3.0, 3.1, 96, 0)))
    assert trace.wireguard == (listing, key)
    assert trace.settings == (key,)


def test_requests_of_threads_at_once() -> None:
    one, other = _send(1, 9, "1.000000", "4.000000"), _send(2, 9, "2.000000", "3.000000")
    sends = Parser().feed([one[0], *other, one[1]], 9).sends
    assert [(send.begin_s, send.end_s) for send in sends] == [(2.0, 3.0), (1.0, 4.0)]


def test_a_request_that_ends_later() -> None:
    parser = Parser()
    begin, end = _send(1, 9, "1.000000", "4.000000")
    assert parser.feed([begin], 9) == Trace()
    assert parser.feed([end], 9).done_s == 4.0


@pytest.mark.parametrize(
    "line", ["CPU:1 [LOST 12 EVENTS]", "garbage", TCP.format(size="x"), BEGIN[:80]]
)
def test_gaps_and_garbage_are_errors(line: str) -> None:
    with pytest.raises(TraceError):
        Parser().feed([line], 412)


def test_parts_of_a_start() -> None:
    trace = Trace(
        (Arrival(9.0, 300), Arrival(9.5, 40_000), Arrival(10.0, 60_000), Arrival(10.5, 100)),
        (
            Send(8.0, 8.1, 50, 16),
            Send(12.0, 12.5, 32_000, 16),
            Send(12.6, 13.0, 9_000, 16),
            Send(13.5, 13.6, 100, 0),
        ),
    )
    found = start(trace, 5.0)
    assert (found.process_s, found.listed_s, found.read_s) == (4.0, 1.0, 2.0)
    assert found.programmed_s == 1.0
    assert found.kernel_s == pytest.approx(0.9)
    assert (found.messages, found.bytes, found.total_s) == (2, 41_000, 4.0)


def test_a_start_without_peers_is_an_error() -> None:
    with pytest.raises(TraceError, match="no request with peers"):
        start(Trace((Arrival(1.0, 5),), (Send(2.0, 3.0, 50, 16),)), 0.0)
    with pytest.raises(TraceError, match="nothing came"):
        start(Trace((), (Send(2.0, 3.0, 5000, 16),)), 0.0)


def test_the_shortest_exchange_tells_the_offset() -> None:
    found = offset([(10.0, 115.0, 14.0), (20.0, 121.5, 21.0)])
    assert (found.seconds, found.error_s) == (101.0, 0.5)
