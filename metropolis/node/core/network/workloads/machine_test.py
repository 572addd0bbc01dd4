# SPDX-License-Identifier: Apache-2.0
"""Random histories of the API on the real kernel, compared with a model.

After every step the model must agree with the service's list, a watcher's
events, and pyroute2's listings on the host and in every pod. Steps:
attach (also with chosen addresses and MAC), repeat, detach, collect, check,
restart, death in the middle of a call, the end of a namespace, other prefixes,
changes of links by others, and calls that come at once.

$MACHINE_EXAMPLES histories of $MACHINE_STEPS steps; new ones each time, and the
shortest that fails, with HYPOTHESIS_PROFILE=explore. Longer than other files:
the model and its one class belong together.
"""

import contextlib
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from pyroute2 import IPRoute

from metropolis.node import allocs
from metropolis.node.core.network.workloads.datapath.veth import KernelDatapath
from metropolis.node.core.network.workloads.engine.engine import Engine
from metropolis.node.core.network.workloads.engine.watchers import Kind, Watcher
from metropolis.node.core.network.workloads.errors import (
    AlreadyExists,
    Exhausted,
    InvalidArgument,
    NotFound,
    Unavailable,
    WorkloadError,
)
from metropolis.node.core.network.workloads.model import AttachIntent, IPAddress
from metropolis.node.core.network.workloads.testing.lab import Pod, objects
from osbase.ip import link_local
from osbase.netlink.message import Request
from osbase.netlink.transport import NetlinkSocket

EXAMPLES = int(os.environ.get("MACHINE_EXAMPLES", "12"))
STEPS = int(os.environ.get("MACHINE_STEPS", "40"))
OUTPUTS = Path(os.environ.get("TEST_UNDECLARED_OUTPUTS_DIR", "/tmp"))
WAIT_S = 10.0
# A shorter history that fails as well costs five minutes: it is looked for when
# somebody waits for it. Without, the steps are the bound.
PHASES = [hypothesis.Phase.explicit, hypothesis.Phase.generate]
if os.environ.get("HYPOTHESIS_PROFILE") == "explore":
    PHASES += [hypothesis.Phase.shrink, hypothesis.Phase.explain]

# Small, so that they fill up; the third replaces the first while it is in use.
PREFIXES: list[tuple[tuple[str, ...], tuple[str, ...]]] = [
    (("10.9.0.0/29", "fd00:9::/125"), ("10.9.0.2",)),
    (("10.9.0.0/29",), ()),
    (("10.9.0.8/30", "10.9.1.0/32", "fd00:9:1::/126"), ("fd00:9:1::1",)),
    (("fd00:9::/125",), ()),
    ((), ()),
]
REQUESTS: list[tuple[str, ...]] = [
    (),
    ("10.9.0.1",),
    ("10.9.0.2",),
    ("fd00:9::3",),
    ("10.9.0.9", "fd00:9:1::2"),
    ("10.9.0.0",),
    ("192.0.2.1",),
]
MACS = [None, bytes.fromhex("020000000001"), bytes.fromhex("020000000002")]

workload_ids = st.sampled_from(["a", "b", "c" * 255, "d {}%"])
if_names = st.sampled_from(["eth0", "net1"])
pod_numbers = st.integers(0, 2)
requests = st.one_of(st.just(()), st.just(()), st.sampled_from(REQUESTS))
macs = st.one_of(st.none(), st.sampled_from(MACS))

type Damage = dict[str, str | int]
# What others do to a link; the MTU is that of the attachment or another.
DAMAGES: list[Damage] = [
    {"group": 0},
    {"group": 9},
    {"ifalias": ""},
    {"ifalias": "c"},
    {"ifname": "renamed"},
    {"mtu": 1400},
    {"mtu": 1000},
    {"address": "02:00:00:00:00:99"},
    {"state": "down"},
    {"ifalias": "", "group": 0, "ifname": "renamed", "state": "down"},
]

done: Counter[str] = Counter()
states: set[object] = set()


class Crash(BaseException):
    """Stands for a SIGKILL: no line of the service runs after it, as far as
    the kernel can see.
    """


class Crasher:
    """Raises at the chosen send, before or after it, and at all that follow."""

    def __init__(self) -> None:
        self.left = -1
        self.after = False
        self.crashed = False
        self._real = NetlinkSocket._send

    def install(self, patch: pytest.MonkeyPatch) -> None:
        crasher, real = self, self._real

        def send(sock: NetlinkSocket, data: bytes, request: Request) -> None:
            if crasher.crashed:
                raise Crash
            if crasher.left == 0:
                crasher.crashed = True
                if crasher.after:
                    real(sock, data, request)
                raise Crash
            crasher.left -= 1
            real(sock, data, request)

        patch.setattr(NetlinkSocket, "_send", send)

    def disarm(self) -> None:
        self.left, self.crashed = -1, False


crasher = Crasher()


@dataclass(frozen=True)
class Made:
    """An attachment, in the model. asked: addresses and MAC of the request."""

    pod: int
    ips: tuple[IPAddress, ...]
    mac: bytes
    asked: tuple[frozenset[str], bytes | None]


type Key = tuple[str, str]


class Watched:
    """The set as a watcher sees it; a thread reads."""

    def __init__(self, watcher: Watcher) -> None:
        self.keys: set[Key] = set()
        self.errors: list[str] = []
        self.changed = threading.Condition()
        self._watcher = watcher
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        try:
            for event in self._watcher:
                if event.attachment is None:
                    continue
                key = event.attachment.workload_id, event.attachment.if_name
                with self.changed:
                    if event.kind in (Kind.PRESENT, Kind.ATTACHED):
                        if key in self.keys:
                            self.errors.append(f"{key} came twice")
                        self.keys.add(key)
                    else:
                        if key not in self.keys:
                            self.errors.append(f"{key} left and was not there")
                        self.keys.discard(key)
                    self.changed.notify_all()
        except Unavailable:
            pass  # the service stopped

    def await_keys(self, expected: set[Key]) -> None:
        with self.changed:
            self.changed.wait_for(lambda: self.keys == expected, WAIT_S)
            assert self.keys == expected
            assert self.errors == []

    def close(self) -> None:
        self._watcher.close()
        self._thread.join()


class Api(RuleBasedStateMachine):
    """The engine, which is the API without its transport, and the model.

    Longer than other classes, since hypothesis wants all steps in one.
    """

    def __init__(self) -> None:
        super().__init__()
        done["histories"] += 1
        self.base = len(objects())
        self.pods = [Pod() for _ in range(3)]
        self.model: dict[Key, Made] = {}
        self.prefixes = PREFIXES[0]
        self.begin()

    def begin(self) -> None:
        """Start a service."""
        self.engine = Engine(KernelDatapath())
        self.apply_prefixes()
        self.engine.start()
        self.watched = Watched(self.engine.watch())

    def apply_prefixes(self) -> None:
        prefixes, reserved = self.prefixes
        self.engine.set_prefixes(
            [ip_network(p) for p in prefixes], [ip_address(r) for r in reserved]
        )

    def teardown(self) -> None:
        crasher.disarm()
        self.engine.collect(lambda workload_id, if_name: False)
        self.watched.await_keys(set())
        self.watched.close()
        self.engine.settle()
        self.engine.close()
        for pod in self.pods:
            pod.close()
        assert len(objects()) == self.base

    # ---- The model ----------------------------------------------------------

    def usable(self, version: int) -> list[IPAddress]:
        """Return the addresses that may be given, used or not."""
        found: list[IPAddress] = []
        for text in self.prefixes[0]:
            prefix = ip_network(text)
            if prefix.version == version:
                every: list[IPAddress] = [*prefix]
                if prefix.num_addresses > 2:
                    every = every[1:-1] if version == 4 else every[1:]
                found += every
        return [ip for ip in found if str(ip) not in self.prefixes[1]]

    def used(self) -> set[IPAddress]:
        return {ip for made in self.model.values() for ip in made.ips}

    def expected(self, key: Key, pod: int, asked: Sequence[str], mac: bytes | None) -> object:
        """Return the existing attachment, an error's type, None: a new one."""
        made = self.model.get(key)
        if made is not None:
            same = made.pod == pod and made.asked == (frozenset(asked), mac)
            return made if same else AlreadyExists
        if not self.prefixes[0]:
            return Unavailable
        if any(one.pod == pod and name == key[1] for (_, name), one in self.model.items()):
            return AlreadyExists
        left = {version: set(self.usable(version)) - self.used() for version in (4, 6)}
        for text in asked:
            ip = ip_address(text)
            if ip not in left[ip.version]:
                return AlreadyExists if ip in self.usable(ip.version) else InvalidArgument
        chosen = {ip_address(text).version for text in asked}
        for version in (4, 6):
            wanted = any(ip_network(p).version == version for p in self.prefixes[0])
            if wanted and version not in chosen and not left[version]:
                return Exhausted
        return None

    def intent(self, key: Key, pod: int, asked: Sequence[str], mac: bytes | None) -> AttachIntent:
        ips = tuple(ip_address(text) for text in asked)
        return AttachIntent(key[0], self.pods[pod].path, key[1], ips, mac)

    def note(self, key: Key, pod: int, asked: Sequence[str], mac: bytes | None, got: Any) -> None:
        """Check a new attachment against the allowed values."""
        wanted = {ip_network(text).version for text in self.prefixes[0]}
        assert {ip.version for ip in got.ips} == wanted
        assert set(map(ip_address, asked)) <= set(got.ips)
        for ip in got.ips:
            assert ip in self.usable(ip.version)
            assert ip not in self.used()
        assert mac in (None, got.mac)
        self.model[key] = Made(pod, got.ips, got.mac, (frozenset(asked), mac))

    # ---- Steps --------------------------------------------------------------

    @rule(workload_id=workload_ids, if_name=if_names, pod=pod_numbers, asked=requests, mac=macs)
    def attach(
        self, workload_id: str, if_name: str, pod: int, asked: tuple[str, ...], mac: bytes | None
    ) -> None:
        key = workload_id, if_name
        expected = self.expected(key, pod, asked, mac)
        try:
            got = self.engine.attach(self.intent(key, pod, asked, mac))
        except WorkloadError as error:
            done[f"attach refused: {type(error).__name__}"] += 1
            assert type(error) is expected, error
            return
        if isinstance(expected, Made):
            done["attach repeated"] += 1
            assert (got.ips, got.mac) == (expected.ips, expected.mac)
        else:
            done["attach"] += 1
            assert expected is None, expected
            self.note(key, pod, asked, mac, got)

    @rule(wanted=st.lists(st.tuples(workload_ids, if_names, pod_numbers), min_size=3, max_size=8))
    def attach_several(self, wanted: list[tuple[str, str, int]]) -> None:
        """Attach several, so that histories have something to lose."""
        for workload_id, if_name, pod in wanted:
            self.attach(workload_id, if_name, pod, (), None)

    @rule(
        workload_id=workload_ids,
        if_name=st.sampled_from(["", "eth0", "net1"]),
        where=st.integers(-1, 2),
        until_gone=st.booleans(),
    )
    def detach(self, workload_id: str, if_name: str, where: int, until_gone: bool) -> None:
        """where: the pod whose path is given, or -1: none."""
        done["detach"] += 1
        path = "" if where < 0 else self.pods[where].path
        self.engine.detach(workload_id, path, if_name, until_gone=until_gone)
        for key in self.leaving(workload_id, if_name, where):
            del self.model[key]

    def leaving(self, workload_id: str, if_name: str, where: int) -> list[Key]:
        return [
            key
            for key, made in self.model.items()
            if key[0] == workload_id and if_name in ("", key[1]) and where in (-1, made.pod)
        ]

    @rule(live=st.sets(workload_ids))
    def collect(self, live: set[str]) -> None:
        done["collect"] += 1
        stale = {key for key in self.model if key[0] not in live}
        collected = self.engine.collect(lambda workload_id, if_name: workload_id in live)
        assert {(one.workload_id, one.if_name) for one in collected.removed} == stale
        assert collected.remaining == ()
        for key in stale:
            del self.model[key]

    @rule(workload_id=workload_ids, enter=st.booleans())
    def check(self, workload_id: str, enter: bool) -> None:
        done["check"] += 1
        there = {key: made for key, made in self.model.items() if key[0] == workload_id}
        if not there:
            with pytest.raises(NotFound):
                self.engine.check(workload_id)
            return
        pods = {made.pod for made in there.values()}
        path = self.pods[pods.pop()].path if enter and len(pods) == 1 else ""
        checked = self.engine.check(workload_id, "", path)
        assert {one.attachment.if_name for one in checked} == {key[1] for key in there}
        for one in checked:
            assert one.findings == ()
            assert one.entered is bool(path)

    @rule(
        workload_id=workload_ids, if_name=if_names,
        first=st.sampled_from(DAMAGES), second=st.sampled_from(DAMAGES), restart=st.booleans(),
    )  # fmt: skip
    def damage(
        self, workload_id: str, if_name: str, first: Damage, second: Damage, restart: bool
    ) -> None:
        """Others change a link; a look, or a restart, repairs it."""
        found = [one for one in self.engine.list(workload_id) if one.if_name == if_name]
        if not found:
            return
        with IPRoute() as other:
            for change in (first, second):
                other.link("set", index=found[0].host_ifindex, **change)
        if restart:
            done["damage before a restart"] += 1
            self.restart()
        else:
            done["damage before a look"] += 1
            repairs = self.engine.repair(lambda _: True)
            assert not any(repair.error for repair in repairs)
        assert not self.engine.repair(lambda _: True)
        assert all(one.findings == () for one in self.engine.check(workload_id))

    @rule()
    def restart(self) -> None:
        done["restart"] += 1
        self.watched.close()
        self.engine.close()
        self.begin()

    @rule(number=st.sampled_from([0, 0, 1, 2, 2, 3, 4]))
    def change_prefixes(self, number: int) -> None:
        done["prefixes"] += 1
        self.prefixes = PREFIXES[number]
        self.apply_prefixes()

    @rule(pod=pod_numbers)
    def die(self, pod: int) -> None:
        """The pod's namespace ends."""
        done["namespace ends"] += 1
        for key in [key for key, made in self.model.items() if made.pod == pod]:
            del self.model[key]
        self.pods[pod].close()
        self.watched.await_keys(set(self.model))
        self.pods[pod] = Pod()

    @rule(
        workload_id=workload_ids, if_name=if_names, pod=pod_numbers, sends=st.integers(0, 3),
        after=st.booleans(),
    )  # fmt: skip
    def crash_in_attach(
        self, workload_id: str, if_name: str, pod: int, sends: int, after: bool
    ) -> None:
        key = workload_id, if_name
        expected = self.expected(key, pod, (), None)
        crashed = self.crash(
            lambda: self.engine.attach(self.intent(key, pod, (), None)), sends, after
        )
        listed = {(one.workload_id, one.if_name): one for one in self.engine.list()}
        if key in listed and key not in self.model:
            assert expected is None
            self.note(key, pod, (), None, listed[key])
        else:
            # It crashed not late enough, or not at all and was refused.
            assert crashed or expected is not None

    @rule(workload_id=workload_ids, sends=st.integers(0, 3), after=st.booleans())
    def crash_in_detach(self, workload_id: str, sends: int, after: bool) -> None:
        """Also behind the answer."""
        self.crash(lambda: self.detach_slowly(workload_id), sends, after)
        listed = {(one.workload_id, one.if_name) for one in self.engine.list()}
        for key in self.leaving(workload_id, "", -1):
            if key not in listed:
                del self.model[key]

    def detach_slowly(self, workload_id: str) -> None:
        """Wait for the links' end, but not long for what has crashed."""
        self.engine.detach(workload_id, until_gone=True, time_remaining=lambda: 0.2)

    def crash(self, act: Callable[[], object], sends: int, after: bool) -> bool:
        crasher.left, crasher.after = sends, after
        with contextlib.suppress(Crash, WorkloadError):
            act()
        crashed = crasher.crashed
        done["death within a call" if crashed else "death too late"] += 1
        # It may still send its watcher an event that nobody else sees.
        crasher.crashed = True
        self.watched.close()
        self.engine.close()
        crasher.disarm()
        self.begin()
        return crashed

    @rule(workload_id=workload_ids, if_name=if_names, pod=pod_numbers, count=st.integers(2, 4))
    def attach_alike_at_once(self, workload_id: str, if_name: str, pod: int, count: int) -> None:
        """Equal calls: one attachment, equal answers."""
        done["equal calls at once"] += 1
        key = workload_id, if_name
        expected = self.expected(key, pod, (), None)
        answers = self.at_once(
            [lambda: self.engine.attach(self.intent(key, pod, (), None))] * count
        )
        if isinstance(expected, type):
            assert {type(answer) for answer in answers} == {expected}
            return
        assert len({(answer.ips, answer.mac) for answer in answers}) == 1
        if expected is None:
            self.note(key, pod, (), None, answers[0])

    @rule(pod=pod_numbers, names=st.lists(workload_ids, min_size=2, max_size=4, unique=True))
    def attach_many_at_once(self, pod: int, names: list[str]) -> None:
        """Different workloads, one pod, one name in it: at most one gets it."""
        done["rivals at once"] += 1
        before = {name: self.expected((name, "eth0"), pod, (), None) for name in names}
        answers = self.at_once(
            [
                partial(self.engine.attach, self.intent((name, "eth0"), pod, (), None))
                for name in names
            ]
        )
        winners = 0
        for name, answer in zip(names, answers, strict=True):
            expected = before[name]
            if isinstance(expected, Made):
                assert (answer.ips, answer.mac) == (expected.ips, expected.mac)
            elif expected is not None:
                assert type(answer) is expected
            elif not isinstance(answer, Exception):
                winners += 1
                self.note((name, "eth0"), pod, (), None, answer)
            else:
                # The winner may have taken the last address, too.
                assert type(answer) in (AlreadyExists, Exhausted), answer
        assert winners == any(expected is None for expected in before.values())

    @rule(workload_id=workload_ids, pod=pod_numbers)
    def attach_and_detach_at_once(self, workload_id: str, pod: int) -> None:
        """In either order."""
        done["attach and detach at once"] += 1
        key = workload_id, "eth0"
        expected = self.expected(key, pod, (), None)
        gone = self.leaving(workload_id, "eth0", -1)
        answer, _ = self.at_once(
            [
                lambda: self.engine.attach(self.intent(key, pod, (), None)),
                lambda: self.engine.detach(workload_id, "", "eth0"),
            ]
        )
        for one in gone:
            del self.model[one]
        found = [one for one in self.engine.list(workload_id) if one.if_name == "eth0"]
        if found:
            assert answer == found[0]
            if isinstance(expected, Made) and found[0].ips == expected.ips:
                raise AssertionError("the attachment survived a Detach that succeeded")
            self.note(key, pod, (), None, found[0])

    @staticmethod
    def at_once(calls: list[Callable[[], Any]]) -> list[Any]:
        """Concurrent calls get answers or errors of the family."""
        barrier = threading.Barrier(len(calls))

        def run(call: Callable[[], Any]) -> Any:
            barrier.wait()
            try:
                return call()
            except WorkloadError as error:
                return error

        with ThreadPoolExecutor(len(calls)) as pool:
            return list(pool.map(run, calls))

    # ---- Invariants ---------------------------------------------------------

    @invariant()
    def the_service_agrees(self) -> None:
        done["steps"] += 1
        listed = {(a.workload_id, a.if_name): (a.ips, a.mac) for a in self.engine.list()}
        assert listed == {key: (made.ips, made.mac) for key, made in self.model.items()}
        self.watched.await_keys(set(self.model))
        try:
            self.engine.status()
            ready = True
        except Unavailable:
            ready = False
        assert ready is bool(self.prefixes[0])
        states.add(
            (
                PREFIXES.index(self.prefixes),
                frozenset(
                    (key, made.pod, made.ips, made.asked) for key, made in self.model.items()
                ),
            )
        )

    @invariant()
    def the_kernel_agrees(self) -> None:
        """After some steps: after others the next meets links that leave."""
        if done["steps"] % 3:
            return
        self.engine.settle()
        listed = {(a.workload_id, a.if_name): a for a in self.engine.list()}
        with IPRoute() as witness:
            ours = {
                int(link["index"]): (link.get("ifalias"), link.get("address"), link.get("mtu"))
                for link in witness.get_links()
                if link.get("group") == allocs.LINK_GROUP_WORKLOAD
            }
            routes = {
                (str(route.get("dst")), int(route.get("oif")))
                for family in (2, 10)
                for route in witness.get_routes(family=family, table=254)
                if route["proto"] == allocs.ROUTE_PROTOCOL_WORKLOAD
            }
            hops = {
                int(a["index"])
                for a in witness.get_addr(family=10)
                if a.get("address") == "fe80::1"
            }
        mac = allocs.FIRST_HOP_MAC.hex(":")
        assert ours == {a.host_ifindex: (a.workload_id, mac, 1500) for a in listed.values()}
        reached = {a.host_ifindex: list(a.ips) for a in listed.values()}
        for a in listed.values():
            if any(ip.version == 6 for ip in a.ips):
                reached[a.host_ifindex].append(link_local(a.mac))
        assert routes == {(str(ip), index) for index, ips in reached.items() for ip in ips}
        assert hops == {
            a.host_ifindex for a in listed.values() if any(ip.version == 6 for ip in a.ips)
        }
        for number, pod in enumerate(self.pods):
            expected = {key[1]: made for key, made in self.model.items() if made.pod == number}
            interfaces, defaults = pod.inside(inside)
            assert interfaces == {
                name: (made.mac.hex(":"), {str(ip) for ip in made.ips})
                for name, made in expected.items()
            }
            assert defaults == Counter(ip.version for made in expected.values() for ip in made.ips)


def inside() -> tuple[dict[str, tuple[str, set[str]]], Counter[int]]:
    """Return interfaces but lo, with MAC and addresses; default routes."""
    with IPRoute() as witness:
        addresses: dict[int, set[str]] = {}
        for one in witness.get_addr():
            if not str(one.get("address")).startswith("fe80:"):
                addresses.setdefault(int(one["index"]), set()).add(str(one.get("address")))
        found = {
            str(link.get("ifname")): (
                str(link.get("address")),
                addresses.get(int(link["index"]), set()),
            )
            for link in witness.get_links()
            if link.get("ifname") != "lo"
        }
        defaults = Counter(
            4 if family == 2 else 6
            for family in (2, 10)
            for route in witness.get_routes(family=family, table=254)
            if route["dst_len"] == 0
        )
        return found, defaults


# A crash ends the thread of removals, as it ends everything.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_histories(monkeypatch: pytest.MonkeyPatch) -> None:
    crasher.install(monkeypatch)
    # So that what the datapath leaves on the host for good is there before.
    first = Engine(KernelDatapath())
    first.start()
    first.close()
    began = time.monotonic()
    settings = hypothesis.settings(
        max_examples=EXAMPLES,
        stateful_step_count=STEPS,
        deadline=None,
        suppress_health_check=list(hypothesis.HealthCheck),
        phases=PHASES,
    )
    try:
        run_state_machine_as_test(Api, settings=settings)
    finally:
        steps = done.pop("steps", 0)
        text = (
            f"{done.pop('histories', 0)} histories, {steps} steps, {len(states)} different states, "
            f"{time.monotonic() - began:.0f} s\n"
            + "".join(f"{count:7} {name}\n" for name, count in sorted(done.items()))
        )
        print(text)
        (OUTPUTS / "states.txt").write_text(text)
    assert steps > EXAMPLES
